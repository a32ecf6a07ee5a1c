"""Is the machine quiet enough to measure on? Pressure, steal, foreign work, clock steadiness."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Limits", "NoiseMeter", "NoiseReading", "spin_variation"]

_PSI = Path("/proc/pressure/cpu")


@dataclass(frozen=True)
class Limits:
    """What is still called quiet.

    Parameters
    ----------
    pressure, steal, foreign : float
        Shares of the window: time in which somebody waited for a core, stolen time, and core time
        that went to processes of others.
    spin : float
        Spread of repeated calibration loops, relative to the fastest.
    """

    pressure: float = 0.05
    steal: float = 0.01
    foreign: float = 0.05
    spin: float = 0.03


@dataclass(frozen=True)
class NoiseReading:
    """What disturbed a window.

    Parameters
    ----------
    pressure : float or None
        Share of the window in which a runnable task waited; None where the kernel does not say.
    steal, foreign : float
        Shares of all core time.
    spin : float
        Spread of the calibration loops before the window.
    crowded : bool
        More tenants than cores were run on purpose, so waiting is no sign of noise.
    """

    pressure: float | None
    steal: float
    foreign: float
    spin: float
    crowded: bool = False

    def reasons(self, limits: Limits | None = None) -> list[str]:
        """Say what exceeds the limits; empty on a quiet machine."""
        bound = limits or Limits()
        found = []
        if self.pressure is not None and not self.crowded and self.pressure > bound.pressure:
            found.append(f"CPU pressure {self.pressure:.1%} > {bound.pressure:.0%}")
        if self.steal > bound.steal:
            found.append(f"steal {self.steal:.1%} > {bound.steal:.0%}")
        if self.foreign > bound.foreign:
            found.append(
                f"other processes use {self.foreign:.1%} > {bound.foreign:.0%} of the cores"
            )
        if self.spin > bound.spin:
            found.append(f"calibration varies by {self.spin:.1%} > {bound.spin:.0%}")
        return found

    def to_json(self) -> dict[str, float | bool | None]:
        """Plain form for ``meta.json``."""
        return dict(vars(self))


def read_pressure_seconds() -> float | None:
    """Seconds since boot in which a task waited for a core; None without PSI."""
    try:
        line = _PSI.read_text().splitlines()[0]
        return int(line.rsplit("total=", 1)[1]) * 1e-6
    except (OSError, IndexError, ValueError):
        return None


def spin_variation(loops: int = 5, seconds: float = 0.05) -> float:
    """Spread of `loops` equal calibration loops of about ``seconds / loops`` each.

    Returns
    -------
    float
        ``(median - fastest) / fastest``.
    """
    target = seconds / loops
    work = 2000
    while _spin(work) < target / 2:
        work *= 2
    times = sorted(_spin(work) for _ in range(loops))
    return (times[len(times) // 2] - times[0]) / times[0]


def _spin(work: int) -> float:
    started = time.perf_counter()
    total = 0
    for i in range(work):
        total += i & 3
    return time.perf_counter() - started


class NoiseMeter:
    """Measures disturbance between `start` and `stop`.

    Parameters
    ----------
    crowded : bool
        More tenants than cores run on purpose.
    calibrate : bool
        Run the calibration loops at `start`.
    """

    def __init__(self, *, crowded: bool = False, calibrate: bool = True) -> None:
        self._crowded = crowded
        self._calibrate = calibrate

    def start(self) -> None:
        """Begin the window."""
        self._spin = spin_variation() if self._calibrate else 0.0
        self._own = _own_seconds()
        self._times = psutil.cpu_times()
        self._pressure = read_pressure_seconds()
        self._clock = time.monotonic()

    def stop(self, children_seconds: float = 0.0) -> NoiseReading:
        """End the window.

        Parameters
        ----------
        children_seconds : float
            Core seconds that the tenants used in the window, by their own account.
        """
        elapsed = time.monotonic() - self._clock
        before, after = self._times, psutil.cpu_times()
        idle = after.idle + after.iowait - before.idle - before.iowait
        stolen = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
        total = sum(after[:8]) - sum(before[:8])
        own = _own_seconds() - self._own + children_seconds
        busy = max(0.0, total - idle - stolen)
        pressure = read_pressure_seconds()
        waited = (
            None if pressure is None or self._pressure is None
            else (pressure - self._pressure) / elapsed
        )  # fmt: skip
        return NoiseReading(
            waited,
            max(0.0, stolen) / total if total > 0 else 0.0,
            max(0.0, busy - own) / total if total > 0 else 0.0,
            self._spin,
            self._crowded,
        )


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system
