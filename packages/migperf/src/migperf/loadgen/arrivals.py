"""Arrival times, drawn up front so that a slow server cannot slow its clients down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["constant", "from_spec", "gamma", "mmpp", "poisson", "trace"]

Times = Float[np.ndarray, " n"]


def _check(rate: float, duration: float) -> None:
    if not rate > 0:
        raise InputError.of("rate", rate, "a number > 0 (requests per second)")
    if not duration > 0:
        raise InputError.of("duration", duration, "a number > 0 (seconds)")


def constant(rate: float, duration: float) -> Times:
    """Equally spaced arrivals.

    Parameters
    ----------
    rate : float
        Requests per second.
    duration : float
        Seconds.

    Returns
    -------
    array, shape (n,), seconds
        Ascending times in [0, duration).
    """
    _check(rate, duration)
    return np.arange(0.0, duration, 1.0 / rate)


def _renewal(gaps: NDArray[np.float64], duration: float) -> Times:
    times = np.cumsum(gaps)
    return times[times < duration]


def poisson(rate: float, duration: float, seed: int) -> Times:
    """Poisson arrivals; see `constant`.

    Examples
    --------
    >>> times = poisson(100.0, 50.0, seed=1)
    >>> bool(abs(len(times) - 5000) < 5 * 5000**0.5)
    True
    """
    return gamma(rate, duration, 1.0, seed)


def gamma(rate: float, duration: float, cv: float, seed: int) -> Times:
    """Gamma-distributed gaps with a coefficient of variation; 1 is Poisson, more is burstier."""
    _check(rate, duration)
    if not cv > 0:
        raise InputError.of("cv", cv, "a number > 0")
    generator = np.random.default_rng(seed)
    shape = 1.0 / cv**2
    chunks: list[NDArray[np.float64]] = []
    total, size = 0.0, int(rate * duration * 1.2 + 50)
    while total < duration:
        chunk = generator.gamma(shape, 1.0 / (rate * shape), size=size)
        chunks.append(chunk)
        total += float(chunk.sum())
    return _renewal(np.concatenate(chunks), duration)


def mmpp(
    low: float, high: float, duration: float, mean_low: float, mean_high: float, seed: int
) -> Times:
    """Poisson arrivals whose rate switches between two values (Markov-modulated).

    Parameters
    ----------
    low, high : float
        Rates of the two states, requests per second.
    duration : float
        Seconds.
    mean_low, mean_high : float
        Mean length of a stay in each state, seconds.
    seed : int
        Seed.
    """
    _check(low, duration)
    _check(high, duration)
    if not (mean_low > 0 and mean_high > 0):
        raise InputError.of("mean_low, mean_high", (mean_low, mean_high), "two numbers > 0")
    generator = np.random.default_rng(seed)
    now, state = 0.0, 0
    pieces = []
    while now < duration:
        stay = float(generator.exponential((mean_low, mean_high)[state]))
        count = int(generator.poisson((low, high)[state] * stay))
        pieces.append(now + np.sort(generator.uniform(0.0, stay, size=count)))
        now, state = now + stay, 1 - state
    times = np.concatenate(pieces)
    return times[times < duration]


def trace(path: str | Path) -> Times:
    """Arrival times from a file with one time in seconds per line.

    Raises
    ------
    InputError
        The file cannot be read, holds something else, or is not ascending.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
        times = np.array([float(x) for x in lines])
    except (OSError, ValueError) as error:
        raise InputError(f"trace: {str(path)!r} is no list of times ({error})") from None
    if times.size == 0 or not np.all(np.isfinite(times)) or np.any(np.diff(times) < 0):
        raise InputError.of("trace", str(path), "ascending times in seconds, one per line")
    return times


def from_spec(spec: Mapping[str, object], duration: float, seed: int) -> Times:
    """Draw arrivals from one item of a study file, such as ``{poisson: 30}``.

    Forms: ``{constant: rate}``, ``{poisson: rate}``, ``{gamma: rate, cv: 2}``,
    ``{mmpp: [low, high], mean: [seconds, seconds]}``, ``{trace: file}``.
    """
    allowed = (
        "{constant|poisson: RATE}, {gamma: RATE, cv: CV}, {mmpp: [..], mean: [..]}, {trace: FILE}"
    )
    match dict(spec):
        case {"constant": int() | float() as rate, **rest} if not rest:
            return constant(rate, duration)
        case {"poisson": int() | float() as rate, **rest} if not rest:
            return poisson(rate, duration, seed)
        case {"gamma": int() | float() as rate, "cv": int() | float() as cv}:
            return gamma(rate, duration, cv, seed)
        case {
            "mmpp": [int() | float() as low, int() | float() as high],
            "mean": [int() | float() as mean_low, int() | float() as mean_high],
        }:
            return mmpp(low, high, duration, mean_low, mean_high, seed)
        case {"trace": str() as path, **rest} if not rest:
            return trace(path)
    raise InputError.of("arrivals", dict(spec), allowed)
