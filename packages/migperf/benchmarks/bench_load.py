"""Load generation: queues in closed form, schedule error, MLPerf LoadGen on the same stub."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from common import goal, parse, table, write
from migperf.loadgen.arrivals import constant, poisson
from migperf.loadgen.drive import open_loop, virtual_open_loop
from migperf.queueing import (
    md1_mean,
    md1_quantile,
    mm1_mean,
    mm1_quantile,
    mmk_mean,
    mmk_quantile,
)

N = 1_000_000
# The real clock: name, servers, service rate of each, and the closed forms at RATE. As many
# replicas run side by side as make sampling small against the bar.
RATE, SECONDS, REPLICAS = 50.0, 100.0, 24
QUEUES: dict[str, tuple[int, float, Callable[[], float], Callable[[], float]]] = {
    "M/M/1": (1, 100.0, lambda: mm1_mean(RATE, 100.0), lambda: mm1_quantile(RATE, 100.0, 0.99)),
    "M/D/1": (1, 100.0, lambda: md1_mean(RATE, 100.0), lambda: md1_quantile(RATE, 100.0, 0.99)),
    "M/M/4": (4, 25.0, lambda: mmk_mean(RATE, 25.0, 4), lambda: mmk_quantile(RATE, 25.0, 4, 0.99)),
}


def virtual() -> list[list[object]]:
    rows = []

    def row(name: str, found: float, form: float) -> None:
        rows.append(
            [
                name,
                round(found * 1000, 3),
                round(form * 1000, 3),
                round(100 * (found / form - 1), 2),
            ]
        )

    generator = np.random.default_rng(2)
    times = np.cumsum(generator.exponential(1 / 70, size=N))
    latency = virtual_open_loop(times, generator.exponential(1 / 100, size=N)).latency
    row("M/M/1 mean, rho 0.7", latency.mean(), mm1_mean(70, 100))
    row("M/M/1 p99, rho 0.7", float(np.quantile(latency, 0.99)), mm1_quantile(70, 100, 0.99))
    times = np.cumsum(generator.exponential(1 / 80, size=N))
    latency = virtual_open_loop(times, np.full(N, 0.01)).latency
    row("M/D/1 mean, rho 0.8", latency.mean(), md1_mean(80, 100))
    row("M/D/1 p99, rho 0.8", float(np.quantile(latency, 0.99)), md1_quantile(80, 100, 0.99))
    latency = virtual_open_loop(times, generator.exponential(1 / 25, size=N), servers=4).latency
    row("M/M/4 mean, rho 0.8", latency.mean(), mmk_mean(80, 25, 4))
    row("M/M/4 p99, rho 0.8", float(np.quantile(latency, 0.99)), mmk_quantile(80, 25, 4, 0.99))
    return rows


def schedule_error(rate: float, *, real_time: bool = True) -> tuple[float, float]:
    """Achieved over asked rate, and p99 of sent minus scheduled in ms."""
    times = poisson(rate, 3.0, seed=1)
    result = open_loop(lambda _: None, times, real_time=real_time)
    if real_time and not result.real_time:
        print("real-time priority is not allowed here")
    return result.sent.size / result.sent.max() / (times.size / times.max()), float(
        np.quantile(result.lag, 0.99) * 1000
    )


@contextlib.contextmanager
def undisturbed() -> Iterator[bool]:
    """Real-time priority for this thread and all that it starts, where the user may."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def play(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One replica of a queue: latencies on the real clock, and of the same draws on the virtual."""
    servers, mu, _, _ = QUEUES[name]
    generator = np.random.default_rng(seed)
    times = np.cumsum(generator.exponential(1 / RATE, size=round(RATE * SECONDS)))
    size = times.size
    services = np.full(size, 1 / mu) if "D" in name else generator.exponential(1 / mu, size=size)
    remaining = iter(services.tolist())
    lock = threading.Lock()

    def serve(_: int) -> None:
        began = time.perf_counter()
        with lock:
            seconds = next(remaining)
        time.sleep(max(0.0, began + seconds - time.perf_counter()))

    real = open_loop(serve, times, servers=servers).latency
    return real, virtual_open_loop(times, services, servers=servers).latency


