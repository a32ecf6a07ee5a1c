"""Energy of a window: the counter of the device, and each partition's estimated share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..energy import InstanceActivity, attribute_energy
from ..node import Gpu
from ..partitions.base import Grant
from .cpu import RAPL, CpuSampler
from .nvml import GpmSampler, read_gpu

__all__ = ["EnergyMeter", "GpuMeter", "RaplMeter", "WindowEnergy"]


@dataclass(frozen=True)
class WindowEnergy:
    """What a window cost.

    Parameters
    ----------
    joules : float
        Change of the device's counter, J.
    shares : tuple of float or None
        Estimated part of each partition, J; None where it cannot be told apart.
    seconds : float
        Time between the two readings.
    """

    joules: float
    shares: tuple[float | None, ...]
    seconds: float


class EnergyMeter(Protocol):
    """Reads an energy counter at both ends of a window."""

    def start(self) -> None:
        """Take the first reading."""

    def stop(self) -> WindowEnergy | None:
        """Take the second reading; None where the device has no readable counter."""


class RaplMeter:
    """Energy of the CPU packages; one tenant's share is all of it, several are not told apart.

    Parameters
    ----------
    grants : sequence of Grant
        The partitions in use.
    root : Path
        Folder of the RAPL domains.
    """

    def __init__(self, grants: Sequence[Grant], root: Path = RAPL) -> None:
        self._count = len(grants)
        self._root = root

    def start(self) -> None:
        """Take the first reading."""
        self._sampler = CpuSampler(self._root)

    def stop(self) -> WindowEnergy | None:
        """Take the second reading."""
        reading = self._sampler.read()
        if reading.energy_joules is None:
            return None
        alone = (reading.energy_joules,) if self._count == 1 else (None,) * self._count
        return WindowEnergy(reading.energy_joules, alone, reading.seconds)


class GpuMeter:
    """Energy of a GPU; GPU instances share it by GPM activity, where the GPU has GPM.

    Parameters
    ----------
    gpu : Gpu
        The GPU; its node stays open while the meter is in use.
    grants : sequence of Grant
        The partitions in use; those with a `device` are GPU instances.
    """

    def __init__(self, gpu: Gpu, grants: Sequence[Grant]) -> None:
        self._gpu = gpu
        self._grants = grants

    def _counter(self) -> float | None:
        return read_gpu(self._gpu).energy_joules

    def start(self) -> None:
        """Take the first reading."""
        self._stack = ExitStack()
        self._samplers: dict[int, GpmSampler] = {}
        if all(g.device for g in self._grants) and GpmSampler.supported(self._gpu):
            for instance in {g.device[1] for g in self._grants if g.device}:
                sampler = GpmSampler(self._gpu, instance)
                self._samplers[instance] = self._stack.enter_context(sampler)
        self._clock = time.monotonic()
        self._before = self._counter()

    def stop(self) -> WindowEnergy | None:
        """Take the second reading."""
        with self._stack:
            after, seconds = self._counter(), time.monotonic() - self._clock
            activity = {i: s.read()["gr_engine_active"] for i, s in self._samplers.items()}
        if self._before is None or after is None or not seconds > 0:
            return None
        joules = after - self._before
        if len(self._grants) == 1 and not self._grants[0].device:
            return WindowEnergy(joules, (joules,), seconds)
        if not activity or any(a is None for a in activity.values()):
            return WindowEnergy(joules, (None,) * len(self._grants), seconds)
        profiles = {g.id: g.profile for g in self._gpu.instances()}
        parts = [
            InstanceActivity(str(i), profiles[i], min(1.0, a or 0.0)) for i, a in activity.items()
        ]
        found = attribute_energy(self._gpu.board, parts, joules, seconds)
        places = [g.device[1] for g in self._grants if g.device]
        shares = tuple(found.joules[str(p)] / places.count(p) for p in places)
        return WindowEnergy(joules, shares, seconds)
