"""Intervals and paired tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from .errors import require


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval (95 % unless said otherwise) and sample size."""

    estimate: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Plain values."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}], n = {self.n}"


def bootstrap(
    values: Float[np.ndarray, " n"],
    statistic: Callable[..., Any] = np.median,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a statistic that takes ``axis``.

    Examples
    --------
    >>> bootstrap(np.arange(101.0), np.mean).estimate
    50.0
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    require(len(values) >= 1, "values", 0, "at least one finite value")
    estimate = float(statistic(values))
    if len(values) == 1:
        return Interval(estimate, estimate, estimate, 1)
    found = stats.bootstrap(
        (values,),
        statistic,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, int(2e6 // len(values))),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), len(values))


@dataclass(frozen=True)
class PairedTest:
    """Mean difference of paired values, its interval and the one-sided bootstrap p-value."""

    difference: Interval
    p_value: float

    def __str__(self) -> str:
        return f"difference {self.difference}, p = {self.p_value:.2g}"


def paired_bootstrap(
    better: Float[np.ndarray, " n"],
    worse: Float[np.ndarray, " n"],
    seed: int = 0,
    resamples: int = 10_000,
) -> PairedTest:
    """Test that `better` has the larger mean, by resampling pairs.

    The p-value is the share of resamples (with one added) whose mean difference is not positive.
    """
    difference = np.asarray(better, np.float64) - np.asarray(worse, np.float64)
    require(difference.ndim == 1 and len(difference) >= 2, "better", difference.shape, "n >= 2")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, int(4e6 // len(difference)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        index = rng.integers(0, len(difference), (size, len(difference)))
        means[start : start + size] = difference[index].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = (1 + int((means <= 0).sum())) / (1 + resamples)
    interval = Interval(float(difference.mean()), float(low), float(high), len(difference))
    return PairedTest(interval, p)


def mcnemar(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> float:
    """Exact two-sided McNemar p-value of two classifiers on the same items."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only_first = int((first & ~second).sum())
    discordant = only_first + int((~first & second).sum())
    if discordant == 0:
        return 1.0
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue)


__all__ = ["Interval", "PairedTest", "bootstrap", "mcnemar", "paired_bootstrap"]
