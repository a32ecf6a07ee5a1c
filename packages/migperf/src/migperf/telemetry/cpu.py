"""Counters of the host: energy of the package where RAPL is readable, core time, pressure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..noise import read_pressure_seconds

__all__ = ["RAPL", "CpuReading", "CpuSampler", "rapl_domains"]

RAPL = Path("/sys/class/powercap")


def rapl_domains(root: Path = RAPL) -> list[Path]:
    """Package domains whose energy counter this user may read."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            int((folder / "energy_uj").read_text())
        except (OSError, ValueError):
            continue
        found.append(folder)
    return found


@dataclass(frozen=True)
class CpuReading:
    """Change between two moments.

    Parameters
    ----------
    seconds : float
        Wall time.
    busy : float
        Share of all core time that was not idle.
    pressure : float or None
        Share of the time in which a task waited for a core; None without PSI.
    energy_joules : float or None
        Energy of all packages; None where no counter is readable.
    """

    seconds: float
    busy: float
    pressure: float | None
    energy_joules: float | None


class CpuSampler:
    """Reads the change of the counters since the last call.

    Parameters
    ----------
    root : Path
        Folder of the RAPL domains.
    """

    def __init__(self, root: Path = RAPL) -> None:
        self._domains = rapl_domains(root)
        self._mark()

    def _energy(self) -> list[int]:
        return [int((d / "energy_uj").read_text()) for d in self._domains]

    def _mark(self) -> None:
        self._clock = time.monotonic()
        self._times = psutil.cpu_times()
        self._pressure = read_pressure_seconds()
        self._joules = self._energy()

    def read(self) -> CpuReading:
        """Change since the sampler was made or read last; counter overflows are undone."""
        clock, times = self._clock, self._times
        pressure, energy = self._pressure, self._joules
        self._mark()
        seconds = self._clock - clock
        total = sum(self._times[:8]) - sum(times[:8])
        idle = self._times.idle + self._times.iowait - times.idle - times.iowait
        joules: float | None = None
        if self._domains:
            joules = 0.0
            for domain, before, after in zip(self._domains, energy, self._joules, strict=True):
                change = after - before
                if change < 0:
                    change += int((domain / "max_energy_range_uj").read_text())
                joules += change * 1e-6
        waited = None
        if pressure is not None and self._pressure is not None and seconds > 0:
            waited = (self._pressure - pressure) / seconds
        return CpuReading(seconds, 1 - idle / total if total > 0 else 0.0, waited, joules)
