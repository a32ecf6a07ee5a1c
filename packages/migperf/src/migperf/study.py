"""A study: tenants on layouts of one or more backends, repeated, with intervals, in one file."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .cases import Case, read_study
from .errors import InputError, MigperfError, NoisyHost, WorkloadOutOfMemory
from .interference import InterferenceTable, interference_tables, isolation, summarise
from .measurements import Measurement
from .noise import Limits
from .partitions.gpu import Opener
from .partitions.registry import get_backend
from .tenants import Tenant, TenantResult, Window, run_window
from .workloads.base import FrameworkMissing, WorkloadSpec

__all__ = ["Case", "Study", "StudyResult", "environment"]


@dataclass(frozen=True)
class StudyResult:
    """Everything that a study measured.

    Parameters
    ----------
    cases : tuple of Case
        What was compared.
    windows : dict of str to tuple of Window
        Repeats by case label.
    noise : tuple of str
        Why windows were disturbed, where they were kept all the same.
    seconds : float
        Wall time.
    """

    cases: tuple[Case, ...]
    windows: dict[str, tuple[Window, ...]]
    noise: tuple[str, ...]
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """One row per case and tenant, with means and intervals; see `migperf.interference`."""
        return [row for label, runs in self.windows.items() for row in summarise(label, runs)]

    def isolation_index(self, alone: str, together: str) -> float:
        """Median over repeats of p99 alone divided by p99 together, for two case labels."""
        return isolation(self.windows[alone], self.windows[together])

    def workloads(self, case: Case) -> dict[str, str]:
        """Tenants that ran in a case, with what they ran."""
        names = dict.fromkeys(r.tenant for w in self.windows[case.label] for r in w.results)
        specs = self._specs[case.label]
        return {n: f"{specs[n].label} {specs[n].mode} batch {specs[n].batch}" for n in names}

    def interference(self) -> list[InterferenceTable]:
        """One table per partitioning on which pairs of tenants were measured."""
        return interference_tables(self.cases, self.windows)

    def to_frame(self) -> list[dict[str, Any]]:
        """Rows for a data frame: ``pandas.DataFrame(result.to_frame())``."""
        return self.rows()

    def __repr__(self) -> str:
        lines = [f"StudyResult({len(self.cases)} cases, {self.seconds:.1f} s)"]
        for row in self.rows():
            figures = (
                f"{row['throughput_text']} samples/s" if row["status"] == "ok" else row["status"]
            )
            lines.append(f"  {row['case']} {row['tenant']}: {figures}")
        return "\n".join(lines)

    def measurements(self) -> list[Measurement]:
        """Points for the planner: mean batch latency per workload and partition."""
        found: dict[tuple[str, str, str, int], list[float]] = {}
        energy: dict[tuple[str, str, str, int], list[float]] = {}
        status: dict[tuple[str, str, str, int], str] = {}
        # Pairs are there to show interference; they only count where nothing else was measured.
        calm = [c for c in self.cases if not c.is_pair]
        for case in calm or self.cases:
            for window in self.windows[case.label]:
                for result in window.results:
                    spec = self._specs[case.label][result.tenant]
                    key = (spec.label, spec.mode, result.partition, spec.batch)
                    if result.status == "ok":
                        times = result.times["done"] - result.times["started"]
                        found.setdefault(key, []).append(float(np.nanmean(times)) * 1000)
                        energy.setdefault(key, []).append(result.joules_per_sample)
                    elif result.status == "oom":
                        status[key] = "oom"
        rows = [
            Measurement(*key, float(np.mean(v)), joules=float(np.mean(energy[key])))
            for key, v in found.items()
        ]
        return rows + [Measurement(*k, math.nan, status="oom") for k in status if k not in found]

    _specs: dict[str, dict[str, WorkloadSpec]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What to measure.

    Parameters
    ----------
    cases : tuple of Case
        Backends and layouts to compare.
    tenants : tuple of Tenant
        Who runs; the first n of them on a layout with n partitions, repeated from the start where
        there are more partitions.
    repeat : int
        Windows per case, each with new processes, in random order.
    duration, warmup : float
        Seconds per window.
    seed : int
        Seed of order and arrivals.
    target_half_width : float
        A case ends early once the interval of its throughput is this narrow (share of the mean).
    """

    cases: tuple[Case, ...]
    tenants: tuple[Tenant, ...]
    repeat: int = 5
    duration: float = 10.0
    warmup: float = 0.5
    seed: int = 0
    target_half_width: float = 0.0

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read a study file.

        Raises
        ------
        InputError
            The file cannot be read, or a field is not what it must be.
        """
        place = Path(path)
        try:
            data = yaml.safe_load(place.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"study: {str(path)!r} cannot be read ({error})") from None
        except yaml.YAMLError as error:
            text = " ".join(str(error).split())
            raise InputError(f"study: {str(path)!r} is not YAML ({text})") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: object) -> Study:
        """Read the mapping of a study file; see `migperf.cases.read_study`."""
        cases, tenants, rest = read_study(data)
        return cls(cases, tenants, **rest)

    def run(
        self,
        out: str | Path | None = None,
        *,
        allow_noise: bool = False,
        opener: Opener | None = None,
        allow_mode_change: bool = False,
        limits: Limits | None = None,
        retries: int = 3,
        on_step: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> StudyResult:
        """Measure.

        Parameters
        ----------
        out : path, optional
            Folder to write; it appears when everything is measured, or not at all.
        allow_noise : bool
            Keep disturbed windows, and say so in the result.
        opener : callable, optional
            Opens the node for GPU backends.
        allow_mode_change : bool
            See `Gpu.set_mig_mode`.
        limits : Limits, optional
            What is still quiet.
        retries : int
            How often a disturbed window is repeated before giving up.
        on_step : callable, optional
            Told what runs.
        sleep : callable
            How to wait before a repeat.

        Raises
        ------
        NoisyHost
            A window stayed disturbed.
        WorkloadOutOfMemory, FrameworkMissing, MigperfError
            Every tenant of a case failed in the same way.
        """
        started = time.monotonic()
        generator = np.random.default_rng(self.seed)
        plan = [(case, n) for n in range(self.repeat) for case in self.cases]
        order = [plan[i] for i in generator.permutation(len(plan))]
        windows: dict[str, list[Window]] = {case.label: [] for case in self.cases}
        remarks: dict[str, None] = {}
        for case, number in order:
            if self._narrow(windows[case.label]):
                continue
            for attempt in range(retries + 1):
                if on_step is not None:
                    on_step(f"{case.label}, repeat {number + 1}")
                window = self._window(case, number, opener, allow_mode_change)
                _check_alive(case, window)
                if window.remark:
                    remarks[f"{case.label}: {window.remark}"] = None
                reasons = window.noise.reasons(limits)
                if not reasons:
                    break
                if allow_noise:
                    remarks[f"{case.label}: {'; '.join(reasons)}"] = None
                    break
                if attempt == retries:
                    raise NoisyHost(
                        f"{case.label}: the machine is too noisy after {retries} repeats "
                        f"({'; '.join(reasons)}); stop other work, or keep the figures with "
                        "allow_noise (command line: --allow-noise)"
                    )
                sleep(0.5 * 2**attempt)
            windows[case.label].append(window)
        result = StudyResult(
            self.cases,
            {label: tuple(runs) for label, runs in windows.items()},
            tuple(remarks),
            time.monotonic() - started,
            {c.label: {t.name: t.workload for t in c.choose(self.tenants)} for c in self.cases},
        )
        if out is not None:
            save(result, Path(out))
        return result

    def _narrow(self, runs: Sequence[Window]) -> bool:
        if self.target_half_width <= 0 or len(runs) < 3:
            return False
        rows = summarise("", runs)
        return all(r["throughput_half_width"] <= self.target_half_width for r in rows)

    def _window(
        self, case: Case, number: int, opener: Opener | None, allow_mode_change: bool
    ) -> Window:
        backend = get_backend(case.backend, opener, allow_mode_change=allow_mode_change)
        with backend.open(case.layout) as grants:
            pairs = list(zip(case.choose(self.tenants), grants, strict=False))
            crowded = sum(g.threads for _, g in pairs) > len(os.sched_getaffinity(0))
            return run_window(
                pairs, duration=self.duration, warmup=self.warmup,
                seed=self.seed + 1000 * number, crowded=crowded,
                energy=backend.meter([g for _, g in pairs]), check=backend.check,
            )  # fmt: skip


def _check_alive(case: Case, window: Window) -> None:
    if any(r.status == "ok" for r in window.results):
        return
    first: TenantResult = window.results[0]
    text = f"{case.label}, tenant {first.tenant}: {first.status} ({first.detail})"
    if first.status == "oom":
        raise WorkloadOutOfMemory(text)
    if first.status == "missing":
        raise FrameworkMissing(text)
    if first.status == "refused":
        raise InputError(text)
    raise MigperfError(text)


def environment() -> dict[str, Any]:
    """Describe the machine and the versions, as ``result.json`` and ``meta.json`` need it."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        cpu = platform.machine()
    names = ("migperf", "numpy", "scipy", "nvidia-ml-py")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu,
        "threads": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in names},
    }


