"""Is one detector better than another? Paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptr.evaluation.matches import MatchTable


@dataclass
class Comparison:
    """Difference b - a of a figure, with a 95 % interval over resampled images.

    Attributes
    ----------
    p
        Two-sided bootstrap p-value of no difference.
    """

    figure: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float

    def __repr__(self) -> str:
        return (
            f"{self.figure}: {self.a:.3f} -> {self.b:.3f}, difference {self.difference:+.3f} "
            f"(95 % {self.low:+.3f} to {self.high:+.3f}, p {self.p:.3f})"
        )


def _figure(
    table: MatchTable, weights: np.ndarray | None, figure: str, members: np.ndarray | None
) -> float:
    ap = table.average_precision(weights)
    if members is not None:
        ap = ap[members]
    ap = ap[~np.isnan(ap[:, 0])]
    if not len(ap):
        return float("nan")
    return float(ap[:, 0].mean() if figure == "AP50" else ap.mean())


def compare(
    a: Sequence[MatchTable] | MatchTable, b: Sequence[MatchTable] | MatchTable, *,
    figure: str = "AP", members: np.ndarray | None = None, resamples: int = 200, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Compare two detectors on the same images; several runs (seeds) of each are averaged.

    Parameters
    ----------
    a, b
        Match tables of `Evaluation`; lists hold one per seed, in one order, and then seeds are
        resampled together with images.
    figure
        ``AP`` or ``AP50``.
    members
        Classes that count (such as the tail third); all by default.
    """
    if figure not in ("AP", "AP50"):
        raise ValueError(f"figure={figure!r}: allowed are AP, AP50")
    left = [a] if isinstance(a, MatchTable) else list(a)
    right = [b] if isinstance(b, MatchTable) else list(b)
    if len(left) != len(right) or any(
        x.objects.shape != y.objects.shape or (x.objects != y.objects).any()
        for x, y in zip(left, right)
    ):
        raise ValueError("a and b must be evaluations of the same images, as many of each")
    rng = np.random.default_rng(seed)
    images = left[0].objects.shape[0]
    means = [
        float(np.mean([_figure(t, None, figure, members) for t in tables]))
        for tables in (left, right)
    ]
    differences = []
    for _ in range(resamples):
        chosen = rng.integers(0, len(left), len(left))
        d = []
        for s in chosen:
            weights = np.bincount(rng.integers(0, images, images), minlength=images).astype(float)
            d.append(
                _figure(right[s], weights, figure, members)
                - _figure(left[s], weights, figure, members)
            )
        differences.append(np.nanmean(d))
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    drawn = np.array(differences)
    # a draw without a difference speaks for neither side
    beside = min(np.mean(drawn <= 0), np.mean(drawn >= 0))
    p = min(1.0, 2 * max(float(beside), 1 / (resamples + 1)))
    return Comparison(figure, means[0], means[1], means[1] - means[0], float(low), float(high), p)