def real_queue(name: str) -> dict[str, object]:
    """All replicas of a queue side by side, in this process."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    seed = 1000 * (1 + list(QUEUES).index(name))
    with undisturbed() as alone:
        threads = [
            threading.Thread(target=lambda s=seed + i: found.append(play(name, s)))
            for i in range(REPLICAS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    real, virtual = (np.concatenate([f[i] for f in found]) * 1000 for i in (0, 1))
    return {
        "alone": alone,
        "count": real.size,
        "real": [real.mean(), float(np.quantile(real, 0.99))],
        "virtual": [virtual.mean(), float(np.quantile(virtual, 0.99))],
    }


def real_clock() -> tuple[list[list[object]], bool]:
    """Run the three queues on the real clock, each in a process of its own at the same time."""
    command = [sys.executable, __file__, "--queue"]
    processes = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in QUEUES
    ]
    rows: list[list[object]] = []
    alone = True
    for (name, (_, _, mean, p99)), process in zip(QUEUES.items(), processes, strict=True):
        text, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{name}: the process ended with {process.returncode}")
        found = json.loads(text)
        alone &= found["alone"]
        for i, (what, form) in enumerate((("mean", mean()), ("p99", p99()))):
            real, same = found["real"][i], found["virtual"][i]
            rows.append(
                [
                    f"{name} {what}",
                    found["count"],
                    round(real, 3),
                    round(form * 1000, 3),
                    round(100 * (real / form / 1000 - 1), 2),
                    round(100 * (real / same - 1), 2),
                ]
            )
    return rows, alone


def loadgen_percentiles(rate: float, service: float, count: int) -> tuple[list[float], np.ndarray]:
    """MLPerf LoadGen's Server scenario on a stub that sleeps: p50, p90, p99 in ms, and arrivals."""
    import mlperf_loadgen as lg

    done: list[tuple[float, float]] = []
    pending: list[tuple[int, float]] = []
    lock = threading.Condition()
    ended = False

    def worker() -> None:
        while True:
            with lock:
                while not pending and not ended:
                    lock.wait()
                if not pending:
                    return
                identity, issued = pending.pop(0)
            time.sleep(service)
            done.append((issued, time.perf_counter()))
            lg.QuerySamplesComplete([lg.QuerySampleResponse(identity, 0, 0)])

    def issue(samples: object) -> None:
        now = time.perf_counter()
        with lock:
            pending.extend((s.id, now) for s in samples)  # type: ignore[attr-defined]
            lock.notify()

    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.Server
    settings.mode = lg.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = 10**9
    settings.min_query_count = count
    settings.max_query_count = count
    settings.min_duration_ms = 0
    thread = threading.Thread(target=worker, daemon=True)
    thread.start()
    sut = lg.ConstructSUT(issue, lambda: None)
    qsl = lg.ConstructQSL(64, 64, lambda _: None, lambda _: None)
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = "/tmp"
    lg.StartTestWithLogSettings(sut, qsl, settings, log)
    with lock:
        ended = True
        lock.notify_all()
    thread.join()
    lg.DestroyQSL(qsl)
    lg.DestroySUT(sut)
    latency = np.array([b - a for a, b in done]) * 1000
    issued = np.array([a for a, _ in done])
    return [float(np.quantile(latency, q)) for q in (0.5, 0.9, 0.99)], issued - issued[0]


def own_percentiles(times: np.ndarray, service: float) -> list[float]:
    # Both generators run as `undisturbed` sets it, ours without a priority of its own.
    latency = open_loop(lambda _: time.sleep(service), times, real_time=False).latency * 1000
    return [float(np.quantile(latency, q)) for q in (0.5, 0.9, 0.99)]


