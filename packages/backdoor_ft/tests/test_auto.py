import time

import backdoor_ft as bft
import pytest
import torch
from backdoor_ft import InputError, LabeledData, models
from backdoor_ft.auto import decoy_triggers, plant, range_test, seconds, strengths
from backdoor_ft.defenses import FT
from backdoor_ft.metrics import accuracy, attack_success


@pytest.fixture(scope="module")
def halves(digits):
    """Clean data of the defender, a held-out set, and a test set, all unseen by the victim."""
    _, test = digits
    val, rest = test.split(200, 0)
    return val, rest


def test_auto_without_knowing_the_trigger(digits, badnets, halves, monkeypatch):
    victim, plan = badnets
    assert len(strengths(10)) == 5
    monkeypatch.setattr("backdoor_ft.auto.strengths", lambda limit: strengths(limit)[3:])
    val, test = halves
    clean, _ = digits[0].split(600, 0)
    result = bft.repair(victim, clean, val=val, method="auto", max_acc_drop=0.01)
    assert result.accepted, result.notes
    assert attack_success(result.model, test, plan) <= 0.05
    assert accuracy(result.model, val) >= accuracy(victim, val) - 0.01
    assert any("decoys" in note for note in result.notes)


def test_a_clean_model_does_not_get_worse(digits, scratch, halves):
    val, test = halves
    result = bft.repair(scratch, digits[0], val=val, method="superft", max_acc_drop=0.005)
    assert accuracy(result.model, val) >= accuracy(scratch, val) - 0.005
    assert accuracy(result.model, test) >= accuracy(scratch, test) - 0.02


def test_auto_leaves_a_clean_model_unharmed(digits, scratch, halves):
    val, test = halves
    result = bft.repair(scratch, digits[0], val=val, method="auto", max_acc_drop=0.005, budget="2s")
    assert accuracy(result.model, val) >= accuracy(scratch, val) - 0.005
    assert accuracy(result.model, test) >= accuracy(scratch, test) - 0.01


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
    "options", [{"max_acc_drop": -0.1}, {"max_acc_drop": 2}, {"method": "none"}, {"method": "clp"}]
)
def test_bad_arguments(digits, options):
    model = models.build("mlp", 1, 10, 8)
    with pytest.raises(InputError):
        bft.repair(model, digits[0], **{"method": "ft", **options})


def test_too_little_data_for_the_guard(badnets, digits):
    with pytest.raises(InputError):
        bft.repair(badnets[0], digits[0].subset(torch.arange(2)), method="auto")
