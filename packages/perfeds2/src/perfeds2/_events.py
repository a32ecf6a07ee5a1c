"""Compiled event loop: independent uploads, first-A aggregation, hard staleness bound.

One 4-ary heap of (time, UE) pairs; a pair is stale (and skipped) when the UE's `due` time differs.
All state lives in the arrays passed in, so the loop may stop after any event and continue later.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from .rng import COMPUTE, FADING, FAILURE, uniform

# positions in the integer state vector
ROUND, HEAP, BUFFERED, MISSING, EVENTS, CHURN, FLYING, FAILED, OUTAGES = range(9)
STATE_SIZE = 9
# reasons to stop
RUNNING, ROUNDS_DONE, EVENTS_DONE, LOG_FULL, STARVED, NEVER, TIME_DONE = range(7)
FIXED, EXPONENTIAL, LOGNORMAL = range(3)
JOIN, LEAVE, FAIL = range(3)
IDLE = -1.0  # value of `due` without a job in flight


@nb.njit(cache=True, nogil=True, inline="always")
def _before(t1, u1, t2, u2):  # type: ignore[no-untyped-def]
    return t1 < t2 or (t1 == t2 and u1 < u2)


@nb.njit(cache=True, nogil=True)
def heap_push(ht, hu, size, t, u):  # type: ignore[no-untyped-def]
    """Insert (t, u); return the new size."""
    i = size
    while i > 0:
        p = (i - 1) >> 2
        if not _before(t, u, ht[p], hu[p]):
            break
        ht[i] = ht[p]
        hu[i] = hu[p]
        i = p
    ht[i] = t
    hu[i] = u
    return size + 1


@nb.njit(cache=True, nogil=True)
def heap_pop(ht, hu, size):  # type: ignore[no-untyped-def]
    """Drop the root; return the new size."""
    size -= 1
    if size > 0:
        _sink(ht, hu, size, 0, ht[size], hu[size])
    return size


@nb.njit(cache=True, nogil=True)
def _sink(ht, hu, size, i, t, u):  # type: ignore[no-untyped-def]
    while True:
        c = 4 * i + 1
        if c >= size:
            break
        best = c
        for d in range(c + 1, min(c + 4, size)):
            if _before(ht[d], hu[d], ht[best], hu[best]):
                best = d
        if not _before(ht[best], hu[best], t, u):
            break
        ht[i] = ht[best]
        hu[i] = hu[best]
        i = best
    ht[i] = t
    hu[i] = u


@nb.njit(cache=True, nogil=True)
def heapify(ht, hu, size):  # type: ignore[no-untyped-def]
    """Order the first `size` pairs as a heap."""
    for i in range((size - 2) // 4, -1, -1):
        _sink(ht, hu, size, i, ht[i], hu[i])


@nb.njit(cache=True, nogil=True)
def normal(seed, ue, purpose, job):  # type: ignore[no-untyped-def]
    """Draw a standard normal (Box-Muller)."""
    u = uniform(seed, ue, purpose, job, 0)
    v = uniform(seed, ue, purpose, job, 1)
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)


@nb.njit(cache=True, nogil=True)
def compute_seconds(seed, ue, job, mean_s, law, spread):  # type: ignore[no-untyped-def]
    """Compute time of one job."""
    if law == FIXED:
        return mean_s
    if law == EXPONENTIAL:
        return -mean_s * math.log(uniform(seed, ue, COMPUTE, job, 0))
    return mean_s * math.exp(spread * normal(seed, ue, COMPUTE, job) - 0.5 * spread * spread)


@nb.njit(cache=True, nogil=True)
def fade(seed, ue, job, fading, floor):  # type: ignore[no-untyped-def]
    """Power gain of the channel and the number of draws lost to outage before it."""
    if not fading:
        return 1.0, 0
    for attempt in range(1000):
        h = -math.log(uniform(seed, ue, FADING, job, attempt))
        if h >= floor:
            return h, attempt
    return 0.0, 1000


@nb.njit(cache=True, nogil=True)
def upload_seconds(  # type: ignore[no-untyped-def]
    seed, ue, job, start, bits, snr, band, fading, floor, retry_s, coherence_s
):
    """Seconds from ready to delivered, waits for outage included, and the number of outages.

    With a coherence time the channel is redrawn at every multiple of it, else once per upload;
    either way a block below the outage floor carries nothing.
    """
    if bits <= 0.0:
        return 0.0, 0
    if coherence_s <= 0.0:
        h, lost = fade(seed, ue, job, fading, floor)
        rate = band * math.log1p(snr * h / band) / math.log(2.0)
        if rate <= 0.0:
            return np.inf, lost
        return lost * retry_s + bits / rate, lost
    left = bits
    block = int(start / coherence_s)
    now = start
    lost = 0
    for _ in range(1_000_000):
        end = (block + 1) * coherence_s
        h = 1.0
        if fading:
            h = -math.log(uniform(seed, ue, FADING, block, 0))
        if h < floor:
            lost += 1
        else:
            rate = band * math.log1p(snr * h / band) / math.log(2.0)
            if rate * (end - now) >= left:
                return now + left / rate - start, lost
            left -= rate * (end - now)
        now = end
        block += 1
    return np.inf, lost


@nb.njit(cache=True, nogil=True)
def job_seconds(  # type: ignore[no-untyped-def]
    seed, ue, job, start, mean_s, law, spread, bits, snr, band, fading, floor, retry_s, coherence_s
):
    """Seconds from receiving the weights to having delivered the update, and the outages."""
    c = compute_seconds(seed, ue, job, mean_s, law, spread)
    up, lost = upload_seconds(
        seed, ue, job, start + c, bits, snr, band, fading, floor, retry_s, coherence_s
    )
    return c + up, lost


@nb.njit(cache=True, nogil=True)
def advance(  # type: ignore[no-untyped-def]
    seed, participants, staleness, restart_on_arrival,
    mean_s, law, spread, bits, snr, band, fading, floor, retry_s, coherence_s, failure_rate,
    churn_t, churn_u, churn_kind,
    state, clock, ht, hu, version, job, due, alive, flying, buffer_u, buffer_v, buffer_t, buffer_j,
    max_rounds, max_events, max_time, close_t, counts,
    log_t, log_u, log_v, log_j,
):  # fmt: skip
    """Process events until a limit is met; return (reason, log rows, rounds closed here).

    `flying[v]` counts jobs in flight on version v; it must have room for every round reached.
    """
    rows = 0
    closed = 0
    events = 0
    while True:
        k = state[ROUND]
        if k >= max_rounds or closed >= close_t.shape[0]:
            return ROUNDS_DONE, rows, closed
        ready = state[BUFFERED] >= participants or state[FLYING] == 0
        if state[BUFFERED] > 0 and state[MISSING] == 0 and ready:
            m = state[BUFFERED]
            if rows + m > log_t.shape[0]:
                return LOG_FULL, rows, closed
            restarted = 0
            for j in range(m):
                u = buffer_u[j]
                log_t[rows] = buffer_t[j]
                log_u[rows] = u
                log_v[rows] = buffer_v[j]
                log_j[rows] = buffer_j[j]
                rows += 1
                if not alive[u] or due[u] != IDLE:  # left, or already restarted on arrival
                    continue
                version[u] = k + 1
                job[u] += 1
                dur, lost = job_seconds(
                    seed, u, job[u], clock[0], mean_s[u], law, spread, bits[u], snr[u], band[u],
                    fading, floor, retry_s, coherence_s,
                )  # fmt: skip
                state[OUTAGES] += lost
                due[u] = clock[0] + dur
                state[HEAP] = heap_push(ht, hu, state[HEAP], due[u], u)
                restarted += 1
            flying[k + 1] += restarted
            state[FLYING] += restarted
            close_t[closed] = clock[0]
            counts[closed] = m
            closed += 1
            state[ROUND] = k + 1
            state[BUFFERED] = 0
            if staleness >= 0 and k + 1 - staleness >= 0:
                state[MISSING] = flying[k + 1 - staleness]
            continue
        if events >= max_events:
            return EVENTS_DONE, rows, closed
        while state[HEAP] > 0 and (not alive[hu[0]] or due[hu[0]] != ht[0]):
            state[HEAP] = heap_pop(ht, hu, state[HEAP])
        heap_time = ht[0] if state[HEAP] > 0 else np.inf
        churn_time = churn_t[state[CHURN]] if state[CHURN] < churn_t.shape[0] else np.inf
        if heap_time == np.inf and churn_time == np.inf:
            return (NEVER if state[HEAP] > 0 else STARVED), rows, closed
        if min(heap_time, churn_time) > max_time:
            return TIME_DONE, rows, closed
        events += 1
        state[EVENTS] += 1
        start = -1
        if churn_time <= heap_time:
            c = state[CHURN]
            state[CHURN] += 1
            clock[0] = churn_time
            u = churn_u[c]
            in_flight = alive[u] and due[u] != IDLE
            waits = False  # delivered and waiting for the round to close
            for j in range(state[BUFFERED]):
                waits = waits or (buffer_u[j] == u and not restart_on_arrival)
            if churn_kind[c] != JOIN and alive[u]:
                if in_flight:
                    flying[version[u]] -= 1
                    state[FLYING] -= 1
                    if staleness >= 0 and k - version[u] >= staleness:
                        state[MISSING] -= 1
                    due[u] = IDLE
                if churn_kind[c] == LEAVE:
                    alive[u] = False
                elif in_flight:
                    start = u
                    state[FAILED] += 1
            elif churn_kind[c] == JOIN and not alive[u]:
                alive[u] = True
                if not waits:
                    start = u
        else:
            u = hu[0]
            t = ht[0]
            state[HEAP] = heap_pop(ht, hu, state[HEAP])
            clock[0] = t
            v = version[u]
            flying[v] -= 1
            state[FLYING] -= 1
            if staleness >= 0 and k - v >= staleness:
                state[MISSING] -= 1
            lost_job = failure_rate > 0.0 and uniform(seed, u, FAILURE, job[u], 0) < failure_rate
            if lost_job:
                state[FAILED] += 1
                start = u
            else:
                j = state[BUFFERED]
                buffer_u[j] = u
                buffer_v[j] = v
                buffer_t[j] = t
                buffer_j[j] = job[u]
                state[BUFFERED] = j + 1
                due[u] = IDLE
                if restart_on_arrival and not (j + 1 >= participants):
                    start = u
        if start >= 0:
            u = start
            version[u] = k
            job[u] += 1
            dur, lost = job_seconds(
                seed, u, job[u], clock[0], mean_s[u], law, spread, bits[u], snr[u], band[u],
                fading, floor, retry_s, coherence_s,
            )  # fmt: skip
            state[OUTAGES] += lost
            due[u] = clock[0] + dur
            state[HEAP] = heap_push(ht, hu, state[HEAP], due[u], u)
            flying[k] += 1
            state[FLYING] += 1
            if staleness == 0:
                state[MISSING] += 1
