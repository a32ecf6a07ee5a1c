"""All backends by name, and what works on this machine."""

from __future__ import annotations

from ..errors import InputError
from .base import Availability, Backend
from .cpu import CpuQuota, CpuSet, Shared, Whole
from .gpu import Mig, Mps, Opener, TimeSlice

__all__ = ["BACKENDS", "diagnose", "get_backend"]

BACKENDS = ("mig", "mps", "timeslice", "whole", "cpuset", "cpuquota", "shared")


def get_backend(
    name: str, opener: Opener | None = None, *, gpu: int = 0, allow_mode_change: bool = False
) -> Backend:
    """Make a backend by name.

    Parameters
    ----------
    name : str
        One of `BACKENDS`.
    opener : callable, optional
        Opens the node for the GPU backends; default the real driver.
    gpu : int
        GPU index.
    allow_mode_change : bool
        See `Gpu.set_mig_mode`.
    """
    from ..node import Node

    start = opener or Node.open
    match name:
        case "mig":
            return Mig(start, gpu, allow_mode_change=allow_mode_change)
        case "mps":
            return Mps(start, gpu)
        case "timeslice":
            return TimeSlice(start, gpu)
        case "whole":
            return Whole()
        case "cpuset":
            return CpuSet()
        case "cpuquota":
            return CpuQuota()
        case "shared":
            return Shared()
    raise InputError.of("backend", name, ", ".join(BACKENDS))


def diagnose(opener: Opener | None = None) -> dict[str, tuple[Availability, str]]:
    """Say for every backend whether it works here, and what it isolates."""
    found = {}
    for name in BACKENDS:
        backend = get_backend(name, opener)
        found[name] = (backend.available(), backend.isolates)
    return found
