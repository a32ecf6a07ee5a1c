import dataclasses
import json

import numpy as np
import pytest
import torch
from backdoor_ft import InputError, LabeledData, PoisonPlan, data, poison
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


def small(count=20, classes=4, name="small"):
    draws = torch.Generator().manual_seed(0)
    inputs = torch.rand(count, 1, 6, 6, generator=draws) * 0.5
    return LabeledData(inputs, torch.arange(count) % classes, classes, name)


@dataclasses.dataclass(frozen=True)
class Recorded(BadNets):
    """A patch that tells training from later use: the one for training is fainter."""

    name = ""

    def stamp(self, x, training):
        found = super().stamp(x, training)
        return found * 0.5 if training else found


@pytest.mark.parametrize("seed", [0, 3])
def test_choice_is_torchs_permutation_of_the_candidates(seed):
    train = small()
    options = {} if seed == 0 else {"seed": seed}
    plan = poison(train, trigger=BadNets(2), target=1, ratio=0.25, cover_ratio=0.2, **options)
    draws = torch.Generator().manual_seed(seed)
    pool = torch.nonzero(train.labels != 1)[:, 0]
    index = pool[torch.randperm(len(pool), generator=draws)[:5]].sort().values
    rest = torch.tensor([i for i in range(20) if i not in index])
    cover = rest[torch.randperm(len(rest), generator=draws)[:4]].sort().values
    assert torch.equal(plan.index, index)
    assert torch.equal(plan.cover_index, cover)
    assert plan.seed == seed
    assert (plan.target, plan.label_map, plan.source, plan.train) == (1, "all_to_one", None, train)


def test_defaults_of_a_plan():
    plan = poison(small(50), trigger=BadNets(2))
    assert (plan.target, plan.label_map, len(plan.index), len(plan.cover_index)) == (
        0, "all_to_one", 5, 0,
    )  # fmt: skip


def test_every_label_map_has_its_candidates():
    train = small()
    every = poison(train, trigger=BadNets(2), label_map="all_to_all", ratio=0.95)
    assert len(every.index) == 19
    own = poison(train, trigger=BadNets(2), label_map="clean_label", target=2, ratio=0.25)
    assert own.index.tolist() == torch.nonzero(train.labels == 2)[:, 0].tolist()
    source = poison(train, trigger=BadNets(2), label_map="source_specific", source=0, target=1,
                    ratio=0.25)  # fmt: skip
    assert source.index.tolist() == torch.nonzero(train.labels == 0)[:, 0].tolist()
    assert bool((source.dataset.labels[source.index] == 1).all())
    assert len(poison(train, trigger=BadNets(2), ratio=0.05).index) == 1
    covered = poison(train, trigger=BadNets(2), ratio=0.5, cover_ratio=0.9)
    assert len(covered.cover_index) == 10


def test_apply_copies_in_full_and_names_the_result():
    train = small()
    plan = poison(train, trigger=Recorded(2), ratio=0.25, cover_ratio=0.2)
    before = train.inputs.clone(), train.labels.clone()
    found = plan.apply(train)
    assert torch.equal(train.inputs, before[0])
    assert torch.equal(train.labels, before[1])
    assert found.name == "small + "
    assert dataclasses.replace(plan, trigger=BadNets(2)).apply(train).name == "small + badnets"
    assert found.num_classes == 4
    wanted = plan.trigger.stamp(train.inputs[plan.index], True)
    assert torch.equal(found.inputs[plan.index], wanted)
    later = plan.triggered(train)
    assert torch.equal(later.inputs, plan.trigger.stamp(plan.victims(train).inputs, False))
    assert (later.name, later.num_classes) == ("small", 4)
    covers = plan.trigger.cover(train.inputs[plan.cover_index], plan.seed)
    assert torch.equal(found.inputs[plan.cover_index], covers)
    assert torch.equal(later.labels, plan.victims(train).labels)


def test_covers_are_drawn_under_the_plans_seed():
    train = small()
    plan = poison(train, trigger=WaNet(), ratio=0.25, cover_ratio=0.25, seed=6)
    wanted = plan.trigger.cover(train.inputs[plan.cover_index], 6)
    assert torch.equal(plan.dataset.inputs[plan.cover_index], wanted)
    assert not torch.equal(plan.trigger.cover(train.inputs[plan.cover_index], 7), wanted)


def test_labels_the_attacker_wants():
    labels = torch.tensor([0, 3, 2])
    shift = poison(small(), trigger=BadNets(2), label_map="all_to_all")
    assert shift.attacked_label(labels).tolist() == [1, 0, 3]
    assert shift.attacked_label(torch.tensor([0, 1])).tolist() == [1, 2]
    loose = dataclasses.replace(shift, train=None)
    assert loose.attacked_label(labels).tolist() == [1, 0, 3]
    assert loose.attacked_label(torch.tensor([0, 1])).tolist() == [1, 0]
    one = poison(small(), trigger=BadNets(2), target=2)
    assert one.attacked_label(labels).tolist() == [2, 2, 2]
    own = poison(small(), trigger=BadNets(2), target=2, label_map="clean_label", ratio=0.1)
    assert torch.equal(own.dataset.labels, small().labels)


