"""The largest arrival rate at which a latency percentile meets its bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import Infeasible, InputError
from .arrivals import poisson
from .drive import LoadResult

__all__ = ["SloSearch", "search_rate"]


@dataclass(frozen=True)
class SloSearch:
    """Result of a search.

    Parameters
    ----------
    rate : float
        Largest rate per second that met the bound, and was confirmed.
    saturated_rate : float
        Rate that the server reaches when it is flooded.
    latency : float
        The percentile at `rate`, seconds.
    trials : tuple of (float, float)
        Every rate tried and its percentile, seconds.
    """

    rate: float
    saturated_rate: float
    latency: float
    trials: tuple[tuple[float, float], ...]


def search_rate(
    run: Callable[[np.ndarray], LoadResult],
    slo: float,
    *,
    quantile: float = 0.99,
    duration: float = 10.0,
    start_rate: float = 10.0,
    tolerance: float = 0.03,
    confirmations: int = 2,
    seed: int = 0,
) -> SloSearch:
    """Bracket the rate, then bisect, on common random numbers.

    The unit-rate arrivals of one seed are stretched to every rate tried, so that two trials differ
    in the rate only. The answer is confirmed with fresh seeds.

    Parameters
    ----------
    run : callable
        Plays arrival times (seconds) and returns what happened.
    slo : float
        Bound in seconds.
    quantile : float
        Which percentile.
    duration : float
        Length of a trial in seconds.
    start_rate : float
        Where the bracketing begins, requests per second.
    tolerance : float
        Relative width at which the bisection ends.
    confirmations : int
        Extra seeds that must meet the bound at the answer.
    seed : int
        Seed of the common random numbers.

    Raises
    ------
    Infeasible
        Not even a tenth of a request per second meets the bound.
    """
    if not slo > 0 or not 0 < quantile < 1:
        raise InputError.of("slo, quantile", (slo, quantile), "slo > 0 and 0 < quantile < 1")
    trials: list[tuple[float, float]] = []
    saturated = 0.0

    def measure(rate: float, draw: int) -> float:
        nonlocal saturated
        unit = poisson(1.0, rate * duration, draw) / rate
        if unit.size == 0:
            return 0.0
        result = run(unit)
        if result.latency.size == 0 or result.rejected:
            return float("inf")
        span = float(np.nanmax(result.done))
        saturated = max(saturated, result.latency.size / span)
        value = float(np.quantile(result.latency, quantile))
        trials.append((rate, value))
        return value

    low, high = 0.0, start_rate
    while measure(high, seed) <= slo:
        low, high = high, high * 2
        if high > 1e7:
            raise InputError("slo: the server meets the bound at 10 million requests per second")
    while low == 0.0:
        if high < 0.1:
            raise Infeasible(f"slo {slo * 1000:g} ms is not met at any rate above 0.1 per second")
        half = high / 2
        low, high = (half, high) if measure(half, seed) <= slo else (0.0, half)
    while high - low > tolerance * low:
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle, seed) <= slo else (low, middle)
    while True:
        checks = [measure(low, seed + 1 + i) for i in range(confirmations)]
        if all(c <= slo for c in checks):
            break
        low *= 1 - tolerance
        if low < 0.1:
            raise Infeasible(f"slo {slo * 1000:g} ms could not be confirmed at any rate")
    worst = max(checks or [measure(low, seed)])
    return SloSearch(low, saturated, worst, tuple(trials))
