"""CPU partitions: whole, disjoint cores, shares by quota, shared cores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil

from ..errors import Infeasible, PermissionDenied
from ..restore import Hold, remove_group
from ..telemetry.meter import RaplMeter
from .base import Availability, CoreLayout, Grant, available_cores, grants_of, thread_environment

__all__ = ["CpuQuota", "CpuSet", "Shared", "Whole"]


def _grant(partition: str, cores: tuple[int, ...], threads: int, memory: int | None = None,
           cgroup: str | None = None) -> Grant:  # fmt: skip
    return Grant(partition, thread_environment(threads), cores, threads, memory, cgroup)


class _OnCores:
    """What all CPU backends share."""

    def meter(self, grants: Sequence[Grant]) -> RaplMeter:
        """Energy counter of the packages, where it is readable."""
        return RaplMeter(grants)

    def check(self, pids: Sequence[int]) -> str:
        """Nothing can be wrong: the worker has entered its grant or has failed."""
        return ""


class Whole(_OnCores):
    """One tenant has all cores."""

    name = "whole"
    isolates = "nothing to isolate: one tenant"

    def available(self) -> Availability:
        """Every machine can do this."""
        return Availability(True)

    def open(self, layout: str) -> AbstractContextManager[list[Grant]]:
        """Grant everything to one tenant; the layout is ignored."""
        cores = available_cores()
        return grants_of([_grant("whole", cores, len(cores))])


class Shared(_OnCores):
    """All tenants on all cores, as with time-slicing on a GPU: nothing is isolated."""

    name = "shared"
    isolates = "nothing"

    def available(self) -> Availability:
        """Every machine can do this."""
        return Availability(True)

    def open(self, layout: str) -> AbstractContextManager[list[Grant]]:
        """Grant all cores to as many tenants as the layout has partitions."""
        cores = available_cores()
        parts = CoreLayout.parse(layout).parts
        return grants_of([_grant("shared", cores, len(cores)) for _ in parts])


class CpuSet(_OnCores):
    """Disjoint cores per tenant, threads equal to cores, as MIG separates multiprocessors."""

    name = "cpuset"
    isolates = "cores and their private caches; not the shared cache, memory bandwidth or turbo"

    def available(self) -> Availability:
        """Two cores are needed to separate tenants."""
        count = len(available_cores())
        return Availability(count >= 2, "" if count >= 2 else "this process may use one core only")

    def open(self, layout: str) -> AbstractContextManager[list[Grant]]:
        """Deal the cores.

        Raises
        ------
        Infeasible
            The layout asks for more cores than there are.
        """
        cores = available_cores()
        parts = CoreLayout.parse(layout).parts
        if sum(parts) > len(cores):
            raise Infeasible(
                f"layout {layout!r} needs {sum(parts)} cores, this process may use {len(cores)}"
            )
        total = psutil.virtual_memory().total
        grants, first = [], 0
        for part in parts:
            memory = total * part // len(cores)
            grants.append(_grant(f"{part}c", cores[first : first + part], part, memory))
            first += part
        return grants_of(grants)


class CpuQuota(_OnCores):
    """A share of all cores' time per tenant, as MPS limits the share of multiprocessors.

    Parameters
    ----------
    root : Path
        Where the cgroup file systems are mounted.
    """

    name = "cpuquota"
    isolates = "core time; not caches or memory bandwidth"
    _prefix = "migperf-"

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._root = root

    def _parent(self) -> tuple[Path, int] | None:
        """Return the folder of the CPU controller and the cgroup version."""
        if (self._root / "cgroup.controllers").is_file():
            controllers = (self._root / "cgroup.subtree_control").read_text().split()
            return (self._root, 2) if "cpu" in controllers else None
        for name in ("cpu", "cpu,cpuacct"):
            if (self._root / name / "cpu.cfs_quota_us").is_file() or (
                self._root / name / "cpu.shares"
            ).is_file():
                return self._root / name, 1
        return None

    def available(self) -> Availability:
        """Ask for a writable CPU controller."""
        try:
            parent = self._parent()
        except OSError as error:
            return Availability(False, f"cgroups cannot be read ({error.strerror})")
        if parent is None:
            return Availability(False, f"no cgroup CPU controller under {self._root}")
        if not os.access(parent[0], os.W_OK):
            return Availability(False, f"{parent[0]} is not writable by this user")
        probe = parent[0] / f"{self._prefix}{os.getpid()}-probe"
        try:
            self._make(probe, parent[1], 50000)
        except OSError as error:
            return Availability(False, f"no quota can be set under {parent[0]} ({error.strerror})")
        finally:
            if probe.is_dir():
                probe.rmdir()
        return Availability(True)

    def _make(self, folder: Path, version: int, quota_us: int) -> Path:
        folder.mkdir()
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota_us} 100000")
        else:
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        return folder / "cgroup.procs"

    def sweep(self) -> list[str]:
        """Remove groups whose makers have died; returns their names."""
        parent = self._parent()
        removed = []
        for folder in sorted(parent[0].glob(f"{self._prefix}*")) if parent else []:
            pid = folder.name.removeprefix(self._prefix).split("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                remove_group(folder)
                removed.append(folder.name)
        return removed

    @contextmanager
    def open(self, layout: str) -> Iterator[list[Grant]]:
        """Make one group per partition and remove them on exit.

        Raises
        ------
        Infeasible
            The shares add up to more than 100 %.
        PermissionDenied
            No group can be made.
        """
        parts = CoreLayout.parse(layout, percent=True).parts
        if sum(parts) > 100:
            raise Infeasible(f"layout {layout!r}: the shares add up to {sum(parts)} % > 100 %")
        state = self.available()
        parent = self._parent()
        if not state.ok or parent is None:
            raise PermissionDenied(f"backend cpuquota: {state.reason}")
        self.sweep()
        cores = available_cores()
        made = [parent[0] / f"{self._prefix}{os.getpid()}-{number}" for number in range(len(parts))]
        hold = Hold.take("cgroups", {"folders": [str(folder) for folder in made]})
        grants = []
        try:
            for folder, part in zip(made, parts, strict=True):
                procs = self._make(folder, parent[1], part * len(cores) * 1000)
                threads = math.ceil(part * len(cores) / 100)
                grants.append(_grant(f"{part}%", cores, threads, None, str(procs)))
            yield grants
        finally:
            for folder in made:
                if folder.is_dir():
                    folder.rmdir()
            hold.release()
