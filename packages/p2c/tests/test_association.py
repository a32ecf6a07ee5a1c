"""Association, gate, paraphrases, rewards."""

import math

import numpy as np
import pytest
import torch
from p2c import (
    HFAssociation,
    InputError,
    MaskedLMParaphraser,
    OpenClipAssociation,
    RewardSum,
    SmallAssociation,
    SmallMaskedLM,
    Vocabulary,
    WordSwaps,
    association_probability,
    swap_gate,
)
from p2c.calibration import calibrate_margin, sweep_margins
from p2c.paraphrase import lexicon_tagger
from p2c.vocabulary import MASK


def unit(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1
    )


def test_equals_the_definition():
    v, c = unit(4, 6), unit(4, 6, seed=1)
    got = association_probability(v, c, 7.0)
    s = [[7 * float(v[i] @ c[j]) for j in range(4)] for i in range(4)]
    for i in range(4):
        row = math.exp(s[i][i]) / sum(math.exp(s[i][j]) for j in range(4))
        column = math.exp(s[i][i]) / sum(math.exp(s[j][i]) for j in range(4))
        assert float(got[i]) == pytest.approx((row + column) / 2)


def test_swapping_changes_one_row_and_column_only():
    v, c, new = unit(5, 6), unit(5, 6, seed=1), unit(5, 6, seed=2)
    got = association_probability(v, c, 9.0, swapped=new)
    for i in range(5):
        one = c.clone()
        one[i] = new[i]
        assert float(got[i]) == pytest.approx(float(association_probability(v, one, 9.0)[i]))


def test_permutation_and_batch_of_one():
    v, c, order = unit(5, 6), unit(5, 6, seed=1), torch.tensor([3, 0, 4, 1, 2])
    a = association_probability(v, c, 9.0)
    torch.testing.assert_close(association_probability(v[order], c[order], 9.0), a[order])
    assert association_probability(v[:1], c[:1]).item() == 1


def test_duplicates_share_the_probability():
    v = unit(1, 6).expand(2, 6)
    torch.testing.assert_close(association_probability(v, v), torch.full((2,), 0.5).double())


def test_gate_is_strict_about_the_margin():
    before = torch.tensor([0.25, 0.25, 0.25], dtype=torch.float64)
    after = torch.tensor([0.35, 0.36, 0.1], dtype=torch.float64)
    assert swap_gate(before, after, 0.1).tolist() == [False, True, False]


