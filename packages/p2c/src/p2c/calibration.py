"""The margin of the swap gate, chosen on validation images whose verbs are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from .errors import require


@dataclass(frozen=True)
class MarginPoint:
    """What a margin accepts: how many paraphrases, and the share of them that is right."""

    margin: float
    accepted: int
    precision: float


def sweep_margins(
    gains: Float[np.ndarray, " proposals"],
    right: Bool[np.ndarray, " proposals"],
    margins: Sequence[float],
) -> list[MarginPoint]:
    """Return, for each margin, how many proposals gain more than it and how many are right.

    Parameters
    ----------
    gains : (proposals,)
        A(v, c') - A(v, c).
    right : (proposals,)
        Whether the paraphrase is true.
    margins : sequence of float
        To try.
    """
    require(len(gains) == len(right), "right", len(right), f"{len(gains)} values")
    points = []
    for margin in margins:
        kept = gains > margin
        count = int(kept.sum())
        points.append(
            MarginPoint(float(margin), count, float(right[kept].mean()) if count else 0.0)
        )
    return points


def calibrate_margin(points: Sequence[MarginPoint], precision: float, least: int = 20) -> float:
    """Return the smallest margin that reaches a precision with at least some accepted proposals.

    Where none does, the most precise of those with enough accepted ones; where there is no such
    margin either, the smallest.

    Examples
    --------
    >>> gains, right = np.array([0.05, 0.1, 0.3, 0.4]), np.array([False, False, True, True])
    >>> calibrate_margin(sweep_margins(gains, right, [0.0, 0.1, 0.2]), 0.8, least=2)
    0.1
    """
    require(bool(points), "points", [], "at least one margin")
    enough = [p for p in points if p.accepted >= least]
    if not enough:
        return min(p.margin for p in points)
    good = [p.margin for p in enough if p.precision >= precision]
    return min(good) if good else max(enough, key=lambda p: p.precision).margin
