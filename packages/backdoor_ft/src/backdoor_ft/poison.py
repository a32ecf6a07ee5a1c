"""Poisoning a training set, as a plan that can be stored and repeated."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from backdoor_ft.data import LabeledData
from backdoor_ft.errors import InputError
from backdoor_ft.files import make_folder, write_atomically
from backdoor_ft.triggers import Trigger

if TYPE_CHECKING:
    from jaxtyping import Int

LabelMap = Literal["all_to_one", "all_to_all", "source_specific", "clean_label"]


@dataclass(frozen=True)
class PoisonPlan:
    """Which samples carry which trigger and what they are called.

    Attributes
    ----------
    trigger : what is done to the input
    label_map : "all_to_one", "all_to_all" (label + 1), "source_specific", or "clean_label"
    target : class the trigger stands for; unused by "all_to_all"
    index : poisoned samples of the training set
    cover_index : samples that carry a near miss of the trigger and keep their labels
    source : class that "source_specific" poisons
    seed : of the choice
    train : the clean training set; not part of the stored plan
    """

    trigger: Trigger
    label_map: LabelMap
    target: int
    index: Int[Tensor, " k"] = field(repr=False)
    cover_index: Int[Tensor, " j"] = field(repr=False)
    source: int | None
    seed: int
    train: LabeledData | None = field(default=None, repr=False)

    def attacked_label(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return the label that the attacker wants for inputs of these labels."""
        if self.label_map == "all_to_all":
            classes = self.train.num_classes if self.train is not None else int(labels.max()) + 1
            return (labels + 1) % classes
        return torch.full_like(labels, self.target)

    def apply(self, train: LabeledData) -> LabeledData:
        """Return a poisoned copy of a training set."""
        copied = LabeledData(
            train.inputs.clone(),
            train.labels.clone(),
            train.num_classes,
            f"{train.name} + {self.trigger.name}",
        )
        self.apply_(copied)
        return copied

    def apply_(self, train: LabeledData) -> None:
        """Poison a training set in place: no other sample is read or copied.

        Raises
        ------
        InputError
            The plan names samples that the set does not have.
        """
        if len(self.index) and int(self.index.max()) >= len(train):
            raise InputError(f"train has {len(train)} samples, the plan names {self.index.max()}")
        x, y = train.inputs, train.labels
        if len(self.cover_index):
            x[self.cover_index] = self.trigger.cover(x[self.cover_index], self.seed)
        self.trigger.apply_(x, self.index, training=True)
        if self.label_map == "all_to_all":
            y[self.index] = (y[self.index] + 1) % train.num_classes
        elif self.label_map != "clean_label":
            y[self.index] = self.target

    @property
    def dataset(self) -> LabeledData:
        """The poisoned training set."""
        if self.train is None:
            raise InputError("train is missing from this plan: use plan.apply(train)")
        return self.apply(self.train)

    def victims(self, test: LabeledData) -> LabeledData:
        """Return the test samples that count for ASR: those not of the target class.

        Raises
        ------
        InputError
            Nothing is left.
        """
        if self.label_map == "all_to_all":
            return test
        if self.label_map == "source_specific":
            chosen = test.labels == (self.source if self.source is not None else -1)
        else:
            chosen = test.labels != self.target
        if not bool(chosen.any()):
            raise InputError(
                f"test holds only the target class {self.target}: other classes are needed for ASR"
            )
        return test.subset(chosen)

    def triggered(self, test: LabeledData) -> LabeledData:
        """Return :meth:`victims` with the trigger and their true labels."""
        chosen = self.victims(test)
        return LabeledData(
            self.trigger.apply(chosen.inputs), chosen.labels, test.num_classes, test.name
        )

    def to_json(self) -> dict[str, Any]:
        """Describe the plan without the indices."""
        return {
            "schema_version": 1,
            "trigger": self.trigger.to_json(),
            "label_map": self.label_map,
            "target": self.target,
            "source": self.source,
            "seed": self.seed,
            "poisons": len(self.index),
            "covers": len(self.cover_index),
        }

    def save(self, folder: Path | str) -> None:
        """Write plan.json, poison_index.npy and cover_index.npy."""
        root = make_folder(folder)
        for name, index in (("poison", self.index), ("cover", self.cover_index)):
            buffer = io.BytesIO()
            np.save(buffer, index.numpy(), allow_pickle=False)
            write_atomically(root / f"{name}_index.npy", buffer.getvalue())
        text = json.dumps(self.to_json(), indent=1)
        write_atomically(root / "plan.json", (text + "\n").encode())

    @staticmethod
    def load(folder: Path | str, train: LabeledData | None = None) -> PoisonPlan:
        """Read a stored plan.

        Raises
        ------
        InputError
            A file is missing or is no plan.
        """
        root = Path(folder)
        try:
            content = json.loads((root / "plan.json").read_text())
            index = np.load(root / "poison_index.npy", allow_pickle=False)
            cover = np.load(root / "cover_index.npy", allow_pickle=False)
            return PoisonPlan(
                Trigger.from_json(content["trigger"]),
                content["label_map"],
                int(content["target"]),
                torch.as_tensor(index),
                torch.as_tensor(cover),
                content["source"],
                int(content["seed"]),
                train,
            )
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"plan={str(folder)!r} cannot be read as a poison plan") from error


