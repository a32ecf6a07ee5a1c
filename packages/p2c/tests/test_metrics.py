"""Metrics against numbers of pycocoevalcap and closed forms."""

import shutil
from itertools import permutations

import numpy as np
import pytest
from p2c import InputError, metrics
from p2c.metrics.objects import mentions
from p2c.rewards import object_coverage, repetition

REFS = [
    ["a zebra stands next to a bus", "a zebra near a bus"],
    ["a pizza on a couch", "there is a pizza on the couch"],
    ["a man riding a horse", "man on horse"],
]
HYPS = ["a zebra standing next to a bus", "a pizza on the couch", "a horse riding a man"]


def test_cider_equals_pycocoevalcap():
    mean, each = metrics.cider(REFS, HYPS)
    assert mean == pytest.approx(4.1918853509, abs=1e-9)
    assert each == pytest.approx([3.7391804649, 5.7147975589, 3.1216780289], abs=1e-9)


def test_rouge_and_bleu_equal_pycocoevalcap():
    mean, each = metrics.rouge_l(REFS, HYPS)
    assert mean == pytest.approx(0.7761904762, abs=1e-9)
    assert each == pytest.approx([0.8571428571, 0.8714285714, 0.6], abs=1e-9)
    corpus, _ = metrics.bleu(REFS, HYPS)
    assert corpus == pytest.approx([0.94117648, 0.85993942, 0.69529805, 0.59584881], abs=1e-7)


def random_cases(count, seed):
    g = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(12)]

    def text(low):
        return " ".join(words[i] for i in g.integers(0, 12, g.integers(low, 14)))

    refs = [[text(1) for _ in range(g.integers(1, 6))] for _ in range(count)]
    return refs, [text(0) for _ in range(count)]


@pytest.mark.peer
def test_against_pycocoevalcap_on_random_captions():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge
    for seed in range(5):
        refs, hyps = random_cases(400, seed)
        gts, res = dict(enumerate(refs)), {i: [h] for i, h in enumerate(hyps)}
        theirs, each = bleu(4).compute_score(gts, res, verbose=0)
        ours, ours_each = metrics.bleu(refs, hyps)
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
        np.testing.assert_allclose(ours_each, each, atol=1e-9)
        np.testing.assert_allclose(
            metrics.cider(refs, hyps)[1], cider().compute_score(gts, res)[1], atol=1e-9
        )
        np.testing.assert_allclose(
            metrics.rouge_l(refs, hyps)[1], rouge().compute_score(gts, res)[1], atol=1e-9
        )


def test_words_and_numbers_score_alike():
    words = sorted({w for refs in REFS for r in refs for w in r.split()} | {"standing"})
    number = {w: i for i, w in enumerate(words)}
    as_numbers = metrics.CiderD(
        {i: [[number[w] for w in r.split()] for r in refs] for i, refs in enumerate(REFS)}
    )
    got = as_numbers.scores([0, 1, 2], [[number[w] for w in h.split()] for h in HYPS])
    np.testing.assert_allclose(got, metrics.cider(REFS, HYPS)[1], rtol=1e-12)


def test_empty_caption_scores_zero_everywhere():
    scores = metrics.evaluate({0: "", 1: ""}, dict(enumerate(REFS[:2])))
    assert all(v < 1e-6 for v in scores.values())


def test_single_image_has_no_idf():
    assert metrics.cider([["a bus"]], ["a bus"])[0] == 0.0  # log 1 = 0 documents


def test_novel_f1_counts_synonyms_and_whole_words():
    score = metrics.novel_f1(
        {1: "a sofa", 2: "a busy street", 3: "some luggage", 4: "a suitcase"},
        {1: ["a couch"], 2: ["a bus"], 3: ["a suitcase"], 4: ["a cat"]},
        {"couch": ["sofa"], "bus": [], "suitcase": ["luggage"]},
        resamples=100,
    )
    assert score.counts == {"couch": (1, 0, 0), "bus": (0, 0, 1), "suitcase": (1, 1, 0)}
    assert score.f1 == pytest.approx({"couch": 1.0, "bus": 0.0, "suitcase": 2 / 3})
    assert score.macro.low <= score.macro.value <= score.macro.high


