"""Accuracy, attack success, robust accuracy and DER, with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from backdoor_ft.data import LabeledData, overlap
from backdoor_ft.engine import predict
from backdoor_ft.errors import InputError
from backdoor_ft.poison import PoisonPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Proportion:
    """A share of a count with its 95 % Wilson interval."""

    hits: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.count

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(hits: int, count: int, confidence: float = 0.95) -> Proportion:
    """Return a share with Wilson's score interval.

    Examples
    --------
    >>> print(wilson(5, 100))
    0.050 [0.022, 0.112]
    """
    from scipy.stats import norm

    if count < 1 or not 0 <= hits <= count:
        raise InputError(f"hits={hits} of count={count} is not allowed: 0 <= hits <= count >= 1")
    z = float(norm.ppf(0.5 + confidence / 2))
    p, z2 = hits / count, z * z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * ((p * (1 - p) / count + z2 / (4 * count**2)) ** 0.5)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return Proportion(hits, count, low, 1.0 if hits == count else min(1.0, centre + half))


def defense_effectiveness(
    accuracy: float, attack_success: float, accuracy_after: float, attack_success_after: float
) -> float:
    """DER = [max(0, fall of ASR) - max(0, fall of ACC) + 1] / 2 (BackdoorBench).

    Examples
    --------
    >>> defense_effectiveness(0.9, 1.0, 0.8, 0.0)
    0.95
    """
    gain = max(0.0, attack_success - attack_success_after)
    loss = max(0.0, accuracy - accuracy_after)
    return (gain - loss + 1) / 2


def bootstrap(
    differences: Float[np.ndarray, " n"], seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean; pass paired differences for a paired one."""
    values = np.asarray(differences, dtype=float)
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[index].mean(1), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Score:
    """What one model reaches.

    Attributes
    ----------
    accuracy : share of clean test samples named right (ACC)
    attack_success : share of triggered samples, target class left out, named as the attacker
        wants (ASR)
    robust_accuracy : share of the same samples named right (RA)
    """

    accuracy: Proportion
    attack_success: Proportion
    robust_accuracy: Proportion
    hits: Bool[np.ndarray, " n"] = field(repr=False, compare=False)
    successes: Bool[np.ndarray, " m"] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        names = ("accuracy", "attack_success", "robust_accuracy")
        return {name: asdict(getattr(self, name)) for name in names}


def score(model: nn.Module, test: LabeledData, plan: PoisonPlan) -> Score:
    """Measure ACC, ASR and RA of a model.

    Parameters
    ----------
    model : network; measured in evaluation mode, left in its own
    test : clean test set with the plan's classes
    plan : the attack
    """
    hits = predict(model, test.inputs).argmax(1) == test.labels
    triggered = plan.triggered(test)
    named = predict(model, triggered.inputs).argmax(1)
    wanted = plan.attacked_label(triggered.labels)
    success, robust = named == wanted, named == triggered.labels
    return Score(
        wilson(int(hits.sum()), len(hits)),
        wilson(int(success.sum()), len(success)),
        wilson(int(robust.sum()), len(robust)),
        hits.numpy(),
        success.numpy(),
    )


def effectiveness_interval(
    before: Score, after: Score, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of DER.

    Clean and triggered test samples are drawn anew, each with its outcome before and after.
    """
    draw = np.random.default_rng(seed)
    falls = []
    for one, two in (
        (before.hits, after.hits),
        (before.successes, after.successes),
    ):
        fall = one.astype(float) - two.astype(float)
        index = draw.integers(0, len(fall), (draws, len(fall)))
        falls.append(np.maximum(fall[index].mean(1), 0))
    low, high = np.quantile((falls[1] - falls[0] + 1) / 2, [0.025, 0.975])
    return float(low), float(high)


def accuracy(model: nn.Module, data: LabeledData) -> float:
    """Return the share of samples that a model names right."""
    return float((predict(model, data.inputs).argmax(1) == data.labels).float().mean())


def attack_success(model: nn.Module, test: LabeledData, plan: PoisonPlan) -> float:
    """Return ASR alone, target class left out."""
    triggered = plan.triggered(test)
    wanted = plan.attacked_label(triggered.labels)
    return float((predict(model, triggered.inputs).argmax(1) == wanted).float().mean())


def implanted(model: nn.Module, test: LabeledData, plan: PoisonPlan, gate: float = 0.9) -> float:
    """Return ASR, and refuse an attack that is too weak to score a defence on.

    Raises
    ------
    InputError
        ASR is below the gate.
    """
    found = attack_success(model, test, plan)
    if found < gate:
        raise InputError(
            f"attack {plan.trigger.name} reached ASR {found:.3f}, below the gate of {gate}:"
            " poison more, train longer, or augment less"
        )
    return found


@dataclass(frozen=True)
class Evaluation:
    """Before and after a repair, on the same test set.

    Attributes
    ----------
    before, after : scores
    der : defence effectiveness rating, 0 ... 1
    der_interval : its 95 % bootstrap interval, test samples paired before and after
    accuracy_change : after minus before, with its paired bootstrap interval
    notes : warnings, such as test samples that were in the clean set
    """

    before: Score
    after: Score
    der: float
    der_interval: tuple[float, float]
    accuracy_change: float
    accuracy_interval: tuple[float, float]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [
            f"{name:7} ACC {s.accuracy}  ASR {s.attack_success}  RA {s.robust_accuracy}"
            for name, s in (("before", self.before), ("after", self.after))
        ]
        return "\n".join(
            [
                *rows,
                f"DER {self.der:.3f} [{self.der_interval[0]:.3f}, {self.der_interval[1]:.3f}]",
                *self.notes,
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values with a schema version."""
        return {
            "schema_version": 1,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "der": self.der,
            "der_interval": list(self.der_interval),
            "accuracy_change": self.accuracy_change,
            "accuracy_interval": list(self.accuracy_interval),
            "notes": list(self.notes),
        }

    def plot(self) -> Figure:
        """Draw ACC, ASR and RA before and after, with their intervals."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3), layout="constrained")
        axis = figure.subplots()
        for offset, (label, s) in enumerate((("before", self.before), ("after", self.after))):
            shares = (s.accuracy, s.attack_success, s.robust_accuracy)
            values = np.array([p.value for p in shares])
            spread = np.array([[p.value - p.low, p.high - p.value] for p in shares]).T
            axis.bar(np.arange(3) + 0.4 * offset, values, 0.38, yerr=spread, label=label)
        axis.set_xticks(np.arange(3) + 0.2, ["ACC", "ASR", "RA"])
        axis.set_ylim(0, 1.05)
        axis.legend()
        return figure


def evaluate(
    *,
    before: nn.Module,
    after: nn.Module,
    test: LabeledData,
    plan: PoisonPlan,
    clean: LabeledData | None = None,
) -> Evaluation:
    """Compare a model before and after a repair.

    Parameters
    ----------
    before, after : networks
    test : clean test set
    plan : the attack that is measured
    clean : data of the repair; test samples that also stand there are noted
    """
    first, second = score(before, test, plan), score(after, test, plan)
    notes = []
    if clean is not None and (shared := overlap(test, clean)):
        notes.append(f"{shared} of {len(test)} test inputs also stand in the clean set")
    change = second.hits.astype(float) - first.hits.astype(float)
    return Evaluation(
        first,
        second,
        defense_effectiveness(
            first.accuracy.value,
            first.attack_success.value,
            second.accuracy.value,
            second.attack_success.value,
        ),
        effectiveness_interval(first, second),
        float(change.mean()),
        bootstrap(change),
        tuple(notes),
    )
