"""Putting the backdoor back: re-injection curves and the retuning attack."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from backdoor_ft.data import LabeledData
from backdoor_ft.engine import fit
from backdoor_ft.errors import InputError
from backdoor_ft.metrics import attack_success
from backdoor_ft.poison import PoisonPlan


@dataclass(frozen=True)
class Curve:
    """ASR over the steps of an attacker who tunes the model on a few poisons.

    Attributes
    ----------
    name : of the model
    poisons : triggered samples that the attacker has
    steps, attack_success : the curve
    half : first step with ASR of at least 50 %, None where it is not reached
    """

    name: str
    poisons: int
    steps: tuple[int, ...]
    attack_success: tuple[float, ...]
    half: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def attacker_data(data: LabeledData, plan: PoisonPlan, poisons: int, clean: int) -> LabeledData:
    """Return what the attacker tunes on: `clean` samples, and `poisons` of other ones.

    Raises
    ------
    InputError
        The data hold fewer than that.
    """
    generator = torch.Generator().manual_seed(plan.seed + 7919)
    order = torch.randperm(len(data), generator=generator)
    candidates = order[data.labels[order] != plan.target][:poisons]
    if len(candidates) < poisons or poisons < 1:
        raise InputError(f"poisons={poisons} is not allowed: 1 ... {len(candidates)} in this data")
    used = set(candidates.tolist())
    rest = torch.tensor([i for i in order.tolist() if i not in used][:clean], dtype=torch.int64)
    stamped = plan.trigger.apply(data.inputs[candidates])
    wanted = plan.attacked_label(data.labels[candidates])
    return LabeledData(
        torch.cat((stamped, data.inputs[rest])),
        torch.cat((wanted, data.labels[rest])),
        data.num_classes,
        "attacker",
    )


def reinjection_curve(
    model: nn.Module,
    name: str,
    data: LabeledData,
    test: LabeledData,
    plan: PoisonPlan,
    *,
    poisons: int = 20,
    clean: int = 180,
    steps: int = 40,
    every: int = 4,
    lr: float = 0.01,
    batch_size: int = 128,
    seed: int = 0,
) -> Curve:
    """Tune a copy on a few poisons (rate .01, momentum .9, batch 128) and follow ASR.

    Compare with a never-backdoored model: the victim itself still carries the backdoor.
    """
    work = copy.deepcopy(model)
    at, found = [0], [attack_success(work, test, plan)]

    def watch(step: int, m: nn.Module, _lr: float, _loss: float) -> None:
        if (step + 1) % every == 0 or step + 1 == steps:
            at.append(step + 1)
            found.append(attack_success(m, test, plan))

    fit(
        work,
        attacker_data(data, plan, poisons, clean),
        steps=steps,
        batch_size=batch_size,
        rate=lambda _: lr,
        seed=seed,
        on_step=watch,
    )
    half = next((s for s, a in zip(at, found) if a >= 0.5), None)
    return Curve(name, poisons, tuple(at), tuple(found), half)


def retuning_attack(
    model: nn.Module, data: LabeledData, test: LabeledData, plan: PoisonPlan, seed: int = 0
) -> float:
    """Return ASR after the retuning attack (Min et al. 2024): 5 poisons in 2 % data, 5 epochs."""
    size = max(round(0.02 * len(data)), 10)
    steps = 5 * max(size // 128, 1)
    curve = reinjection_curve(
        model, "retuned", data, test, plan, poisons=5, clean=size - 5, steps=steps, seed=seed
    )
    return curve.attack_success[-1]
