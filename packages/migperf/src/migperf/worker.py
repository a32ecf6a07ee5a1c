"""A tenant's process: enter the grant, set the workload up, wait for the barrier, run the window.

Started by `migperf.study` as ``python -m migperf.worker``; it reads one JSON line with the order,
prints ``ready``, reads the line with the start time, and prints one JSON line with the result.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _enter(grant: dict[str, Any]) -> None:
    """Enter the partition before any framework is imported."""
    if grant["cgroup"]:
        with open(grant["cgroup"], "w") as stream:  # noqa: PTH123 - a kernel file, not a path
            stream.write(str(os.getpid()))
    if grant["cpus"]:
        os.sched_setaffinity(0, grant["cpus"])
    if grant["memory_bytes"]:
        limit = int(grant["memory_bytes"])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _usage() -> tuple[float, int]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_nivcsw


def _run(order: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from .loadgen.arrivals import from_spec
    from .loadgen.drive import closed_loop, open_loop
    from .stats import warmup_length
    from .workloads.base import WorkloadSpec, create

    spec = WorkloadSpec.from_dict(order["workload"])
    duration = float(order["duration"])
    workload = create(spec, int(order["grant"]["threads"]))
    latencies: list[float] = []
    end = time.perf_counter() + float(order["warmup"])
    while time.perf_counter() < end or len(latencies) < 3:
        begin = time.perf_counter()
        workload.step(spec.batch)
        latencies.append(time.perf_counter() - begin)
    dropped = warmup_length(np.array(latencies))
    _say({"status": "ready"})
    start = json.loads(sys.stdin.readline())["start"]
    # CLOCK_MONOTONIC is common to all processes; perf_counter is the same clock on Linux.
    cpu, switches = _usage()
    if order["arrivals"] is None:
        result = closed_loop(workload.step, duration, batch=spec.batch, start=start)
        samples = spec.batch
    else:
        times = from_spec(order["arrivals"], duration, int(order["seed"]))
        result = open_loop(
            workload.step, times, largest_batch=spec.batch, start=start,
            queue_limit=order["queue_limit"],
        )  # fmt: skip
        samples = 1
    cpu_after, switches_after = _usage()
    inside = int((result.done <= duration).sum())
    return {
        "status": "ok",
        "throughput": samples * inside / duration,
        "scheduled": result.scheduled.tolist(),
        "sent": [None if x != x else x for x in result.sent.tolist()],
        "started": [None if x != x else x for x in result.started.tolist()],
        "done": [None if x != x else x for x in result.done.tolist()],
        "rejected": result.rejected,
        "cpu_seconds": cpu_after - cpu,
        "involuntary_switches": switches_after - switches,
        "warmup_steps": len(latencies),
        "warmup_mser": dropped,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, so that no tenant is left running."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    """Run one order; every failure is an explicit status, never a zero."""
    _end_with_parent()
    text = sys.stdin.readline()
    if not text:
        return 1  # the parent died before it sent the order
    order = json.loads(text)
    try:
        _enter(order["grant"])
        message = _run(order)
    except MemoryError as error:
        message = {"status": "oom", "detail": str(error) or "out of memory"}
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from .errors import MigperfError, WorkloadOutOfMemory
        from .workloads.base import FrameworkMissing

        detail = " ".join(str(error).split())
        if isinstance(error, WorkloadOutOfMemory) or "llocat" in detail:
            message = {"status": "oom", "detail": detail}
        elif isinstance(error, FrameworkMissing):
            message = {"status": "missing", "detail": detail}
        elif isinstance(error, MigperfError):
            message = {"status": "refused", "detail": detail}
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            detail = f"{type(error).__name__}: {detail} ({place})"
            message = {"status": "crash", "detail": detail}
    _say(message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