def test_novel_f1_asks_for_references():
    with pytest.raises(InputError, match="no reference for image 7"):
        metrics.novel_f1({7: "a bus"}, {}, {"bus": []})


def test_mentions_folds_case_and_accents():
    assert mentions("Ein CAFÉ.", ["café"])
    assert not mentions("t-shirt", ["shirt"])


def test_listing_all_tags_is_flagged():
    names = {"zebra": [], "bus": [], "couch": []}
    assert metrics.tag_listing({1: "zebra bus couch", 2: "bus"}, names) == (1.0, True)
    assert not metrics.tag_listing({1: "a zebra stands on a bus"}, names)[1]


def test_hallucination():
    found = metrics.object_hallucination(
        {1: "a cat on a bus", 2: "a cat"}, {1: ["cat"], 2: ["cat"]}, {"cat": [], "bus": []}
    )
    assert (found.per_object, found.per_caption.value) == (1 / 3, 0.5)


def test_java_metrics_say_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="needs Java"):
        metrics.evaluate({1: "a"}, {1: ["a"]}, ["meteor"])


@pytest.mark.peer
def test_meteor_runs_in_java():
    """Identical captions are perfect up to METEOR's chunk penalty; a synonym counts (sofa)."""
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    refs = {0: ["a zebra stands next to a couch"]}
    scores = [
        metrics.evaluate({0: text}, refs, ["meteor"])["METEOR"]
        for text in (
            "a zebra stands next to a couch",
            "a zebra stands next to a sofa",
            "two pizzas",
        )
    ]
    assert scores[0] > 0.99
    assert scores[0] >= scores[1] > 0.4
    assert scores[2] < 0.1


def test_unknown_metric():
    with pytest.raises(InputError, match="which = 'bleurt'"):
        metrics.evaluate({1: "a"}, {1: ["a"]}, ["bleurt"])


def test_domain_table():
    table = metrics.domain_table(
        dict(enumerate(HYPS)), dict(enumerate(REFS)), {0: "in", 1: "out", 2: "in"}, ["rouge_l"]
    )
    assert table["in"]["ROUGE-L"] == pytest.approx((0.8571428571 + 0.6) / 2)
    assert table["out"]["ROUGE-L"] == pytest.approx(0.8714285714)


def test_paired_bootstrap():
    g = np.random.default_rng(0)
    noise = g.normal(0, 1, 400)
    gain, p = metrics.paired_bootstrap(noise, noise + 0.2 + g.normal(0, 0.1, 400))
    assert gain.low < 0.2 < gain.high + 0.02
    assert p < 1e-3
    assert metrics.paired_bootstrap(noise, g.permutation(noise))[1] > 0.01


def test_assignments_equal_brute_force():
    g = np.random.default_rng(1)
    for n in range(1, 6):
        square = np.corrcoef(g.normal(size=(n + 1, 8)))[:n, :n].reshape(n, n)
        best = max(sum(square[i, p[i]] for i in range(n)) for p in permutations(range(n)))
        assert object_coverage(square, clamp=9) == pytest.approx(best / n)
        other = square * (1 - np.eye(n))
        least = min(sum(1 - other[i, p[i]] for i in range(n)) for p in permutations(range(n)))
        assert repetition(square, clamp=9) == pytest.approx(least / n)


def test_reward_bounds():
    assert repetition(np.ones((3, 3))) == 0
    assert repetition(np.eye(4), clamp=1) == 1
    assert repetition(np.eye(4)) == 0.5
    assert object_coverage(np.eye(3)) == 0.6
    assert object_coverage(np.zeros((0, 3))) == object_coverage(np.zeros((2, 0))) == 0