def poison(
    train: LabeledData,
    *,
    trigger: Trigger,
    target: int = 0,
    ratio: float = 0.1,
    label_map: LabelMap = "all_to_one",
    cover_ratio: float = 0.0,
    source: int | None = None,
    seed: int = 0,
) -> PoisonPlan:
    """Choose the samples to poison.

    Parameters
    ----------
    train : clean training set
    trigger : one of :mod:`backdoor_ft.triggers`
    target : class the trigger shall stand for
    ratio : poisoned share of the training set, above 0 and below 1
    label_map : how labels change; "clean_label" poisons the target class and keeps its labels
    cover_ratio : share that carries a near miss and keeps its labels (WaNet 2 x ratio)
    source : class that "source_specific" poisons
    seed : of the choice

    Raises
    ------
    InputError
        Zero poisons, an unknown class, or a trigger that does not fit.

    Examples
    --------
    >>> from backdoor_ft import data, triggers
    >>> plan = poison(data.digits()[0], trigger=triggers.BadNets(2), ratio=0.1)
    >>> len(plan.index)
    120
    """
    if label_map not in get_args(LabelMap):
        raise InputError(f"label_map={label_map!r} is not allowed: {', '.join(get_args(LabelMap))}")
    if not 0 <= target < train.num_classes:
        raise InputError(f"target={target} is not allowed: 0 ... {train.num_classes - 1}")
    if not 0 < ratio < 1 or not 0 <= cover_ratio < 1:
        raise InputError(
            f"ratio={ratio}, cover_ratio={cover_ratio} are not allowed: shares below 1, ratio > 0"
        )
    if label_map == "source_specific" and (source is None or source == target):
        raise InputError(f"source={source} is not allowed: a class other than target={target}")
    trigger.check(train.inputs[:1])
    if label_map == "clean_label":
        pool = torch.nonzero(train.labels == target)[:, 0]
    elif label_map == "source_specific":
        pool = torch.nonzero(train.labels == int(source or 0))[:, 0]
    elif label_map == "all_to_all":
        pool = torch.arange(len(train))
    else:
        pool = torch.nonzero(train.labels != target)[:, 0]
    count = round(ratio * len(train))
    if count < 1:
        raise InputError(
            f"ratio={ratio} gives 0 poisons of {len(train)} samples: at least {1 / len(train):.2g}"
        )
    if count > len(pool):
        raise InputError(
            f"ratio={ratio} asks for {count} poisons, {label_map} has {len(pool)} candidates:"
            " lower the ratio"
        )
    generator = torch.Generator().manual_seed(seed)
    index = pool[torch.randperm(len(pool), generator=generator)[:count]].sort().values
    free = torch.ones(len(train), dtype=torch.bool)
    free[index] = False
    rest = torch.nonzero(free)[:, 0]
    covers = min(round(cover_ratio * len(train)), len(rest))
    cover = rest[torch.randperm(len(rest), generator=generator)[:covers]].sort().values
    return PoisonPlan(trigger, label_map, target, index, cover, source, seed, train)