def test_plan_for_another_set():
    plan = poison(small(20), trigger=BadNets(2), ratio=0.25)
    last = int(plan.index.max())
    with pytest.raises(InputError, match=rf"^train has {last} samples, the plan names {last}$"):
        plan.apply(small(20).subset(torch.arange(last)))
    plan.apply(small(20).subset(torch.arange(last + 1)))
    empty = dataclasses.replace(plan, index=torch.zeros(0, dtype=torch.int64))
    assert torch.equal(empty.dataset.inputs, small(20).inputs)


def test_victims_of_a_source_class_without_one():
    plan = poison(small(), trigger=BadNets(2), label_map="source_specific", source=0, target=1,
                  ratio=0.1)  # fmt: skip
    assert bool((plan.victims(small()).labels == 0).all())
    none = dataclasses.replace(plan, source=None)
    with pytest.raises(InputError, match=r"^test holds only the target class 1: other classes are"):
        none.victims(small())


def test_what_is_written_of_a_plan(tmp_path):
    plan = poison(small(), trigger=BadNets(2), label_map="source_specific", source=0, target=1,
                  ratio=0.1, cover_ratio=0.2, seed=4)  # fmt: skip
    content = plan.to_json()
    assert content == {
        "schema_version": 1, "trigger": BadNets(2).to_json(), "label_map": "source_specific",
        "target": 1, "source": 0, "seed": 4, "poisons": 2, "covers": 4,
    }  # fmt: skip
    plan.save(tmp_path / "deep" / "er")
    folder = tmp_path / "deep" / "er"
    assert sorted(p.name for p in folder.iterdir()) == [
        "cover_index.npy", "plan.json", "poison_index.npy",
    ]  # fmt: skip
    text = (folder / "plan.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(content))
    assert text == json.dumps(content, indent=1) + "\n"
    assert np.load(folder / "poison_index.npy").tolist() == plan.index.tolist()
    assert np.load(folder / "cover_index.npy").tolist() == plan.cover_index.tolist()
    again = PoisonPlan.load(folder, small())
    for field in ("trigger", "label_map", "target", "source", "seed"):
        assert getattr(again, field) == getattr(plan, field)
    assert torch.equal(again.index, plan.index)
    assert torch.equal(again.cover_index, plan.cover_index)
    assert again.train is not None
    assert PoisonPlan.load(folder).train is None


@pytest.mark.parametrize("part", ["poison", "cover"])
def test_pickled_indices_are_refused(part, tmp_path):
    """An object array would run code when it is unpickled."""
    poison(small(), trigger=BadNets(2)).save(tmp_path)
    np.save(tmp_path / f"{part}_index.npy", np.array([1, 2], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as a poison plan") as caught:
        PoisonPlan.load(tmp_path)
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(tmp_path) in str(caught.value)


def test_missing_plan(tmp_path):
    with pytest.raises(InputError, match=rf"plan='{tmp_path}/none' cannot be read as a poison"):
        PoisonPlan.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"label_map": "some"},
            "label_map='some' is not allowed: all_to_one, all_to_all, source_s",
        ),
        ({"target": 4}, r"target=4 is not allowed: 0 \.\.\. 3$"),
        ({"target": -1}, r"target=-1 is not allowed: 0 \.\.\. 3$"),
        ({"ratio": 0.0}, r"ratio=0.0, cover_ratio=0.0 are not allowed: shares below 1, ratio > 0$"),
        ({"ratio": 1.0}, "ratio=1.0, cover_ratio=0.0 are not allowed"),
        ({"ratio": 1.5}, "ratio=1.5, cover_ratio=0.0 are not allowed"),
        ({"cover_ratio": -0.1}, "ratio=0.1, cover_ratio=-0.1 are not allowed"),
        ({"cover_ratio": 1.0}, "ratio=0.1, cover_ratio=1.0 are not allowed"),
        (
            {"label_map": "source_specific"},
            "source=None is not allowed: a class other than target=0",
        ),
        ({"label_map": "source_specific", "source": 0}, "source=0 is not allowed: a class other"),
        ({"ratio": 0.01}, r"ratio=0.01 gives 0 poisons of 20 samples: at least 0.05$"),
        (
            {"ratio": 0.8},
            "ratio=0.8 asks for 16 poisons, all_to_one has 15 candidates: lower the ra",
        ),
    ],
)
def test_refusals_name_argument_value_and_what_is_allowed(options, line):
    with pytest.raises(InputError, match=f"^{line}"):
        poison(small(), **{"trigger": BadNets(2), **options})


def test_bounds_that_are_allowed():
    assert len(poison(small(), trigger=BadNets(2), ratio=0.75).index) == 15
    assert poison(small(), trigger=BadNets(2), target=3).target == 3
    with pytest.raises(InputError, match=r"larger|leaves|image"):
        poison(small(), trigger=BadNets(9))
