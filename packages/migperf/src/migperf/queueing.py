"""Queues: closed forms, and a fast simulation of a server that batches.

Times are in seconds, rates per second.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from .errors import InputError

__all__ = [
    "batch_queue",
    "erlang_c",
    "fifo_queue",
    "md1_mean",
    "md1_quantile",
    "mg1_mean",
    "mm1_mean",
    "mm1_quantile",
    "mmk_mean",
    "mmk_quantile",
    "rate_within_slo",
]


def _stable(rho: float) -> None:
    if not 0 <= rho < 1:
        raise InputError.of("utilisation", rho, "0 <= rho < 1, or the queue grows without bound")


def mm1_mean(arrival_rate: float, service_rate: float) -> float:
    """Mean sojourn time of M/M/1: ``1 / (mu - lambda)``.

    Examples
    --------
    >>> round(mm1_mean(80, 100) * 1000, 1)
    50.0
    """
    _stable(arrival_rate / service_rate)
    return 1.0 / (service_rate - arrival_rate)


def mm1_quantile(arrival_rate: float, service_rate: float, q: float) -> float:
    """Quantile of the M/M/1 sojourn time, which is exponential with rate ``mu - lambda``.

    Examples
    --------
    >>> round(mm1_quantile(80, 100, 0.99) * 1000, 1)
    230.3
    """
    _stable(arrival_rate / service_rate)
    return -math.log1p(-q) / (service_rate - arrival_rate)


def mg1_mean(arrival_rate: float, mean_service: float, second_moment: float) -> float:
    """Mean sojourn time of M/G/1 (Pollaczek-Khinchine)."""
    rho = arrival_rate * mean_service
    _stable(rho)
    return mean_service + arrival_rate * second_moment / (2 * (1 - rho))


def md1_mean(arrival_rate: float, service_rate: float) -> float:
    """Mean sojourn time of M/D/1: ``1/mu + rho / (2 mu (1 - rho))``.

    Examples
    --------
    >>> round(md1_mean(80, 100) * 1000, 1)
    30.0
    """
    service = 1.0 / service_rate
    return mg1_mean(arrival_rate, service, service * service)


def md1_quantile(arrival_rate: float, service_rate: float, q: float) -> float:
    """Quantile of the M/D/1 sojourn time, by bisection on its distribution function.

    With ``Q_m`` the probability that at most ``m`` requests wait and ``D`` the service time,
    ``P(W <= k D - u) = exp(-lambda u) sum_j Q_{k-1-j} (lambda u)^j / j!`` for ``0 <= u < D``
    (Franx, A simple solution for the M/D/c waiting time distribution, 2001, with c = 1).

    Examples
    --------
    >>> round(md1_quantile(80, 100, 0.99) * 1000, 1)  # M/M/1 has 230.3
    113.6
    """
    load = arrival_rate / service_rate
    _stable(load)
    service = 1.0 / service_rate
    if load == 0:
        return service
    # Number in the system after a departure, by level crossing: every term is positive.
    arrivals = [math.exp(-load)]
    while arrivals[-1] > 1e-18 or len(arrivals) < 4:
        arrivals.append(arrivals[-1] * load / len(arrivals))
    above = [math.fsum(arrivals[k + 1 :]) for k in range(len(arrivals))]
    present = [1 - load]
    while math.fsum(present) < 1 - (1 - q) * 1e-6:
        j = len(present)
        flow = present[0] * above[j - 1] if j <= len(above) else 0.0
        flow += math.fsum(present[i] * above[j - i] for i in range(max(1, j - len(above) + 1), j))
        present.append(flow / arrivals[0])
    waiting = np.minimum(np.cumsum(present)[1:], 1.0)  # Q_0, Q_1, ...

    def distribution(time: float) -> float:
        k = math.floor(time / service) + 1
        lack = arrival_rate * (k * service - time)
        term, total = math.exp(-lack), 0.0
        for j in range(k):
            total += term * float(waiting[min(k - 1 - j, waiting.size - 1)])
            term *= lack / (j + 1)
        return total

    if distribution(0.0) >= q:
        return service
    low, high = 0.0, service
    while distribution(high) < q:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle) < q else (low, middle)
    return high + service


def erlang_c(servers: int, offered: float) -> float:
    """Probability that a request waits in M/M/k (Erlang C).

    Parameters
    ----------
    servers : int
        k.
    offered : float
        ``lambda / mu``, below k.

    Examples
    --------
    >>> round(erlang_c(1, 0.8), 6)
    0.8
    """
    _stable(offered / servers)
    blocking = 1.0
    for n in range(1, servers + 1):
        blocking = offered * blocking / (n + offered * blocking)
    rho = offered / servers
    return blocking / (1 - rho * (1 - blocking))


def mmk_mean(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Mean sojourn time of M/M/k."""
    waiting = erlang_c(servers, arrival_rate / service_rate)
    return 1 / service_rate + waiting / (servers * service_rate - arrival_rate)


