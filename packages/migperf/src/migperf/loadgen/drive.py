"""Drive a system under load: open loop without coordinated omission, and closed loop."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..queueing import batch_queue, fifo_queue

__all__ = ["LoadResult", "closed_loop", "open_loop", "virtual_open_loop"]

Times = Float[np.ndarray, " n"]
_SPIN_SECONDS = 0.0001


@dataclass(frozen=True)
class LoadResult:
    """Times of every request, in seconds since the start of the window.

    Parameters
    ----------
    scheduled, sent, started, done : array, shape (n,)
        When a request was due, handed over, taken up and finished; NaN where it was rejected.
    real_time : bool
        Whether the thread that hands requests over had real-time priority.
    """

    scheduled: Times
    sent: Times
    started: Times
    done: Times
    real_time: bool = False

    def __repr__(self) -> str:
        return f"LoadResult({self.scheduled.size} requests, {self.rejected} rejected)"

    @property
    def latency(self) -> Times:
        """Done minus scheduled of the served requests: what a client waits."""
        served = ~np.isnan(self.done)
        return np.asarray((self.done - self.scheduled)[served])

    @property
    def lag(self) -> Times:
        """Sent minus scheduled: the error of the load generator itself."""
        return np.asarray((self.sent - self.scheduled)[~np.isnan(self.sent)])

    @property
    def rejected(self) -> int:
        """Requests that found the queue full."""
        return int(np.isnan(self.done).sum())

    def goodput(self, slo: float, duration: float) -> float:
        """Count the requests per second that were served within `slo` seconds."""
        return float((self.latency <= slo).sum()) / duration


def _wait_until(deadline: float, spin: float = _SPIN_SECONDS) -> None:
    remaining = deadline - time.perf_counter()
    if remaining > spin:
        time.sleep(remaining - spin)
    while time.perf_counter() < deadline:
        time.sleep(0)


@contextmanager
def _real_time(wanted: bool) -> Iterator[bool]:
    """Give the calling thread the lowest real-time priority, where the system allows it.

    A thread that sleeps until the next arrival then gets its core at once, also on a loaded
    machine. Threads and processes started meanwhile do not inherit it.
    """
    if not wanted or not hasattr(os, "SCHED_RESET_ON_FORK"):
        yield False
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, policy, parameters)


def open_loop(
    serve: Callable[[int], None],
    arrivals: Times,
    *,
    servers: int = 1,
    largest_batch: int = 1,
    queue_limit: int | None = None,
    start: float | None = None,
    real_time: bool = True,
) -> LoadResult:
    """Issue requests at their scheduled times, whatever the server does.

    Parameters
    ----------
    serve : callable
        Serves a batch of the given size and returns when it is done.
    arrivals : array, shape (n,), seconds
        Ascending times since the start.
    servers : int
        Threads that call `serve`.
    largest_batch : int
        A server takes up to so many waiting requests at once.
    queue_limit : int, optional
        Requests that find so many waiting are rejected; the clock is never blocked.
    start : float, optional
        Value of ``time.perf_counter()`` at which the window begins; default now.
    real_time : bool
        Hand requests over at real-time priority, where this process may; the servers keep theirs.

    Returns
    -------
    LoadResult
        Latency counts from the scheduled time.
    """
    if servers < 1 or largest_batch < 1:
        raise InputError.of("servers, largest_batch", (servers, largest_batch), "integers >= 1")
    count = arrivals.size
    sent, started, done = (np.full(count, np.nan) for _ in range(3))
    waiting: deque[int] = deque()
    ready = threading.Condition()
    finished = False
    failures: list[BaseException] = []
    origin = time.perf_counter() if start is None else start

    def work() -> None:
        while True:
            with ready:
                while not waiting and not finished:
                    ready.wait()
                if not waiting:
                    return
                taken = [waiting.popleft() for _ in range(min(largest_batch, len(waiting)))]
            now = time.perf_counter() - origin
            try:
                serve(len(taken))
            except BaseException as error:  # handed to the caller's thread below
                failures.append(error)
                with ready:
                    waiting.clear()
                return
            after = time.perf_counter() - origin
            started[taken], done[taken] = now, after

    threads = [threading.Thread(target=work, daemon=True) for _ in range(servers)]
    for thread in threads:
        thread.start()
    with _real_time(real_time) as prompt:
        # Spinning at real-time priority could starve the servers of a core that both share.
        spin = 0.0 if prompt else _SPIN_SECONDS
        for index, due in enumerate(arrivals.tolist()):
            _wait_until(origin + due, spin)
            if failures:
                break
            with ready:
                if queue_limit is None or len(waiting) < queue_limit:
                    waiting.append(index)
                    sent[index] = time.perf_counter() - origin
                    ready.notify()
    with ready:
        finished = True
        ready.notify_all()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return LoadResult(arrivals, sent, started, done, prompt)


def closed_loop(
    serve: Callable[[int], None], duration: float, *, batch: int = 1, start: float | None = None
) -> LoadResult:
    """Send the next batch when the last one is done, for `duration` seconds.

    A stall of the server stops the clock of such a client, so its percentiles hide it; use it for
    throughput.
    """
    origin = time.perf_counter() if start is None else start
    _wait_until(origin)
    started, done = [], []
    now = time.perf_counter() - origin
    while now < duration:
        started.append(now)
        serve(batch)
        now = time.perf_counter() - origin
        done.append(now)
    begin, end = np.array(started), np.array(done)
    return LoadResult(begin, begin, begin, end)


def virtual_open_loop(
    arrivals: Times,
    services: Times | None = None,
    *,
    servers: int = 1,
    service_of_batch: tuple[float, ...] | None = None,
) -> LoadResult:
    """Play the open loop on a virtual clock: the same queue discipline, no waiting.

    Parameters
    ----------
    arrivals : array, shape (n,), seconds
        Ascending.
    services : array, shape (n,), seconds
        Service time of each request, where requests are served one by one.
    servers : int
        Number of servers.
    service_of_batch : tuple of float, seconds
        Instead of `services`: service time of a batch of 1, 2, ...
    """
    if (services is None) == (service_of_batch is None):
        raise InputError("services: give exactly one of services and service_of_batch")
    if services is not None:
        sojourn = fifo_queue(arrivals, services, servers)
        started = arrivals + sojourn - services
    else:
        assert service_of_batch is not None
        if servers != 1:
            raise InputError.of("servers", servers, "1 with service_of_batch")
        sojourn = batch_queue(arrivals, service_of_batch)
        started = np.full(arrivals.size, np.nan)
    return LoadResult(arrivals, arrivals, started, arrivals + sojourn)
