"""The transfer scenario: a poisoned upstream model is tuned to a downstream task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import Defense
from backdoor_ft.engine import Recipe, predict, train
from backdoor_ft.errors import InputError
from backdoor_ft.metrics import Proportion, accuracy, wilson
from backdoor_ft.models import head_of
from backdoor_ft.poison import PoisonPlan, poison
from backdoor_ft.triggers import Trigger


def classes_of(data: LabeledData, classes: Sequence[int]) -> LabeledData:
    """Return the samples of some classes, numbered anew from 0."""
    table = torch.full((data.num_classes,), -1)
    for new, old in enumerate(classes):
        if not 0 <= old < data.num_classes:
            raise InputError(
                f"classes={list(classes)} is out of range 0 ... {data.num_classes - 1}"
            )
        table[old] = new
    mapped = table[data.labels]
    keep = mapped >= 0
    return LabeledData(data.inputs[keep], mapped[keep], len(classes), f"{data.name} {classes}")


def with_head(model: nn.Module, num_classes: int, seed: int = 0) -> nn.Module:
    """Return a copy with a new last linear layer for another task."""
    fresh = copy.deepcopy(model)
    name, head = head_of(fresh)
    parent = fresh.get_submodule(name.rpartition(".")[0]) if "." in name else fresh
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        setattr(
            parent,
            name.rpartition(".")[2],
            nn.Linear(head.in_features, num_classes).to(head.weight.device),
        )
    return fresh


@dataclass(frozen=True)
class TransferResult:
    """What is left of an upstream backdoor downstream.

    Attributes
    ----------
    model : tuned to the downstream task
    accuracy : on the downstream test set
    attack_success : share of triggered test samples that go to the downstream class which the
        trigger maps to most often, samples of that class left out
    mapped_class : that class
    """

    model: nn.Module = field(repr=False)
    accuracy: float
    attack_success: Proportion
    mapped_class: int


def transfer_attack(
    factory: Callable[[], nn.Module],
    upstream: LabeledData,
    trigger: Trigger,
    *,
    target: int = 0,
    ratio: float = 0.1,
    recipe: str | Recipe = "digits",
    seed: int = 0,
) -> tuple[nn.Module, PoisonPlan]:
    """Train the poisoned upstream model."""
    plan = poison(upstream, trigger=trigger, target=target, ratio=ratio, seed=seed)
    return train(factory, plan.dataset, recipe=recipe, seed=seed), plan


def transfer(
    upstream_model: nn.Module,
    downstream: LabeledData,
    test: LabeledData,
    trigger: Trigger,
    defense: Defense,
    *,
    seed: int = 0,
) -> TransferResult:
    """Replace the head, tune with a defence, and measure what the trigger still does.

    The definition of success is ours; the paper's could not be read.
    """
    started = with_head(upstream_model, downstream.num_classes, seed)
    tuned = defense.repair(started, downstream, seed=seed).model
    named = predict(tuned, trigger.apply(test.inputs)).argmax(1)
    clean = predict(tuned, test.inputs).argmax(1)
    gained = [int(((named == c) & (clean != c)).sum()) for c in range(downstream.num_classes)]
    mapped = max(range(len(gained)), key=gained.__getitem__)
    others = test.labels != mapped
    hits = int((named[others] == mapped).sum())
    return TransferResult(tuned, accuracy(tuned, test), wilson(hits, int(others.sum())), mapped)
