"""The captioner: cache, causality, log-probabilities, search."""

import itertools

import pytest
import torch
from p2c import InputError, TagTransformerCaptioner, beam_search, constrained_beam
from p2c.stages import vivo_loss, xe_loss
from p2c.vocabulary import MASK, PAD, SEP, Vocabulary, tokenize


def make(words=14, seed=0, dtype=torch.float64, length=6):
    torch.manual_seed(seed)
    net = TagTransformerCaptioner(torch.randn(words, 16), 5, 2, 4, length).to(dtype)
    memory = net.encode(
        torch.tensor([[6, 7], [5, PAD], [PAD, PAD]]), torch.randn(3, 2, 5).to(dtype)
    )
    return net, memory


def test_generated_log_prob_equals_one_pass():
    net, memory = make()
    drawn = net.generate(memory, 5, generator=torch.Generator().manual_seed(1))
    again = net.log_prob(memory, drawn.ids)
    torch.testing.assert_close(again, drawn.log_prob, atol=1e-10, rtol=0)


def test_greedy_equals_recomputing_every_prefix():
    net, memory = make()
    greedy = net.generate(memory, greedy=True).ids[:, 0]
    for row in range(3):
        prefix: list[int] = []
        part = memory.rows(slice(row, row + 1))
        while len(prefix) < 6 and SEP not in prefix:
            logs = net.next_log_probs(part, torch.tensor([prefix], dtype=torch.long).view(1, -1))
            prefix.append(int(logs.argmax()))
        assert [w for w in greedy[row].tolist() if w != PAD] == prefix


def test_a_word_never_sees_later_words_nor_itself():
    net, memory = make()
    ids = torch.tensor([[[5, 6, 7, 8, 9, SEP]]]).expand(3, 1, 6)
    other = ids.clone()
    other[..., 3] = 10
    first, second = net.masked_logits(memory, ids), net.masked_logits(memory, other)
    torch.testing.assert_close(first[:, :, :4], second[:, :, :4])
    assert not torch.allclose(first[:, :, 4], second[:, :, 4])


def test_samples_share_one_memory_and_probabilities_sum_to_one():
    net, memory = make(words=8, length=2)
    words = [SEP, 5, 6, 7]
    outcomes = [(SEP, PAD)] + [(a, b) for a in words[1:] for b in words]
    ids = torch.tensor(outcomes)[None].expand(3, -1, -1)
    total = net.log_prob(memory, ids).sum(-1).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


def test_same_seed_same_samples():
    net, memory = make()
    a, b = (net.generate(memory, 3, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a.ids, b.ids)


def test_forced_caption_is_kept_with_its_probability():
    net, memory = make()
    forced = torch.tensor([[[5, 6, SEP]]]).expand(3, 1, 3)
    drawn = net.generate(memory, 1, forced=forced)
    assert drawn.ids[:, 0, :3].tolist() == [[5, 6, SEP]] * 3


def test_embeddings_are_tied_and_frozen():
    net, memory = make(dtype=torch.float32)
    ids = torch.tensor([[5, 6, SEP]]).expand(3, 3)
    before = net.words.weight.clone()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 0.1)
    xe_loss(net, memory, ids).backward()
    optimizer.step()
    assert torch.equal(before, net.words.weight)
    assert "words.weight" in dict(net.named_parameters())


def test_features_that_are_not_finite_are_refused():
    net, _ = make()
    with pytest.raises(InputError, match="regions = 'NaN or infinite'"):
        net.encode(torch.tensor([[5, 6]]), torch.full((1, 2, 5), torch.nan).double())


def test_caption_over_length():
    net, memory = make()
    with pytest.raises(InputError, match="captions up to 6 tokens"):
        net.log_prob(memory, torch.full((3, 1, 7), 5))
    v = Vocabulary(["a", "b"])
    assert v.encode("a b a b a b", 4).tolist() == [5, 6, 5, 6]


def test_words_outside_the_vocabulary_and_empty_captions():
    v = Vocabulary(["a", "café"])
    assert v.decode(v.encode("", 3).tolist()) == ""
    assert v.ids("A CAFÉ 東京") == [5, 6, 4]
    assert tokenize("man's t-shirt") == ["man's", "t-shirt"]
    assert v.encode_all([], 4).shape == (0, 4)


def test_vivo_matches_a_set():
    net, _ = make(dtype=torch.float32)
    regions = torch.randn(2, 2, 5)
    tags = torch.tensor([[6, 7], [8, 9]])
    swapped = torch.tensor([[7, 6], [9, 8]])
    losses = [
        vivo_loss(net, t, regions, torch.Generator().manual_seed(0), rate=1.0).item()
        for t in (tags, swapped)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert float(vivo_loss(net, torch.zeros_like(tags), regions, torch.Generator())) == 0


def tables(words, length, seed):
    """Return a language of random conditional probabilities over prefixes; 0 to 2 never occur."""
    g = torch.Generator().manual_seed(seed)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def step(prefixes):
        rows = []
        for prefix in map(tuple, prefixes.tolist()):
            if prefix not in known:
                log = torch.randn(words, generator=g, dtype=torch.float64)
                log[:3] = -torch.inf
                known[prefix] = log.log_softmax(-1)
            rows.append(known[prefix])
        return torch.stack(rows)

    return step


@pytest.mark.parametrize("constraints", [(), ((4,),), ((4,), (5, 6)), ((4,), (5,), (6,))])
def test_constrained_beam_equals_exhaustive_search(constraints):
    words, length = 7, 4  # 3 is the end token
    for seed in range(4):
        step = tables(words, length, seed)
        best, argmax = -torch.inf, ()
        for n in range(length + 1):
            for body in itertools.product((4, 5, 6), repeat=n):
                full = (*body, SEP) if n < length else body
                if not all(set(c) & set(body) for c in constraints):
                    continue
                score = sum(
                    float(step(torch.tensor([full[:t]]).view(1, t).long())[0, full[t]])
                    for t in range(len(full))
                )
                if score > best:
                    best, argmax = score, full
        found = constrained_beam(step, 4**length, length, constraints)
        assert found[0].ids == argmax
        assert found[0].score == pytest.approx(best)
        assert found[0].met == set(range(len(constraints)))


def test_beam_is_no_worse_than_greedy():
    net, memory = make()
    part = memory.rows(slice(0, 1))
    greedy = net.generate(part, greedy=True)
    for beam in (1, 5):
        best = beam_search(lambda p: net.next_log_probs(part, p), beam, 6)[0]
        assert best.score >= float(greedy.log_prob.sum()) - 1e-9
        again = net.log_prob(part, torch.tensor(best.ids)[None, None])
        assert best.score == pytest.approx(float(again.sum().detach()))


def test_constraint_that_cannot_be_met():
    assert constrained_beam(tables(7, 3, 0), 9, 3, [[1]]) == []


def test_mask_token_is_never_generated():
    net, memory = make()
    ids = net.generate(memory, 20, generator=torch.Generator().manual_seed(0)).ids
    assert not (ids == MASK).any()
