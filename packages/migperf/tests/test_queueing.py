"""Queues against closed forms, on the virtual clock."""

from __future__ import annotations

import numpy as np
import pytest
from migperf import InputError
from migperf.loadgen.drive import virtual_open_loop
from migperf.queueing import (
    batch_queue,
    erlang_c,
    fifo_queue,
    md1_mean,
    md1_quantile,
    mg1_mean,
    mm1_mean,
    mm1_quantile,
    mmk_mean,
    mmk_quantile,
    rate_within_slo,
)

N = 1_000_000


def arrivals(rate: float, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, size=N))


@pytest.mark.parametrize("seed", [1, 2])
def test_mm1_mean_and_p99_within_two_percent(seed: int) -> None:
    services = np.random.default_rng(seed + 100).exponential(1 / 100, size=N)
    latency = virtual_open_loop(arrivals(70, seed), services).latency
    assert latency.mean() == pytest.approx(mm1_mean(70, 100), rel=0.02)
    assert np.quantile(latency, 0.99) == pytest.approx(mm1_quantile(70, 100, 0.99), rel=0.02)


def test_md1_mean_and_quantiles_within_two_percent() -> None:
    latency = virtual_open_loop(arrivals(80, 3), np.full(N, 0.01)).latency
    assert latency.mean() == pytest.approx(md1_mean(80, 100), rel=0.02)
    assert md1_mean(80, 100) == pytest.approx(0.030)
    for q in (0.3, 0.5, 0.9, 0.99):
        assert np.quantile(latency, q) == pytest.approx(md1_quantile(80, 100, q), rel=0.02)
    # Nobody waits with probability 1 - rho.
    assert md1_quantile(80, 100, 0.19) == pytest.approx(0.01)
    assert md1_quantile(80, 100, 0.21) > 0.01
    with pytest.raises(InputError, match="utilisation"):
        md1_quantile(100, 100, 0.5)


def test_mm4_mean_and_p99_within_two_percent() -> None:
    services = np.random.default_rng(5).exponential(1 / 25, size=N)
    latency = virtual_open_loop(arrivals(80, 6), services, servers=4).latency
    assert latency.mean() == pytest.approx(mmk_mean(80, 25, 4), rel=0.02)
    assert np.quantile(latency, 0.99) == pytest.approx(mmk_quantile(80, 25, 4, 0.99), rel=0.02)


def test_closed_forms_agree_with_each_other() -> None:
    assert mm1_quantile(80, 100, 0.99) * 1000 == pytest.approx(230.3, abs=0.05)
    assert mmk_mean(80, 100, 1) == pytest.approx(mm1_mean(80, 100))
    assert mmk_quantile(80, 100, 1, 0.99) == pytest.approx(mm1_quantile(80, 100, 0.99))
    # Exponential service has twice the squared mean as its second moment.
    assert mg1_mean(80, 0.01, 2e-4) == pytest.approx(mm1_mean(80, 100))
    # Erlang's own table: 2 servers, 1 erlang offered: C = 1/3.
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="utilisation"):
        mm1_mean(100, 100)


def test_lindley_equals_event_by_event() -> None:
    generator = np.random.default_rng(7)
    times = np.cumsum(generator.exponential(1.0, size=500))
    services = generator.exponential(0.9, size=500)
    expected, free = [], 0.0
    for arrival, service in zip(times, services, strict=True):
        free = max(free, arrival) + service
        expected.append(free - arrival)
    np.testing.assert_allclose(fifo_queue(times, services), expected)
    np.testing.assert_allclose(fifo_queue(times, services, servers=500), services)


def test_batching_takes_all_that_wait() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 5.0])
    # First alone until 1.0; then the three that wait, as one batch, until 3.0; then the last.
    latency = batch_queue(times, (1.0, 1.5, 2.0))
    np.testing.assert_allclose(latency, [1.0, 2.9, 2.8, 2.7, 1.0])
    np.testing.assert_allclose(batch_queue(times, (1.0,)), fifo_queue(times, np.full(5, 1.0)))


def test_rate_within_slo_inverts_the_queue() -> None:
    # The rate that just meets the p99 of a long run at 80/s must be 80/s again.
    service, rate = 0.01, 80.0
    times = np.cumsum(np.random.default_rng(11).exponential(1 / rate, size=N))
    p99 = float(np.quantile(fifo_queue(times, np.full(N, service)), 0.99))
    found = rate_within_slo((service,), p99, margin=0.0, requests=40000)
    assert found == pytest.approx(rate, rel=0.04)
    assert rate_within_slo((service,), 0.005) == 0.0
