import dataclasses
import json
import time

import backdoor_ft as bft
import pytest
import torch
from backdoor_ft import InputError, LabeledData, models
from backdoor_ft.auto import decoy_triggers, plant, range_test, seconds, strengths
from backdoor_ft.defenses import FT, Unlearn, universal_patterns
from backdoor_ft.defenses.unlearning import Patterns
from backdoor_ft.metrics import accuracy, attack_success


@pytest.fixture(scope="module")
def halves(digits):
    """Clean data of the defender, a held-out set, and a test set, all unseen by the victim."""
    _, test = digits
    val, rest = test.split(200, 0)
    return val, rest


@pytest.mark.parametrize("decoys", [1, pytest.param(3, marks=pytest.mark.stress)])
def test_auto_without_knowing_the_trigger(decoys, digits, badnets, halves, monkeypatch):
    victim, plan = badnets
    monkeypatch.setattr(
        "backdoor_ft.auto.decoy_triggers", lambda *a: decoy_triggers(*a)[1 : 1 + decoys]
    )
    val, test = halves
    clean, _ = digits[0].split(300, 0)
    result = bft.repair(victim, clean, val=val, method="auto", max_acc_drop=0.01)
    assert result.accepted, result.notes
    assert attack_success(result.model, test, plan) <= 0.05
    assert accuracy(result.model, val) >= accuracy(victim, val) - 0.01
    notes = " ".join(result.notes)
    assert f"smallest universal pattern: class {plan.target}, " in notes
    assert "decoys at unlearning, peak 0.03" in notes
    json.dumps(result.to_json())


def test_auto_without_the_screen(digits, badnets, halves, monkeypatch):
    """The way for token ids, and for triggers that leave no universal pattern."""
    victim, plan = badnets
    assert len(strengths(10)) == 5
    assert len(strengths(10, True)) == 5
    assert [s.name for s in strengths(0.05, True)] == ["unlearn", "superft"]
    short = dataclasses.replace(strengths(10)[3], phase1=120, phase2=120)
    monkeypatch.setattr("backdoor_ft.auto.strengths", lambda *_: [short])
    monkeypatch.setattr("backdoor_ft.auto.decoy_triggers", lambda *a: decoy_triggers(*a)[1:2])
    val, test = halves
    clean, _ = digits[0].split(600, 0)
    result = bft.repair(victim, clean, val=val, method="auto", max_acc_drop=0.02, screen=False)
    assert result.accepted, result.notes
    assert "universal" not in " ".join(result.notes)
    assert attack_success(result.model, test, plan) <= 0.05


def test_a_clean_model_comes_back_as_it_is(digits, halves):
    val, _ = halves
    model = bft.train(models.SmallCNN, digits[0], recipe="digits", seed=0)
    result = bft.repair(model, digits[0], val=val, method="auto")
    assert result.accepted
    assert result.displacement == 0
    assert "no class stands out" in result.notes[-1]
    for p, q in zip(result.model.parameters(), model.parameters()):
        assert torch.equal(p, q)


def test_smallest_patterns_against_the_closed_form():
    """Of a linear model the smallest pattern that sends one input to a class has a closed form.

    From class a to class b it is (gap / ||w||^2) w, with w the difference of the weights.
    """
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    x = torch.full((1, 1, 4, 4), 0.5)
    with torch.no_grad():
        net[1].weight.mul_(5)
        net[1].bias[0] += 1.0 - float(net(x) @ torch.tensor([1.0, -1.0]))  # a gap of 1 to class 1
        w = net[1].weight[1] - net[1].weight[0]
        wanted = w / w.square().sum()
    assert wanted.abs().max() < 0.5  # nothing is cut off
    data = LabeledData(x.repeat(8, 1, 1, 1), torch.zeros(8, dtype=torch.int64), 2)
    before = [p.clone() for p in net.parameters()]
    found = universal_patterns(net, data, steps=600, lr=0.005, seed=1)
    assert float(wanted.norm()) <= float(found.norms[1]) + 1e-4 <= 1.15 * float(wanted.norm())
    alike = torch.cosine_similarity(found.patterns[1].flatten(), wanted, dim=0)
    assert float(alike) > 0.9
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before))
    assert torch.equal(
        universal_patterns(net, data, steps=600, lr=0.005, seed=1).norms, found.norms
    )
    with pytest.raises(InputError, match="token ids"):
        universal_patterns(net, bft.data.toy_text(20))


