import numpy as np
import pytest
import torch
from backdoor_ft import InputError, LabeledData, evaluate, implanted, models
from backdoor_ft.metrics import accuracy, bootstrap, defense_effectiveness, score, wilson
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
    assert found.plot().axes
    assert found.to_json()["schema_version"] == 1


def test_gate(digits, badnets, scratch):
    victim, plan = badnets
    assert implanted(victim, digits[1], plan) >= 0.9
    with pytest.raises(InputError, match="below the gate"):
        implanted(scratch, digits[1], plan)


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