def test_equals_clip_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config={**small, "num_attention_heads": 2, "vocab_size": 20, "eos_token_id": 2},
        vision_config={**small, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config)
    judge = HFAssociation(model)
    pixels, ids = torch.randn(4, 3, 16, 16), torch.randint(3, 20, (4, 5))
    ids[:, -1] = 2
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
    expected = 0.5 * (logits.softmax(1).diagonal() + logits.softmax(0).diagonal())
    got = association_probability(judge.encode_image(pixels), judge.encode_text(ids), judge.scale)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_equals_clip_of_open_clip():
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
        text_cfg={"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    )
    judge = OpenClipAssociation(model)
    pixels, ids = torch.randn(4, 3, 16, 16), torch.randint(1, 19, (4, 6))
    ids[:, -1] = 19  # the end of the text has the highest number
    with torch.no_grad():
        logits, _ = model.get_logits(pixels, ids)
    expected = 0.5 * (logits.softmax(1).diagonal() + logits.softmax(0).diagonal())
    got = association_probability(judge.encode_image(pixels), judge.encode_text(ids), judge.scale)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_open_clip_refuses_other_models():
    with pytest.raises(InputError, match="a CLIP model of open_clip"):
        OpenClipAssociation(torch.nn.Linear(2, 2))


def test_hard_negatives_swap_one_word_and_never_a_synonym():
    v = Vocabulary(["a", "zebra", "bus", "couch", "sofa", "sits", "hides", "stands"])
    swaps = WordSwaps(
        v, [[["sits"], ["hides"], ["stands"]], [["zebra"], ["bus"], ["couch", "sofa"]]], ["stands"]
    )
    ids = v.encode_all(["a zebra sits a couch", "a sofa stands", ""] * 40, 6)
    made = swaps(ids, torch.Generator().manual_seed(0))
    for row, (verb, noun) in enumerate(zip(v.decode_all(made[:, 0]), v.decode_all(made[:, 1]))):
        kind = row % 3
        if kind == 0:
            assert verb in ("a zebra hides a couch", "a zebra stands a couch")
            changed = [
                (a, b) for a, b in zip(["a", "zebra", "sits", "a", "couch"], noun.split()) if a != b
            ]
            assert len(changed) == 1
            assert changed[0] not in {("couch", "sofa")}
        if kind == 1:
            assert verb == ""  # any verb might be the truth where a person said "stands"
            assert noun in ("a zebra stands", "a bus stands")
        if kind == 2:
            assert (verb, noun) == ("", "")


def test_the_judge_learns_what_its_negatives_swap():
    """Captions with swapped words make the loss harder; rows without a word change nothing."""
    torch.manual_seed(0)
    net = SmallAssociation(9, 3, dim=16, width=8, text_layers=0, size=16)
    images, ids = torch.rand(2, 3, 16, 16), torch.tensor([[5, 6, 0], [7, 8, 0]])
    wrong = torch.tensor([[[5, 8, 0], [0, 0, 0]], [[0, 0, 0], [7, 6, 0]]])
    plain, hard = net.loss(images, ids), net.loss(images, ids, wrong)
    assert float(hard.detach()) > float(plain.detach())
    none = net.loss(images, ids, torch.zeros_like(wrong))
    torch.testing.assert_close(none, plain)


@pytest.mark.parametrize("layers", [0, 1])
def test_small_model_reads_empty_captions_and_word_order(layers):
    torch.manual_seed(0)
    net = SmallAssociation(12, 5, dim=16, width=8, text_layers=layers, size=16)
    ids = torch.tensor([[5, 6, 7, 0, 0], [7, 6, 5, 0, 0], [0, 0, 0, 0, 0]])
    text = net.encode_text(ids)
    assert torch.isfinite(text).all()
    assert not torch.allclose(text[0], text[1])
    assert torch.isfinite(net.loss(torch.rand(3, 3, 16, 16), ids))


WORDS = ["a", "man's", "t-shirt", "stands", "sits", "is", "on", "zebra"]
TAGGER = lexicon_tagger({"stands", "sits"}, {"zebra", "t-shirt"})


def paraphraser(**settings):
    torch.manual_seed(0)
    v = Vocabulary(WORDS)
    return v, MaskedLMParaphraser(SmallMaskedLM(len(v), 8, 16), v, TAGGER, **settings)


def test_places_follow_words_with_hyphens_and_apostrophes():
    v, p = paraphraser()
    ids = v.encode_all(["a man's t-shirt stands on a zebra"], 8)
    made = p.propose(ids, torch.Generator().manual_seed(0))
    assert (made.masked == MASK).nonzero().tolist() == [[0, 3]]
    assert made.teacher[0, 3] > 4
    assert torch.equal(made.ids[made.masked != MASK], ids[made.masked != MASK])


def test_at_most_two_masks_and_is_stays():
    v, p = paraphraser()
    made = p.propose(v.encode_all(["sits stands sits is stands"], 8), torch.Generator())
    assert (made.masked == MASK).sum() == 2
    assert p.candidates(["zebra", "is"]) == []


def test_no_verb_in_the_batch():
    v, p = paraphraser()
    assert p.propose(v.encode_all(["a zebra", ""], 8)) is None


def test_policies():
    words = ["a", "zebra", "stands", "on"]
    assert paraphraser(policy="non-noun")[1].candidates(words) == [2, 3]
    assert paraphraser(policy="all")[1].candidates(words) == [0, 1, 2, 3]


def test_reward_that_is_not_finite_is_skipped_and_counted():
    total = RewardSum({"a": 1.0, "b": 2.0})
    got = total({"a": torch.tensor([1.0, torch.nan]), "b": torch.tensor([torch.inf, 1.0])})
    assert got.tolist() == [1.0, 2.0]
    assert total.skipped == 2
    assert total.log == [{"a": 0.5, "b": 0.5}]


def _worker(rank, folder, v, c, new):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    half = slice(2 * rank, 2 * rank + 2)
    got = association_probability(v[half], c[half], 9.0, swapped=new[half])
    torch.save(got, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    v, c, new = unit(4, 6), unit(4, 6, seed=1), unit(4, 6, seed=2)
    torch.multiprocessing.spawn(_worker, (str(tmp_path), v, c, new), nprocs=2)
    parts = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    expected = association_probability(v, c, 9.0, swapped=new)
    assert float((torch.cat(parts) - expected).abs().max()) < 1e-12


def test_margin_sweep_counts_and_chooses():
    gains = np.array([0.05, 0.15, 0.25, 0.35, 0.45])
    right = np.array([False, True, False, True, True])
    points = sweep_margins(gains, right, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [p.accepted for p in points] == [5, 4, 3, 2, 1, 0]
    assert [p.precision for p in points] == pytest.approx([0.6, 0.75, 2 / 3, 1.0, 1.0, 0.0])
    assert calibrate_margin(points, 0.75, least=1) == 0.1
    assert calibrate_margin(points, 0.9, least=2) == 0.3
    assert calibrate_margin(points, 0.9, least=4) == 0.1  # none reaches it: the most precise
    assert calibrate_margin(points, 0.9, least=9) == 0.0  # too few proposals to tell