def mmk_quantile(arrival_rate: float, service_rate: float, servers: int, q: float) -> float:
    """Quantile of the M/M/k sojourn time, by bisection on its distribution function."""
    waiting = erlang_c(servers, arrival_rate / service_rate)
    drain = servers * service_rate - arrival_rate
    mu = service_rate

    def survival(t: float) -> float:
        if abs(drain - mu) < 1e-12 * mu:
            return math.exp(-mu * t) * (1 + waiting * mu * t)
        tail = drain * math.exp(-mu * t) - mu * math.exp(-drain * t)
        return (1 - waiting) * math.exp(-mu * t) + waiting * tail / (drain - mu)

    low, high = 0.0, 1.0 / mu
    while survival(high) > 1 - q:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if survival(middle) > 1 - q else (low, middle)
    return high


def fifo_queue(
    arrivals: Float[np.ndarray, " n"],
    services: Float[np.ndarray, " n"],
    servers: int = 1,
) -> Float[np.ndarray, " n"]:
    """Sojourn times of a first-come-first-served queue with identical servers.

    Parameters
    ----------
    arrivals : array, shape (n,), seconds
        Ascending.
    services : array, shape (n,), seconds
        Service time of each request.
    servers : int
        Number of servers.

    Returns
    -------
    array, shape (n,), seconds
        Completion minus arrival.
    """
    if servers == 1:
        # Lindley's recursion, W_n = max(0, W_{n-1} + S_{n-1} - A_n), as a running minimum.
        steps = np.concatenate(([0.0], services[:-1] - np.diff(arrivals)))
        walk = np.cumsum(steps)
        return np.asarray(walk - np.minimum.accumulate(np.minimum(walk, 0.0)) + services)
    free = [0.0] * servers
    out = np.empty_like(arrivals)
    for i, (arrival, service) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        done = max(arrival, free[0]) + service
        heapq.heapreplace(free, done)
        out[i] = done - arrival
    return out


def batch_queue(
    arrivals: Float[np.ndarray, " n"], service_of_batch: Sequence[float]
) -> Float[np.ndarray, " n"]:
    """Sojourn times at one server that takes all waiting requests at once, up to a largest batch.

    Parameters
    ----------
    arrivals : array, shape (n,), seconds
        Ascending.
    service_of_batch : sequence of float, seconds
        Entry ``i`` is the service time of a batch of ``i + 1``; its length is the largest batch.

    Returns
    -------
    array, shape (n,), seconds
        Completion minus arrival.
    """
    times = arrivals.tolist()
    total = len(times)
    largest = len(service_of_batch)
    if largest == 1:
        return fifo_queue(arrivals, np.full(total, service_of_batch[0]))
    out = np.empty(total)
    now, first = 0.0, 0
    while first < total:
        now = max(now, times[first])
        last = first + 1
        while last < total and last - first < largest and times[last] <= now:
            last += 1
        now += service_of_batch[last - first - 1]
        out[first:last] = now
        first = last
    return np.asarray(out - arrivals)


def rate_within_slo(
    service_of_batch: Sequence[float],
    slo: float,
    *,
    quantile: float = 0.99,
    requests: int = 20000,
    seeds: int = 5,
    margin: float = 0.08,
) -> float:
    """Largest Poisson rate at which the latency quantile of a batching server meets a bound.

    Bisection over the rate with common random numbers: the same unit exponentials, scaled, for
    every rate and seed. The worst of the seeds decides; a margin is taken off the bound and off the
    rate, so that other runs of the same length meet the bound as well.

    Parameters
    ----------
    service_of_batch : sequence of float, seconds
        See `batch_queue`.
    slo : float, seconds
        Bound on the quantile.
    quantile : float
        Such as 0.99.
    requests, seeds : int
        Length and number of the simulated runs.
    margin : float
        Share of the bound, and half of it as a share of the rate, given away for safety.

    Returns
    -------
    float
        Rate per second; 0 where even a single request misses the bound.
    """
    if service_of_batch[0] > slo:
        return 0.0
    gaps = [np.cumsum(np.random.default_rng(s).exponential(size=requests)) for s in range(seeds)]

    def meets(rate: float) -> bool:
        return all(
            float(np.quantile(batch_queue(gap / rate, service_of_batch), quantile))
            <= slo * (1 - margin)
            for gap in gaps
        )

    return (1 - margin / 2) * bisect_rate(meets, max(
        (i + 1) / t for i, t in enumerate(service_of_batch)
    ))  # fmt: skip


def bisect_rate(meets: Callable[[float], bool], capacity: float, steps: int = 14) -> float:
    """Largest rate in (0, capacity] that passes a monotone test, to `steps` halvings."""
    low, high = 0.0, capacity
    if meets(capacity):
        return capacity
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
