"""Start tenants in their partitions, let them begin together, collect what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import MigperfError
from .noise import NoiseMeter, NoiseReading
from .partitions.base import Grant
from .telemetry.meter import EnergyMeter
from .workloads.base import WorkloadSpec

__all__ = ["Tenant", "TenantResult", "Window", "run_window"]

_BARRIER_SECONDS = 0.15


@dataclass(frozen=True)
class Tenant:
    """Somebody who uses a partition.

    Parameters
    ----------
    name : str
        Name in results.
    workload : WorkloadSpec
        What it runs.
    arrivals : mapping, optional
        Open-loop arrivals (see `migperf.loadgen.arrivals.from_spec`); None runs a closed loop.
    slo_ms : float, optional
        Latency bound, milliseconds.
    queue_limit : int, optional
        Requests that may wait before further ones are rejected.
    """

    name: str
    workload: WorkloadSpec
    arrivals: Mapping[str, object] | None = None
    slo_ms: float | None = None
    queue_limit: int | None = 10000


@dataclass(frozen=True)
class TenantResult:
    """What one tenant measured in one window.

    Parameters
    ----------
    tenant, partition : str
        Who, and on what.
    status : str
        ``ok``, ``oom``, ``crash``, ``timeout``, ``missing`` or ``refused``; anything but ``ok``
        has no figures.
    detail : str
        What went wrong.
    throughput : float
        Samples per second inside the window; NaN unless ok.
    times : dict of str to array
        ``scheduled``, ``sent``, ``started``, ``done`` in seconds; NaN for rejected requests.
    cpu_seconds : float
        Core time used in the window.
    involuntary_switches : int
        How often the kernel took the core away.
    peak_memory_mib : float
        Largest resident size.
    joules : float
        Energy of the window, J: an estimate beside other tenants; NaN where it is not known.
    seconds : float
        Length of the window.
    """

    tenant: str
    partition: str
    status: str
    detail: str = ""
    throughput: float = float("nan")
    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    involuntary_switches: int = 0
    peak_memory_mib: float = float("nan")
    joules: float = float("nan")
    seconds: float = float("nan")

    @property
    def joules_per_sample(self) -> float:
        """Energy over the samples of the window, J; NaN where it is not known."""
        samples = self.throughput * self.seconds
        return self.joules / samples if samples > 0 else float("nan")

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Done minus scheduled of the served requests, milliseconds."""
        if self.status != "ok":
            return np.empty(0)
        values = (self.times["done"] - self.times["scheduled"]) * 1000
        return values[~np.isnan(values)]


@dataclass(frozen=True)
class Window:
    """One window.

    Parameters
    ----------
    results : tuple of TenantResult
        What every tenant measured.
    noise : NoiseReading
        What disturbed it.
    duration : float
        Seconds.
    joules : float
        Energy of the whole device, J; NaN where no counter is readable.
    remark : str
        What the backend says of the tenants; empty where all is as it should be.
    """

    results: tuple[TenantResult, ...]
    noise: NoiseReading
    duration: float
    joules: float = float("nan")
    remark: str = ""


def _start(
    tenant: Tenant, grant: Grant, duration: float, warmup: float, seed: int
) -> subprocess.Popen[str]:
    order = {
        "workload": vars(tenant.workload),
        "arrivals": None if tenant.arrivals is None else dict(tenant.arrivals),
        "queue_limit": tenant.queue_limit,
        "grant": grant.to_json(),
        "duration": duration,
        "warmup": warmup,
        "seed": seed,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "migperf.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **grant.env},
    )  # fmt: skip
    _pipe(process.stdin).write(json.dumps(order) + "\n")
    _pipe(process.stdin).flush()
    return process


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("the process was started without pipes")
    return stream


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Next message of a worker; its end without one is a crash."""
    for line in _pipe(process.stdout):
        try:
            message = json.loads(line)
        except ValueError:
            continue  # something that a framework prints
        if isinstance(message, dict) and "status" in message:
            return message
    process.wait()
    tail = " ".join(_pipe(process.stderr).read().split())[-300:]
    if "MemoryError" in tail or "llocat" in tail:
        return {"status": "oom", "detail": tail}
    return {"status": "crash", "detail": f"exit status {process.returncode} {tail}"}


def _result(
    tenant: Tenant, grant: Grant, message: dict[str, Any], joules: float | None, seconds: float
) -> TenantResult:
    status = str(message["status"])
    if status != "ok":
        return TenantResult(tenant.name, grant.partition, status, str(message.get("detail", "")))
    times = {
        name: np.array([np.nan if x is None else x for x in message[name]])
        for name in ("scheduled", "sent", "started", "done")
    }
    return TenantResult(
        tenant.name, grant.partition, "ok", "", float(message["throughput"]), times,
        float(message["cpu_seconds"]), int(message["involuntary_switches"]),
        float(message["peak_memory_mib"]), float("nan") if joules is None else joules, seconds,
    )  # fmt: skip


def run_window(
    pairs: Sequence[tuple[Tenant, Grant]], *, duration: float, warmup: float = 0.3, seed: int = 0,
    crowded: bool = False, energy: EnergyMeter | None = None,
    check: Callable[[Sequence[int]], str] | None = None,
) -> Window:  # fmt: skip
    """Run tenants side by side for one window.

    Every tenant is a process of its own. All set themselves up and warm up, then begin at one
    common instant, and only what is done inside the common window counts.

    Parameters
    ----------
    pairs : sequence of (Tenant, Grant)
        Who runs on what.
    duration, warmup : float
        Seconds.
    seed : int
        Seed of the arrivals.
    crowded : bool
        More threads than cores are run on purpose, so that waiting for a core is no noise.
    energy : EnergyMeter, optional
        Read from the common start until every tenant has answered, and scaled to `duration`.
    check : callable, optional
        Given the process ids of the tenants that are ready; what it says goes into the window.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        for number, (tenant, grant) in enumerate(pairs):
            processes.append(_start(tenant, grant, duration, warmup, seed + number))
        messages = [_read(p) for p in processes]
        alive = [i for i, m in enumerate(messages) if m["status"] == "ready"]
        remark = check([processes[i].pid for i in alive]) if check is not None else ""
        meter = NoiseMeter(crowded=crowded)
        meter.start()
        start = time.perf_counter() + _BARRIER_SECONDS
        for i in alive:
            pipe = _pipe(processes[i].stdin)
            pipe.write(json.dumps({"start": start}) + "\n")
            pipe.flush()
        if energy is not None:
            time.sleep(max(0.0, start - time.perf_counter()))
            energy.start()
        for i in alive:
            messages[i] = _read(processes[i])
        spent = energy.stop() if energy is not None else None
        used = sum(float(m.get("cpu_seconds", 0.0)) for m in messages)
        noise = meter.stop(used)
        for process in processes:
            process.wait(timeout=30)
    except subprocess.TimeoutExpired as error:
        raise MigperfError(f"a tenant did not end: {error}") from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
    scale = min(1.0, duration / spent.seconds) if spent else 1.0
    shares = [s and s * scale for s in spent.shares] if spent else [None] * len(pairs)
    results = tuple(
        _result(t, g, m, s, duration) for (t, g), m, s in zip(pairs, messages, shares, strict=True)
    )
    joules = spent.joules * scale if spent else float("nan")
    return Window(results, noise, duration, joules, remark)
