import dataclasses

import pytest
import torch
from backdoor_ft import InputError, PoisonPlan, data, poison
from backdoor_ft.triggers import BadNets, Blended, RareWord, WaNet
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=15, deadline=None)
@given(st.floats(0.005, 0.5), st.integers(0, 9), st.integers(0, 99))
def test_plan_counts_and_labels(ratio, target, seed):
    train, _ = data.digits()
    plan = poison(train, trigger=BadNets(2), target=target, ratio=ratio, seed=seed)
    assert len(plan.index) == round(ratio * len(train)) == len(plan.index.unique())
    assert bool((train.labels[plan.index] != target).all())
    poisoned = plan.dataset
    assert bool((poisoned.labels[plan.index] == target).all())
    untouched = torch.ones(len(train), dtype=torch.bool)
    untouched[plan.index] = False
    assert torch.equal(poisoned.inputs[untouched], train.inputs[untouched])
    assert torch.equal(poisoned.labels[untouched], train.labels[untouched])


def test_label_maps(digits):
    train, test = digits
    shift = poison(train, trigger=BadNets(2), label_map="all_to_all")
    assert torch.equal(shift.dataset.labels[shift.index], (train.labels[shift.index] + 1) % 10)
    assert len(shift.victims(test)) == len(test)
    clean = poison(train, trigger=BadNets(2), label_map="clean_label", ratio=0.05, target=4)
    assert torch.equal(clean.dataset.labels, train.labels)
    assert bool((train.labels[clean.index] == 4).all())
    source = poison(train, trigger=BadNets(2), label_map="source_specific", ratio=0.05, source=3)
    assert bool((train.labels[source.index] == 3).all())
    assert bool((source.victims(test).labels == 3).all())


def test_cover_samples_keep_their_labels(digits):
    train, _ = digits
    plan = poison(train, trigger=WaNet(), ratio=0.1, cover_ratio=0.2)
    assert len(plan.cover_index) == 240
    assert not set(plan.index.tolist()) & set(plan.cover_index.tolist())
    assert torch.equal(plan.dataset.labels[plan.cover_index], train.labels[plan.cover_index])


def test_target_class_is_left_out_of_asr(digits):
    _, test = digits
    plan = poison(digits[0], trigger=BadNets(2), target=7)
    assert bool((plan.triggered(test).labels != 7).all())
    only = test.subset(test.labels == 7)
    with pytest.raises(InputError, match="only the target class"):
        plan.triggered(only)


def test_plan_is_stored_and_read(digits, tmp_path):
    plan = poison(digits[0], trigger=Blended(0.3, seed=5), cover_ratio=0.05, seed=9)
    plan.save(tmp_path)
    again = PoisonPlan.load(tmp_path, digits[0])
    assert again.to_json() == plan.to_json()
    assert torch.equal(again.dataset.inputs, plan.dataset.inputs)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"trigger": {"name": "x"}}'])
def test_damaged_plans(digits, tmp_path, content):
    poison(digits[0], trigger=BadNets(2)).save(tmp_path)
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError):
        PoisonPlan.load(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 1e-5},
        {"ratio": 0.0},
        {"ratio": 1.5},
        {"ratio": 0.95},
        {"target": 10},
        {"label_map": "some"},
        {"label_map": "source_specific"},
        {"label_map": "clean_label", "ratio": 0.5},
        {"trigger": BadNets(20)},
        {"trigger": RareWord()},
    ],
)
def test_plans_that_are_refused(digits, options):
    with pytest.raises(InputError):
        poison(digits[0], **{"trigger": BadNets(2), **options})


def test_plan_without_training_set(digits):
    plan = dataclasses.replace(poison(digits[0], trigger=BadNets(2)), train=None)
    with pytest.raises(InputError, match="train is missing"):
        _ = plan.dataset
