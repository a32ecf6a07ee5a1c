"""Bootstrap intervals and paired tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..errors import require


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(
    items: int,
    statistic: Callable[[np.ndarray], float],
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Return a statistic with its percentile bootstrap interval.

    Parameters
    ----------
    items : int
        Number of images to draw from, with replacement.
    statistic : callable
        Takes the numbers of the drawn images.
    seed, resamples, confidence
        Of the bootstrap.

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 3.0])
    >>> str(bootstrap(3, lambda i: x[i].mean(), resamples=200))
    '2.000 (1.000 to 3.000)'
    """
    require(items > 0, "items", items, "at least 1")
    g = np.random.default_rng(seed)
    draws = [statistic(g.integers(0, items, items)) for _ in range(resamples)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(statistic(np.arange(items)), float(low), float(high))


def paired_bootstrap(
    before: Float[np.ndarray, " items"],
    after: Float[np.ndarray, " items"],
    seed: int = 0,
    resamples: int = 10_000,
) -> tuple[Interval, float]:
    """Return the mean gain with its interval, and the one-sided p-value of "no gain".

    The p-value is (1 + number of resampled means <= 0) / (1 + resamples).

    Examples
    --------
    >>> gain, p = paired_bootstrap(np.zeros(50), np.ones(50), resamples=99)
    >>> str(gain), p
    ('1.000 (1.000 to 1.000)', 0.01)
    """
    gains = np.asarray(after, float) - np.asarray(before, float)
    require(gains.ndim == 1 and len(gains) > 0, "gains", gains.shape, "two vectors of one length")
    g = np.random.default_rng(seed)
    means = gains[g.integers(0, len(gains), (resamples, len(gains)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    p = (1 + int((means <= 0).sum())) / (1 + resamples)
    return Interval(float(gains.mean()), float(low), float(high)), p
