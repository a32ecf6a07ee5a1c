"""The contract: a layout becomes grants, and everything is put back afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError

if TYPE_CHECKING:
    from ..telemetry.meter import EnergyMeter

__all__ = [
    "Availability",
    "Backend",
    "CoreLayout",
    "Grant",
    "available_cores",
    "thread_environment",
]


@dataclass(frozen=True)
class Grant:
    """What a tenant may use.

    Parameters
    ----------
    partition : str
        Name of the partition in results: ``1c``, ``3g.40gb``, ``50%``.
    env : dict of str to str
        Environment of the tenant's process.
    cpus : tuple of int
        Cores that it is pinned to; empty means no pinning.
    threads : int
        Threads that its framework may use.
    memory_bytes : int or None
        Address space limit of the process.
    cgroup : str or None
        ``cgroup.procs`` (or ``tasks``) file that the process enters.
    device : tuple of int or None
        GPU index and GPU instance id for telemetry.
    """

    partition: str
    env: dict[str, str] = field(default_factory=dict)
    cpus: tuple[int, ...] = ()
    threads: int = 1
    memory_bytes: int | None = None
    cgroup: str | None = None
    device: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain form for the worker and for ``meta.json``."""
        return dict(vars(self))


@dataclass(frozen=True)
class Availability:
    """Whether a backend works on this machine, and why not."""

    ok: bool
    reason: str = ""


class Backend(Protocol):
    """A way to share a machine among tenants."""

    name: str
    isolates: str

    def available(self) -> Availability:
        """Say whether the backend works here."""

    def open(self, layout: str) -> Any:
        """Context manager: the grants of a layout; the former state is back on exit."""

    def meter(self, grants: Sequence[Grant]) -> EnergyMeter:
        """Energy meter of the device behind the grants; for use while they are open."""

    def check(self, pids: Sequence[int]) -> str:
        """Say what is wrong with running tenants, in a line; empty where nothing is."""


def available_cores() -> tuple[int, ...]:
    """Cores that this process may use, ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def thread_environment(threads: int) -> dict[str, str]:
    """Environment that holds every threading runtime to the granted cores."""
    number = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
             "TF_NUM_INTRAOP_THREADS")  # fmt: skip
    return {
        **dict.fromkeys(names, number),
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=" + ("false" if threads == 1 else "true"),
    }


_CORES = re.compile(r"^(?P<cores>\d+)c(?:\*(?P<count>\d+))?$")
_SHARES = re.compile(r"^(?P<share>\d+)%(?:\*(?P<count>\d+))?$")


@dataclass(frozen=True)
class CoreLayout:
    """A layout of CPU partitions: ``1c*2``, ``2c``, ``50%*2``.

    Parameters
    ----------
    parts : tuple of int
        Cores, or percent of all cores, of each partition.
    """

    parts: tuple[int, ...]

    @classmethod
    def parse(cls, text: str, *, percent: bool = False) -> CoreLayout:
        """Read a layout.

        Raises
        ------
        InputError
            The text does not follow the form.
        """
        pattern, form = (_SHARES, "50%*2") if percent else (_CORES, "1c*2")
        group = "share" if percent else "cores"
        parts: list[int] = []
        for item in filter(None, (p.strip() for p in text.split(","))):
            match = pattern.match(item)
            if match is None or int(match[group]) < 1 or not 1 <= int(match["count"] or 1) <= 256:
                raise InputError.of("layout", text, f"the form {form}")
            parts += [int(match[group])] * int(match["count"] or 1)
        if not parts:
            raise InputError.of("layout", text, f"the form {form}")
        return cls(tuple(parts))


@contextmanager
def grants_of(grants: list[Grant]) -> Iterator[list[Grant]]:
    """Wrap grants for which nothing has to be undone."""
    yield grants
