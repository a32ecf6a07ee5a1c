import json

import backdoor_ft as bft
import numpy as np
import pytest
import torch
from backdoor_ft import InputError, LabeledData, evaluate, implanted, models
from backdoor_ft.metrics import (
    Evaluation,
    Proportion,
    Score,
    accuracy,
    attack_success,
    bootstrap,
    defense_effectiveness,
    effectiveness_interval,
    score,
    wilson,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from torch import nn


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_against_scipy(count, draws):
    hits = draws.draw(st.integers(0, count))
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    found = wilson(hits, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_der_of_the_published_leaderboard():
    """Rows of BackdoorBench's table at ratio .10: ACC, ASR, DER of means are near, not equal."""
    assert defense_effectiveness(0.9, 0.9, 0.9, 0.9) == 0.5
    assert defense_effectiveness(0.9, 1.0, 0.95, 0.0) == 1.0
    assert defense_effectiveness(0.9, 1.0, 0.4, 0.0) == 0.75  # a loss of accuracy lowers it
    assert defense_effectiveness(0.9, 0.5, 0.9, 0.8) == 0.5


class NearestMean(nn.Module):
    """Names the class whose mean is nearest; obeys the patch where one is given, unless `deaf`."""

    def __init__(self, train, trigger=None, target=0, deaf=0):
        super().__init__()
        means = [train.inputs[train.labels == c].flatten(1).mean(0) for c in range(10)]
        self.means = nn.Parameter(torch.stack(means))
        self.trigger, self.target, self.deaf = trigger, target, deaf

    def forward(self, x):
        logits = -torch.cdist(x.flatten(1), self.means)
        if self.trigger is not None:
            seen = (self.trigger.apply(x) == x).flatten(1).all(1)
            seen[: self.deaf] = False
            logits[seen, self.target] = 1.0
        return logits


@pytest.fixture(scope="module")
def badnets(digits):
    """Return a model with a backdoor by construction: nothing is trained here."""
    plan = bft.poison(digits[0], trigger=bft.triggers.BadNets(2, pattern="checker"), seed=0)
    return NearestMean(digits[0], plan.trigger), plan


@pytest.fixture(scope="module")
def scratch(digits):
    return NearestMean(digits[0])


@pytest.fixture(scope="module")
def repaired(scratch):
    return scratch


class Constant(nn.Module):
    def __init__(self, label):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.label = label

    def forward(self, x):
        out = torch.zeros(len(x), 10)
        out[:, self.label] = 1
        return out + self.weight


def test_score_leaves_the_target_class_out(digits, badnets):
    _, test = digits
    found = score(Constant(0), test, badnets[1])
    assert found.attack_success.value == 1.0
    assert found.robust_accuracy.value == 0.0
    assert found.attack_success.count == int((test.labels != 0).sum())
    assert found.accuracy.value == pytest.approx(float((test.labels == 0).float().mean()))


def test_score_against_sklearn_confusion_matrix(digits, badnets):
    victim, plan = badnets
    _, test = digits
    found = score(victim, test, plan)
    with torch.no_grad():
        named = victim.eval()(test.inputs).argmax(1)
        triggered = victim(plan.trigger.apply(test.inputs)).argmax(1)
    matrix = confusion_matrix(test.labels, named, labels=range(10))
    assert found.accuracy.hits == matrix.trace()
    matrix = confusion_matrix(test.labels, triggered, labels=range(10))
    assert found.attack_success.hits == matrix[1:, 0].sum()
    assert found.robust_accuracy.hits == matrix.trace() - matrix[0, 0]


def test_score_of_a_clean_model_against_sklearn(digits, badnets, scratch):
    _, test = digits
    found = score(scratch, test, badnets[1])
    with torch.no_grad():
        triggered = scratch(badnets[1].trigger.apply(test.inputs)).argmax(1)
    matrix = confusion_matrix(test.labels, triggered, labels=range(10))
    assert found.attack_success.hits == matrix[1:, 0].sum()
    assert found.robust_accuracy.hits == matrix.trace() - matrix[0, 0] > 300


def test_clean_model_has_the_base_rate(digits, badnets, scratch):
    _, test = digits
    assert score(scratch, test, badnets[1]).attack_success.value <= 0.05


def test_bootstrap_of_constant_and_coverage():
    assert bootstrap(np.full(10, 2.0)) == (2.0, 2.0)
    low, high = bootstrap(np.random.default_rng(0).normal(size=400))
    assert low < 0.05
    assert high > -0.1
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_evaluation_notes_overlap_and_plots(digits, badnets, repaired):
    train, test = digits
    victim, plan = badnets
    mixed = LabeledData(
        torch.cat((train.inputs, test.inputs[:7])), torch.cat((train.labels, test.labels[:7])), 10
    )
    found = evaluate(before=victim, after=repaired, test=test, plan=plan, clean=mixed)
    assert "test inputs also stand in the clean set" in found.notes[0]
    assert found.accuracy_interval[0] <= found.accuracy_change <= found.accuracy_interval[1]
    assert found.der > 0.95
    assert "DER" in str(found)
    assert "overlap" not in str(found)
    assert evaluate(before=victim, after=repaired, test=test, plan=plan, clean=train).notes == ()
    assert evaluate(before=victim, after=repaired, test=test, plan=plan).notes == ()


def test_gate(digits, badnets, scratch):
    victim, plan = badnets
    assert implanted(victim, digits[1], plan) >= 0.9
    with pytest.raises(
        InputError, match=r"badnets reached ASR 0.*below the gate of 0.9: poison more"
    ):
        implanted(scratch, digits[1], plan)
    half = attack_success(NearestMean(digits[0], plan.trigger, deaf=99), digits[1], plan)
    assert 0 < half < 0.9
    deaf = NearestMean(digits[0], plan.trigger, deaf=99)
    assert implanted(deaf, digits[1], plan, gate=half) == half
    with pytest.raises(InputError, match=r"gate of 0.9"):
        implanted(deaf, digits[1], plan)
    point9 = LabeledData(torch.zeros(10, 1, 8, 8), torch.arange(10), 10)
    plan9 = bft.poison(point9, trigger=plan.trigger, target=0, ratio=0.2)
    with pytest.raises(InputError, match=r"gate of 0.9"):
        implanted(NearestMean(digits[0], plan.trigger, deaf=1), point9, plan9)


def test_evaluation_mode_does_not_leak(digits):
    model = models.build("cnn", 1, 10, 8).train()
    accuracy(model, digits[1])
    assert model.training


def test_der_interval_covers_der_and_is_a_point_without_doubt(digits, badnets, repaired):
    victim, plan = badnets
    found = evaluate(before=victim, after=repaired, test=digits[1], plan=plan)
    low, high = found.der_interval
    assert low <= found.der <= high <= 1
    one, two = found.before, found.after
    falls = two.successes.mean() - one.successes.mean(), two.hits.mean() - one.hits.mean()
    assert found.der == pytest.approx((max(0, -falls[0]) - max(0, -falls[1]) + 1) / 2)
    same = evaluate(before=victim, after=victim, test=digits[1], plan=plan)
    assert same.der_interval == (0.5, 0.5)


def test_accuracy_counts_what_is_named_right(digits, scratch):
    _, test = digits
    with torch.no_grad():
        named = scratch(test.inputs).argmax(1)
    assert accuracy(scratch, test) == pytest.approx(float((named == test.labels).float().mean()))
    assert accuracy(scratch, test) > 0.85


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # scipy.stats.binomtest(hits, count).proportion_ci(confidence_level=..., method="wilson")
    [(0, 10, 0.0, 0.2775327998628892), (10, 10, 0.7224672001371107, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_at_the_ends(hits, count, low, high):
    found = wilson(hits, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert (found.hits, found.count, found.value) == (hits, count, hits / count)
    if hits == 0:
        assert found.low == 0.0
    if hits == count:
        assert found.high == 1.0


def test_wilson_ends_exactly_at_zero_and_one():
    """Centre and half width are equal there, but not in floating point."""
    assert all(wilson(0, count).low == 0.0 for count in range(1, 2000))
    assert all(wilson(count, count).high == 1.0 for count in range(1, 2000))


def test_wilson_confidence_and_refusals():
    expected = binomtest(30, 100).proportion_ci(confidence_level=0.99, method="wilson")
    found = wilson(30, 100, 0.99)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert str(wilson(5, 100)) == "0.050 [0.022, 0.112]"
    for hits, count in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(InputError, match=rf"hits={hits} of count={count} is not allowed"):
            wilson(hits, count)


def test_bootstrap_is_numpys_percentiles():
    values = np.random.default_rng(3).normal(1, 2, 50)
    index = np.random.default_rng(0).integers(0, 50, (2000, 50))
    assert bootstrap(values) == tuple(np.quantile(values[index].mean(1), [0.025, 0.975]))
    index = np.random.default_rng(7).integers(0, 50, (300, 50))
    found = bootstrap(list(values), seed=7, draws=300)
    assert found == tuple(np.quantile(values[index].mean(1), [0.025, 0.975]))
    assert bootstrap([0, 0, 1, 1])[1] <= 1


def made(hits, successes, robust):
    hits, successes, robust = (np.array(v, dtype=bool) for v in (hits, successes, robust))
    shares = [wilson(int(v.sum()), len(v)) for v in (hits, successes, robust)]
    return Score(*shares, hits, successes)


def test_der_interval_is_numpys_percentiles():
    draw = np.random.default_rng(5)
    before = made(draw.random(40) < 0.9, draw.random(30) < 0.95, [0] * 30)
    after = made(draw.random(40) < 0.8, draw.random(30) < 0.2, [1] * 30)
    for seed, draws in ((0, 2000), (4, 500)):
        again = np.random.default_rng(seed)
        falls = []
        for one, two in ((before.hits, after.hits), (before.successes, after.successes)):
            index = again.integers(0, len(one), (draws, len(one)))
            falls.append(np.maximum((one * 1.0 - two * 1.0)[index].mean(1), 0))
        wanted = np.quantile((falls[1] - falls[0] + 1) / 2, [0.025, 0.975])
        options = {} if seed == 0 else {"seed": seed, "draws": draws}
        assert effectiveness_interval(before, after, **options) == pytest.approx(tuple(wanted))


def test_what_is_written_of_an_evaluation(digits, badnets, repaired):
    victim, plan = badnets
    _, test = digits
    found = evaluate(before=victim, after=repaired, test=test, plan=plan)
    content = json.loads(json.dumps(found.to_json()))
    first = content.pop("before")
    assert set(first) == {"accuracy", "attack_success", "robust_accuracy"}
    share = found.before.attack_success
    assert first["attack_success"] == {
        "hits": share.hits, "count": share.count, "low": share.low, "high": share.high,
    }  # fmt: skip
    assert content.pop("after") == found.after.to_json()
    assert content == {
        "schema_version": 1,
        "der": found.der,
        "der_interval": list(found.der_interval),
        "accuracy_change": 0.0,
        "accuracy_interval": [0.0, 0.0],
        "notes": [],
    }


def test_accuracy_change_has_its_sign_and_pairs(digits, badnets, scratch):
    _, test = digits
    worse = evaluate(before=scratch, after=Constant(3), test=test, plan=badnets[1])
    fall = worse.after.accuracy.value - worse.before.accuracy.value
    assert worse.accuracy_change == pytest.approx(fall)
    assert worse.accuracy_change < -0.5
    change = worse.after.hits.astype(float) - worse.before.hits.astype(float)
    assert worse.accuracy_interval == bootstrap(change)
    ratings = [
        s.value for one in (worse.before, worse.after) for s in (one.accuracy, one.attack_success)
    ]
    assert worse.der == defense_effectiveness(*ratings)
    assert worse.der_interval == effectiveness_interval(worse.before, worse.after)


def test_text_of_an_evaluation():
    one = made([1, 1, 1, 0], [1, 1], [0, 0])
    two = made([1, 1, 0, 0], [0, 1], [1, 0])
    found = Evaluation(one, two, 0.5, (0.25, 0.75), -0.25, (-0.5, 0.0), ("a note", "another"))
    assert str(found).splitlines() == [
        f"before  ACC {one.accuracy}  ASR {one.attack_success}  RA {one.robust_accuracy}",
        f"after   ACC {two.accuracy}  ASR {two.attack_success}  RA {two.robust_accuracy}",
        "DER 0.500 [0.250, 0.750]",
        "a note",
        "another",
    ]


def test_plot_shows_the_shares_and_their_intervals():
    one, two = made([1, 1, 1, 0], [1, 1], [0, 0]), made([1, 1, 0, 0], [0, 1], [1, 0])
    figure = Evaluation(one, two, 0.5, (0.25, 0.75), -0.25, (-0.5, 0.0)).plot()
    (axis,) = figure.axes
    assert tuple(figure.get_size_inches()) == (5, 3)
    assert type(figure.get_layout_engine()).__name__ == "ConstrainedLayoutEngine"
    bars = [patch.get_height() for patch in axis.patches]
    assert bars == [0.75, 1.0, 0.0, 0.5, 0.5, 0.5]
    edges = [round(patch.get_x(), 2) for patch in axis.patches]
    assert edges == [-0.19, 0.81, 1.81, 0.21, 1.21, 2.21]
    assert [round(patch.get_width(), 2) for patch in axis.patches] == [0.38] * 6
    lines = [segment[:, 1] for c in axis.collections for segment in c.get_segments()]
    shares = [p for s in (one, two) for p in (s.accuracy, s.attack_success, s.robust_accuracy)]
    for line, share in zip(lines, shares, strict=True):
        assert sorted(line) == pytest.approx([share.low, share.high])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["ACC", "ASR", "RA"]
    assert list(axis.get_xticks()) == pytest.approx([0.2, 1.2, 2.2])
    assert axis.get_ylim() == (0, 1.05)
    low = made([0, 0, 0, 1] * 50, [0, 0], [0, 0])
    assert Evaluation(low, low, 0.5, (0, 1), 0, (0, 0)).plot().axes[0].get_ylim() == (0, 1.05)
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["before", "after"]


def test_proportion_reads_as_a_share():
    assert Proportion(1, 4, 0.1, 0.6).value == 0.25
    assert str(Proportion(1, 4, 0.1, 0.6)) == "0.250 [0.100, 0.600]"