def save(result: StudyResult, out: Path) -> None:
    """Write a result folder: ``meta.json``, ``summary.json``, ``samples.csv``.

    The folder is written under another name and renamed, so that a reader never sees half of it.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"out: {str(out)!r} cannot be written ({error.strerror})") from None
    try:
        meta = {
            "schema_version": 1,
            "environment": environment(),
            "noise": list(result.noise),
            "seconds": result.seconds,
            "windows": {
                label: [w.noise.to_json() for w in runs] for label, runs in result.windows.items()
            },
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        summary = {
            "schema_version": 1,
            "cases": [
                {"label": c.label, "backend": c.backend, "layout": c.layout, "batch": c.batch,
                 "workloads": result.workloads(c)}
                for c in result.cases
            ],
            "rows": [_plain(r) for r in result.rows()],
            "interference": [t.to_json() for t in result.interference()],
            "measurements": [
                {k: v for k, v in vars(m).items() if v == v} for m in result.measurements()
                if m.status == "ok"
            ],
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        names = ("scheduled", "sent", "started", "done")
        with (folder / "samples.csv").open("w", encoding="utf-8", newline="") as stream:
            # Layouts such as "3g.40gb, 4g.40gb" need quotes.
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("case", "repeat", "tenant", "partition", "status", *names))
            for label, runs in result.windows.items():
                for number, window in enumerate(runs):
                    for r in window.results:
                        head = (label, number, r.tenant, r.partition, r.status)
                        if r.status != "ok":
                            writer.writerow((*head, *("" for _ in names)))
                            continue
                        for cells in zip(*(r.times[k] for k in names), strict=True):
                            writer.writerow((*head, *("" if c != c else f"{c:.7f}" for c in cells)))
        folder.chmod(0o755)
        if out.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
            out.rename(old / "old")
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
