"""All audits of a repair at once, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.tuning import reinitialise
from backdoor_ft.errors import InputError
from backdoor_ft.poison import PoisonPlan
from backdoor_ft.sequela.membership import (
    Membership,
    Shadows,
    metric_attacks,
    shadow_attacks,
    train_shadows,
)
from backdoor_ft.sequela.reactivation import existence_coefficient, query_reactivation
from backdoor_ft.sequela.reinjection import Curve, reinjection_curve, retuning_attack
from backdoor_ft.sequela.robustness import adversarial_accuracy, calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AUDITS = ("mia", "mia.lira", "reinject", "retuning", "qra", "bec", "adversarial", "calibration")


@dataclass(frozen=True)
class Sequela:
    """Side effects of a repair.

    Attributes
    ----------
    membership : {model: attacks}
    curves : re-injection curves of victim, repaired and reference
    values : {audit: {model: figure}}
    notes : what the figures do not support, in words
    """

    membership: dict[str, list[Membership]] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values with a schema version."""
        return {
            "schema_version": 1,
            "membership": {k: [m.to_json() for m in v] for k, v in self.membership.items()},
            "curves": [c.to_json() for c in self.curves],
            "values": self.values,
            "notes": self.notes,
        }

    def plot(self) -> Figure:
        """Draw the re-injection curves."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axis = figure.subplots()
        for curve in self.curves:
            axis.plot(curve.steps, curve.attack_success, marker="o", ms=3, label=curve.name)
        axis.axhline(0.5, color="gray", linewidth=0.7, linestyle=":")
        axis.set_xlabel("attacker's steps")
        axis.set_ylabel("ASR")
        axis.set_ylim(-0.02, 1.02)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def sequela(
    *,
    before: nn.Module,
    after: nn.Module,
    reference: nn.Module,
    plan: PoisonPlan,
    test: LabeledData,
    members: LabeledData | None = None,
    audits: Sequence[str] = ("mia", "reinject", "retuning", "qra", "bec"),
    shadows: int | Shadows = 16,
    seed: int = 0,
) -> Sequela:
    """Measure how a repair changed the model's vulnerability to other attacks.

    Parameters
    ----------
    before, after : victim and repaired model
    reference : a never-backdoored model, which re-injection is compared with
    plan : the attack, with its training set
    test : data that no model was trained on
    members : clean training samples of the victim; the plan's samples without poison by default
    audits : of ``AUDITS``
    shadows : shadow models for "mia.lira", a number or trained ones
    seed : of everything random

    Raises
    ------
    InputError
        An audit is not known, or the plan has no training set.
    """
    if unknown := [a for a in audits if a not in AUDITS]:
        raise InputError(f"audits={unknown} is not known: of {', '.join(AUDITS)}")
    if plan.train is None:
        raise InputError("plan.train=None is not allowed: load the plan with its training set")
    if members is None:
        keep = torch.ones(len(plan.train), dtype=torch.bool)
        keep[plan.index] = False  # poisoned samples are no members of the clean task
        keep[plan.cover_index] = False
        members = plan.train.subset(keep)
    found = Sequela()
    pair = {"before": before, "after": after}
    three = {**pair, "reference": reference}
    if "mia" in audits:
        for name, model in three.items():
            found.membership[name] = metric_attacks(model, members, test, seed)
    if "mia.lira" in audits:
        if isinstance(shadows, int):
            both = LabeledData(
                torch.cat((members.inputs, test.inputs)),
                torch.cat((members.labels, test.labels)),
                members.num_classes,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fresh = [reinitialise(before) for _ in range(shadows)]
            shadows = train_shadows(fresh, both, seed=seed)
        for name, model in three.items():
            found.membership.setdefault(name, []).extend(
                shadow_attacks(model, members, test, shadows, seed)
            )
    if "reinject" in audits:
        for name, model in three.items():
            found.curves.append(reinjection_curve(model, name, plan.train, test, plan, seed=seed))
        _note_halves(found)
    if "retuning" in audits:
        found.values["retuning"] = {
            name: retuning_attack(model, plan.train, test, plan, seed)
            for name, model in three.items()
        }
        _note(found, "retuning", 0.2, "the retuning attack brings the backdoor back")
    if "qra" in audits:
        found.values["qra"] = {
            name: query_reactivation(model, before, members, test, plan, seed=seed)
            for name, model in three.items()
        }
        _note(found, "qra", 0.2, "a universal perturbation wakes the backdoor")
    if "bec" in audits:
        found.values["bec"] = {
            name: existence_coefficient(model, before, reference, test, plan)
            for name, model in pair.items()
        }
    if "adversarial" in audits:
        found.values["adversarial"] = {n: adversarial_accuracy(m, test) for n, m in three.items()}
    if "calibration" in audits:
        found.values["calibration"] = {n: calibration(m, test) for n, m in three.items()}
    return found


def _note(found: Sequela, audit: str, limit: float, words: str) -> None:
    value = found.values[audit]
    if value["after"] > limit:
        found.notes.append(
            f"{audit}: ASR {value['after']:.2f} after repair is above {limit}, {words}"
            f" (never-backdoored reference {value['reference']:.2f})"
        )


def _note_halves(found: Sequela) -> None:
    last = found.curves[-1].steps[-1] + 1
    halves = {c.name: c.half if c.half is not None else last for c in found.curves}
    if halves["after"] < 0.9 * halves["reference"]:
        found.notes.append(
            f"reinject: half-life {halves['after']} steps, never-backdoored reference"
            f" {halves['reference']}: the repaired model learns the trigger again faster"
        )