def main() -> None:
    arguments = parse(__doc__ or "")
    rows = virtual()
    worst = max(abs(float(r[3])) for r in rows)  # type: ignore[arg-type]
    clock, alone = real_clock()
    off = max(abs(float(r[4])) for r in clock)  # type: ignore[arg-type]
    drift = max(abs(float(r[5])) for r in clock)  # type: ignore[arg-type]
    errors = [[rate, *schedule_error(rate)] for rate in (500.0, 1000.0, 2000.0) for _ in range(3)]
    plain = statistics.median(schedule_error(2000.0, real_time=False)[1] for _ in range(3))
    load = os.getloadavg()[0]
    p99 = statistics.median(e[2] for e in errors if e[0] == 2000.0)
    best = min(e[2] for e in errors if e[0] == 2000.0)
    times = constant(200.0, 10.0)
    services = np.full(times.size, 0.001)
    services[600] = 1.0
    stalled = float(np.quantile(virtual_open_loop(times, services).latency, 0.99))
    hidden = float(np.quantile(services, 0.99))
    goals = [
        goal(
            "M/M/1, M/D/1, M/M/4: mean and p99 on the virtual clock, 10^6 arrivals",
            "within 2 % of the closed form",
            f"largest difference {worst:.2f} %",
            worst <= 2,
        ),
        goal(
            "M/M/1, M/D/1, M/M/4: mean and p99 on the real clock, a stub that sleeps",
            "within 5 % of the closed form",
            f"largest difference {off:.2f} %",
            off <= 5,
            f"Utilisation 0.5, {clock[0][1]} requests per queue from {REPLICAS} independent "
            f"replicas. Of the same draws on the virtual clock: within {drift:.2f} %, the share "
            "of the clock; the rest is sampling. "
            + ("Real-time priority." if alone else "Ordinary priority."),
        ),
        goal(
            "p99 schedule error at 2000 requests/s, 2 cores",
            "<= 1 ms",
            f"median of 3: {p99:.2f} ms, best {best:.2f} ms",
            p99 <= 1.0,
            "The thread that hands requests over has real-time priority, where the user may set "
            f"it; without it {plain:.2f} ms in the same run. Load average {load:.1f}.",
        ),
        goal(
            "a server stall of 1 s in p99: open loop over closed loop",
            ">= 10",
            f"{stalled / hidden:.0f}",
            stalled >= 10 * hidden,
        ),
    ]
    tables = [
        table("Virtual clock, ms", ["queue", "measured", "closed form", "difference %"], rows),
        table(
            "Queues on the real clock, ms",
            [
                "queue",
                "requests",
                "measured",
                "closed form",
                "difference %",
                "against the same draws on the virtual clock %",
            ],
            clock,
        ),
        table(
            "Real clock",
            ["asked requests/s", "achieved / asked", "p99 schedule error ms"],
            [[r, round(a, 4), round(e, 3)] for r, a, e in errors],
        ),
    ]
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError:
        print("left out: MLPerf LoadGen (mlcommons-loadgen is not installed)")
    else:
        pairs = []
        with undisturbed() as alone:
            for _ in range(3):
                theirs, times = loadgen_percentiles(60.0, 0.01, 1200)
                pairs.append((own_percentiles(times, 0.01), theirs))
        own = [statistics.median(p[0][i] for p in pairs) for i in range(3)]
        peer = [statistics.median(p[1][i] for p in pairs) for i in range(3)]
        apart = max(abs(a / b - 1) for a, b in zip(own, peer, strict=True))
        goals.append(
            goal(
                "p50, p90, p99 against MLPerf LoadGen on the same stub (10 ms, 60/s)",
                "within 3 %",
                f"largest difference {apart:.1%}, medians of 3 interleaved runs",
                apart <= 0.03,
                "The same arrivals, replayed. Generator and stub of either have "
                + (
                    "real-time priority, so that other work on the two cores does not decide."
                    if alone
                    else "ordinary priority, so other work on the two cores shows."
                ),
            )
        )
        tables.append(
            table(
                "Stub of 10 ms at 60 requests/s, ms",
                ["generator", "p50", "p90", "p99"],
                [
                    ["migperf", *(round(v, 2) for v in own)],
                    ["MLPerf LoadGen", *(round(v, 2) for v in peer)],
                ],
            )
        )
    write(arguments.out, __file__, "Load generation", goals, tables, ("mlcommons-loadgen",))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--queue"]:
        print(json.dumps(real_queue(sys.argv[2])))
    else:
        main()
