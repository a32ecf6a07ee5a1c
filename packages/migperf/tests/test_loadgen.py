"""Arrivals, open loop against closed loop, search for the rate within a bound."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from migperf import Infeasible, InputError
from migperf.loadgen import arrivals
from migperf.loadgen.drive import closed_loop, open_loop, virtual_open_loop
from migperf.loadgen.slo import search_rate
from migperf.queueing import md1_mean, mm1_quantile
from scipy import stats as scipy_stats


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(arrivals.poisson(100.0, 200.0, seed=1))
    assert scipy_stats.kstest(gaps, "expon", args=(0, 0.01)).pvalue > 0.01


def test_gamma_has_the_asked_variation() -> None:
    gaps = np.diff(arrivals.gamma(100.0, 500.0, 2.0, seed=1))
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.05)
    assert 1 / gaps.mean() == pytest.approx(100.0, rel=0.05)


def test_mmpp_rate_is_the_weighted_mean() -> None:
    times = arrivals.mmpp(50.0, 450.0, 400.0, 3.0, 1.0, seed=2)
    assert times.size / 400 == pytest.approx((50 * 3 + 450 * 1) / 4, rel=0.15)
    counts = np.bincount(times.astype(int), minlength=400)
    assert counts.var() / counts.mean() > 5  # Poisson would be 1


def test_seeds_repeat() -> None:
    spec = {"poisson": 50}
    first = arrivals.from_spec(spec, 5.0, 7)
    np.testing.assert_array_equal(first, arrivals.from_spec(spec, 5.0, 7))
    assert not np.array_equal(first, arrivals.from_spec(spec, 5.0, 8))


@pytest.mark.parametrize(
    "spec", [{}, {"poisson": "x"}, {"poisson": 0}, {"gamma": 3}, {"constant": -1}, {"nope": 1},
             {"poisson": 3, "cv": 1}, {"mmpp": [1], "mean": [1, 2]}, {"trace": "/none"}],
)  # fmt: skip
def test_bad_arrivals_are_refused(spec: dict[str, object]) -> None:
    with pytest.raises(InputError):
        arrivals.from_spec(spec, 1.0, 0)


def test_trace_files(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("0.1\n0.2\n0.5\n")
    np.testing.assert_array_equal(arrivals.trace(path), [0.1, 0.2, 0.5])
    path.write_text("0.2\n0.1\n")
    with pytest.raises(InputError, match="ascending"):
        arrivals.trace(path)


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() -> None:
    """One second of stall: the open loop's p99 sees it, a closed loop's misses it tenfold."""
    times = arrivals.constant(200.0, 10.0)
    services = np.full(times.size, 0.001)
    services[600] = 1.0
    opened = float(np.quantile(virtual_open_loop(times, services).latency, 0.99))
    closed = float(np.quantile(services, 0.99))  # such a client only sees service times
    assert opened > 0.8
    assert opened >= 10 * closed


def test_open_loop_counts_from_the_schedule() -> None:
    gate = threading.Event()
    served: list[int] = []

    def serve(batch: int) -> None:
        if not served:
            gate.wait(10)
        served.append(batch)

    def release() -> None:
        gate.set()

    timer = threading.Timer(0.25, release)
    timer.start()
    result = open_loop(serve, arrivals.constant(100.0, 0.2), largest_batch=64)
    timer.join()
    assert result.rejected == 0
    assert sum(served) == 20
    # The first request holds the server until the gate opens; the last one waits from its own due
    # time on, not from when the server got to it.
    assert result.latency[0] >= 0.2
    assert np.all(result.done >= 0.2)
    assert np.all(result.latency >= 0.2 - result.scheduled - 0.005)
    assert result.goodput(10.0, 0.2) == pytest.approx(100.0)


def test_full_queue_rejects_and_does_not_block_the_clock() -> None:
    gate = threading.Event()
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    result = open_loop(
        lambda _: gate.wait(10) and None, arrivals.constant(1000.0, 0.1), queue_limit=5
    )
    timer.join()
    assert result.rejected >= 90
    assert np.isnan(result.sent).sum() == result.rejected


def test_failures_of_the_server_reach_the_caller() -> None:
    def serve(batch: int) -> None:
        raise ZeroDivisionError(batch)

    with pytest.raises(ZeroDivisionError):
        open_loop(serve, arrivals.constant(100.0, 0.1))


def test_closed_loop_ends_with_the_window() -> None:
    result = closed_loop(lambda _: time.sleep(0), 0.05)
    assert result.done[-2] <= 0.05 <= result.done[-1] + 0.05
    assert np.all(np.diff(result.done) >= 0)


def test_slo_search_finds_the_rate_of_mm1() -> None:
    def play(times: np.ndarray) -> object:
        services = np.random.default_rng(3).exponential(1 / 100, size=times.size)
        return virtual_open_loop(times, services)

    # p99 = ln(100) / (mu - lambda): a bound of 100 ms is met up to lambda = 100 - 46.05 = 53.95.
    found = search_rate(play, 0.1, duration=600.0, seed=1)  # type: ignore[arg-type]
    assert mm1_quantile(53.95, 100, 0.99) == pytest.approx(0.1, rel=1e-3)
    assert found.rate == pytest.approx(53.95, rel=0.06)
    assert found.latency <= 0.1
    with pytest.raises(Infeasible):
        search_rate(play, 1e-6, duration=5.0)  # type: ignore[arg-type]


def test_real_clock_agrees_with_the_virtual_one() -> None:
    """The threads of the real open loop keep the queue discipline of M/D/1 (loose: a busy host)."""
    times = arrivals.poisson(100.0, 1.5, seed=5)
    virtual = virtual_open_loop(times, np.full(times.size, 0.004)).latency
    deadline = 0.004

    def serve(_: int) -> None:
        end = time.perf_counter() + deadline
        while time.perf_counter() < end:
            pass

    real = open_loop(serve, times).latency
    assert real.size == virtual.size
    assert np.all(real >= deadline - 1e-4)
    assert md1_mean(100, 250) == pytest.approx(virtual.mean(), rel=0.25)