def test_suspects_are_the_classes_that_stand_out():
    norms = torch.tensor([1.0, 0.5, 1.1, 0.2, 0.9])
    found = Patterns(norms, torch.zeros(5, 1, 2, 2))
    assert found.suspects == [3, 1]
    assert found.ratio == pytest.approx(0.2 / 0.9)
    assert Patterns(torch.tensor([1.0, 0.9, 1.1]), torch.zeros(3, 1)).suspects == [1]


def test_unlearning_needs_little_data(digits, badnets):
    """1 % of the training set: super-fine-tuning alone loses the task there."""
    victim, plan = badnets
    clean, _ = digits[0].split(12, 0)
    found = Unlearn(lr_max1=0.01, lr_max2=0.01).repair(victim, clean)
    assert attack_success(found.model, digits[1], plan) <= 0.1
    assert accuracy(found.model, digits[1]) >= accuracy(victim, digits[1]) - 0.03
    assert f"of class {plan.target}" in found.notes[0]


def test_a_clean_model_does_not_get_worse(digits, scratch, halves):
    val, test = halves
    result = bft.repair(scratch, digits[0], val=val, method="superft", max_acc_drop=0.005)
    assert accuracy(result.model, val) >= accuracy(scratch, val) - 0.005
    assert accuracy(result.model, test) >= accuracy(scratch, test) - 0.02


def test_contaminated_clean_data_are_caught_by_the_guard(digits, badnets, halves):
    """Labels of the clean set are wrong: every repair breaks the model, the victim comes back."""
    victim, _ = badnets
    train, _ = digits
    wrong = LabeledData(train.inputs, (train.labels + 1) % 10, 10)
    result = bft.repair(victim, wrong, val=halves[0], method="superft", phase1=40, phase2=40)
    assert not result.accepted
    assert "the victim is returned" in result.notes[-1]
    for p, q in zip(result.model.parameters(), victim.parameters()):
        assert torch.equal(p, q)


def test_poisons_in_the_clean_data_keep_the_backdoor(digits, badnets, halves):
    """A clean set with 5 % poisons: accuracy is fine, and the backdoor stays; Limits says so."""
    victim, plan = badnets
    mixed = bft.poison(digits[0], trigger=plan.trigger, ratio=0.05, seed=3).dataset
    result = bft.repair(victim, mixed, val=halves[0], method="superft", phase1=100, phase2=60)
    assert attack_success(result.model, halves[1], plan) > 0.5


def test_guard_refuses_a_bad_repair(digits, badnets, halves):
    result = bft.repair(badnets[0], digits[0], val=halves[0], method=FT(lr=3.0, steps=3))
    assert not result.accepted
    assert result.displacement == 0


def test_range_test_and_decoys(digits):
    train, test = digits
    model = bft.train(models.SmallCNN, train, recipe=bft.Recipe(steps=150), seed=0)
    assert 0.05 < range_test(model, train) <= 10
    triggers = decoy_triggers(train, 0)
    assert len(triggers) == 3
    decoy, plan = plant(model, train, triggers[0], 0)
    assert attack_success(decoy, test, plan) > 0.8
    assert len(decoy_triggers(bft.data.toy_text(50), 0)) == 2


def test_budget(digits, badnets):
    assert seconds("2m") == 120
    assert seconds("60s") == seconds(60) == 60
    for bad in ("soon", "-1s", 0, "0s"):
        with pytest.raises(InputError, match="budget"):
            seconds(bad)
    started = time.monotonic()
    result = bft.repair(badnets[0], digits[0], method="auto", budget="0.01s", max_acc_drop=0.5)
    assert result.notes
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "options",
    [
        {"max_acc_drop": -0.1},
        {"max_acc_drop": 2},
        {"method": "none"},
        {"method": "clp"},
        {"method": "auto", "peak": 1},
        {"method": "auto", "max_acc_drop": 2},
    ],
)
def test_bad_arguments(digits, options):
    model = models.build("mlp", 1, 10, 8)
    with pytest.raises(InputError):
        bft.repair(model, digits[0], **{"method": "ft", **options})


def test_too_little_data_for_the_guard(badnets, digits):
    with pytest.raises(InputError):
        bft.repair(badnets[0], digits[0].subset(torch.arange(2)), method="auto")
