"""Stage 1: grounding, proposals, the anchor; XE that leaves words out."""

import copy

import pytest
import torch
from p2c import Distillation, TagTransformerCaptioner
from p2c.paraphrase import Paraphrase
from p2c.stages import Batch, uncovered, xe_loss
from p2c.vocabulary import MASK, PAD, SEP

A, CAT, BUS, ZEBRA, STANDS, SITS, HIDES = range(5, 12)
NOUNS = frozenset((CAT, BUS, ZEBRA))


class BagJudge:
    """Association by shared words: an image is the bag of words that are true of it."""

    scale = torch.tensor(20.0)

    def encode_text(self, ids):
        bags = torch.zeros(len(ids), 12)
        for row, line in enumerate(ids.tolist()):
            for word in line:
                if word > SEP and word != A:
                    bags[row, word] += 1
        return torch.nn.functional.normalize(bags + 1e-3, dim=-1)


class Fixed:
    """Proposes given verbs, one per rank, for the word at place 2."""

    def __init__(self, *verbs):
        self.verbs = verbs

    def propose(self, ids, generator=None, rank=0):
        masked, teacher = ids.clone(), torch.zeros_like(ids)
        masked[:, 2] = MASK
        teacher[:, 2] = self.verbs[rank]
        return Paraphrase(masked, torch.where(teacher != PAD, teacher, ids), teacher)


def scene():
    """Return two images, (zebra, sits) and (bus, hides), and captions of which one is wrong."""
    judge = BagJudge()
    images = judge.encode_text(torch.tensor([[ZEBRA, SITS], [BUS, HIDES]]))
    batch = Batch(torch.tensor([[ZEBRA], [BUS]]), torch.zeros(2, 1, 3), images)
    return judge, batch, torch.tensor([[A, CAT, STANDS, SEP], [A, BUS, STANDS, SEP]])


def test_grounding_puts_a_tag_in_the_place_of_a_noun_that_is_none():
    judge, batch, greedy = scene()
    found = Distillation(Fixed(SITS), judge, nouns=NOUNS).ground(greedy, batch)
    assert found.tolist() == [[A, ZEBRA, STANDS, SEP], [A, BUS, STANDS, SEP]]
    assert torch.equal(Distillation(Fixed(SITS), judge).ground(greedy, batch), greedy)


def test_grounding_leaves_a_caption_that_the_judge_prefers():
    judge, batch, greedy = scene()
    batch.tags = torch.tensor([[BUS], [BUS]])  # a detector that is wrong about the first image
    greedy = torch.tensor([[A, ZEBRA, STANDS, SEP], [A, BUS, STANDS, SEP]])
    found = Distillation(Fixed(SITS), judge, nouns=NOUNS).ground(greedy, batch)
    assert torch.equal(found, greedy)


def test_uncovered():
    assert uncovered([A, CAT, STANDS], [ZEBRA, PAD], NOUNS) == ([ZEBRA], [1])
    assert uncovered([A, ZEBRA], [ZEBRA], NOUNS) is None
    assert uncovered([A, STANDS], [ZEBRA], NOUNS) is None


def test_the_favourite_of_several_proposals_is_gated():
    judge, batch, _ = scene()
    greedy = torch.tensor([[A, ZEBRA, STANDS, SEP], [A, BUS, STANDS, SEP]])
    distil = Distillation(Fixed(HIDES, SITS), judge, margin=0.0, proposals=2)
    _, ids, teacher, before, after = distil.propose(greedy, batch, torch.Generator())
    assert ids[:, 2].tolist() == [SITS, HIDES]  # each image its own
    assert bool((after > before).all())
    assert (distil.proposed, distil.accepted) == (2, 2)
    _, ids, teacher, _, _ = Distillation(Fixed(HIDES), judge, margin=0.0).propose(
        greedy, batch, torch.Generator()
    )
    assert teacher[:, 2].tolist() == [PAD, HIDES]  # a rejected proposal teaches nothing


def captioner():
    torch.manual_seed(0)
    return TagTransformerCaptioner(torch.randn(12, 8), 3, 1, 2, 5)


def test_the_anchor_costs_nothing_until_words_drift():
    judge, batch, _ = scene()
    net = captioner()
    greedy = net.generate(batch.encode(net), greedy=True).ids[:, 0]
    plain = Distillation(Fixed(HIDES, SITS), judge, proposals=2)
    anchored = Distillation(Fixed(HIDES, SITS), judge, proposals=2, anchor=copy.deepcopy(net))
    memory = batch.encode(net)
    drift = anchored._drift(net, batch, memory, greedy, greedy)  # nothing is rewritten
    assert float(drift.detach()) == pytest.approx(0, abs=1e-6)
    g = torch.Generator()
    assert float((anchored.loss(net, batch, g) - plain.loss(net, batch, g)).detach()) >= -1e-6
    with torch.no_grad():
        net.head.bias += torch.randn(8)
    memory = batch.encode(net)
    drift = anchored._drift(net, batch, memory, greedy, greedy)
    assert float(drift.detach()) > 1e-3
    drift.backward()
    assert float(net.head.bias.grad.abs().sum()) > 0
    assert all(p.grad is None for p in anchored.anchor.parameters())


def test_xe_leaves_words_out():
    net = captioner()
    memory = net.encode(torch.tensor([[ZEBRA]]), torch.zeros(1, 1, 3))
    ids = torch.tensor([[A, ZEBRA, STANDS, SEP]])
    logs = net.log_prob(memory, ids[:, None])[0, 0]
    whole, some = (xe_loss(net, memory, ids, leave_out=words) for words in ((), (STANDS,)))
    torch.testing.assert_close(whole, -logs.mean())
    torch.testing.assert_close(some, -logs[[0, 1, 3]].mean())
