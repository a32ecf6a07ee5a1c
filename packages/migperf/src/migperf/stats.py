"""Statistics of repeated measurements: confidence intervals, warm-up, percentiles, indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .errors import InputError

__all__ = [
    "Interval",
    "bootstrap_mean",
    "isolation_index",
    "jain_fairness",
    "percentile",
    "warmup_length",
]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Parameters
    ----------
    mean, low, high : float
        Mean and bounds.
    n : int
        Number of repeats behind it.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the interval's length, as a share of the mean; infinite with one repeat."""
        if self.n < 2 or self.mean == 0:
            return math.inf
        return (self.high - self.low) / 2 / abs(self.mean)

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.4g} (one repeat)"
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Interval:
    """Bootstrap the mean over repeats; requests of one run are not independent, repeats are.

    Parameters
    ----------
    values : sequence of float
        One figure per repeat.
    confidence : float
        Such as 0.95.
    resamples, seed : int
        Number of bootstrap samples and the seed of their draw.

    Examples
    --------
    >>> interval = bootstrap_mean([10.0, 11.0, 9.0, 10.0, 10.0])
    >>> interval.low <= interval.mean == 10.0 <= interval.high
    True
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise InputError.of("values", [], "at least one repeat")
    if data.size == 1:
        return Interval(float(data[0]), math.nan, math.nan, 1)
    draws = np.random.default_rng(seed).integers(0, data.size, size=(resamples, data.size))
    means = data[draws].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high), int(data.size))


def percentile(samples: Float[np.ndarray, " n"], q: float) -> float:
    """Percentile of raw samples; NaN where there are fewer than ``10 / (1 - q)`` of them.

    Parameters
    ----------
    samples : array, shape (n,)
        Raw samples.
    q : float
        In (0, 1), such as 0.99, which needs a thousand samples.

    Examples
    --------
    >>> percentile(np.arange(100.0), 0.99)
    nan
    >>> percentile(np.arange(1001.0), 0.99)
    990.0
    """
    if not 0 < q < 1:
        raise InputError.of("q", q, "0 < q < 1")
    if samples.size < 10 / (1 - q) * (1 - 1e-12):
        return math.nan
    return float(np.quantile(samples, q))


def warmup_length(samples: Float[np.ndarray, " n"], batch: int = 5) -> int:
    """Find how many samples at the start to drop, by the MSER-5 rule.

    The truncation point minimises the standard error of the mean of what is left, over means of
    five samples; it is not looked for in the last half.

    Parameters
    ----------
    samples : array, shape (n,)
        Latencies in order of time.
    batch : int
        Samples per mean.

    References
    ----------
    White (1997), "An effective truncation heuristic for bias reduction in simulation output".
    """
    count = samples.size // batch
    if count < 4:
        return 0
    means = samples[: count * batch].reshape(count, batch).mean(axis=1)
    best, best_score = 0, math.inf
    for cut in range(count // 2 + 1):
        rest = means[cut:]
        score = float(((rest - rest.mean()) ** 2).sum()) / rest.size**2
        if score < best_score:
            best, best_score = cut, score
    return best * batch


def jain_fairness(throughputs: Sequence[float]) -> float:
    """Jain's index of throughputs, each normalised to the tenant's own when alone.

    Examples
    --------
    >>> jain_fairness([0.5, 0.5]), jain_fairness([1.0, 0.0])
    (1.0, 0.5)
    """
    x = np.asarray(throughputs, dtype=float)
    if x.size == 0 or not (x**2).sum() > 0:
        raise InputError.of("throughputs", list(throughputs), "positive numbers")
    return float(x.sum() ** 2 / (x.size * (x**2).sum()))


def isolation_index(p99_alone: float, p99_together: float) -> float:
    """99th percentile alone over 99th percentile beside others; 1 means undisturbed."""
    if not (p99_alone > 0 and p99_together > 0):
        raise InputError.of("p99", (p99_alone, p99_together), "two numbers > 0")
    return p99_alone / p99_together
