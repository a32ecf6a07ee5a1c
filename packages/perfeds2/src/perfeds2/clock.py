"""Simulated time: which updates make up which round, and when.

The times do not depend on the weights, so the clock runs on its own (timing-only), ahead of the
training, or as a plan that another engine replays.

Semantics (ours; the paper's pseudo-code was not reachable): the server closes round k once A
updates have arrived since the last close, in the order (time, UE), and every UE whose staleness
k - v has reached S is among them. Only the round's UEs receive the new weights and start again;
nobody is interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from . import _events as ev
from .config import ExperimentConfig
from .errors import InfeasibleError, require
from .system import System

KINDS = {"join": ev.JOIN, "leave": ev.LEAVE, "fail": ev.FAIL}
LAWS = {"fixed": ev.FIXED, "exponential": ev.EXPONENTIAL, "lognormal": ev.LOGNORMAL}


@dataclass(frozen=True)
class Round:
    """One closed round; rows are in order of arrival.

    Attributes
    ----------
    index : int
        k, counted from 0.
    close_s : float
        Simulated time at which w_{k+1} exists.
    ues, versions, jobs : int arrays of shape (A_k,)
        Participants, the round whose weights they used, and their job numbers.
    arrival_s : float array of shape (A_k,)
        Arrival of each update.
    bandwidth_hz : float array of shape (A_k,)
        Share with which each update was sent (nan where it changed while sending).
    """

    index: int
    close_s: float
    ues: Int[np.ndarray, " A"]
    versions: Int[np.ndarray, " A"]
    jobs: Int[np.ndarray, " A"]
    arrival_s: Float[np.ndarray, " A"]
    bandwidth_hz: Float[np.ndarray, " A"]

    @property
    def staleness(self) -> Int[np.ndarray, " A"]:
        """Rounds by which each update is behind, counted from the version that was sent."""
        return self.index - self.versions


class Clock(Protocol):
    """What the engine needs from a clock."""

    version: Int[np.ndarray, " ues"]
    alive: Bool[np.ndarray, " ues"]

    @property
    def round_index(self) -> int:
        """Round that is open."""

    @property
    def time_s(self) -> float:
        """Time of the last event."""

    @property
    def events(self) -> int:
        """Events processed so far."""

    def next_round(self, max_events: int | None = None) -> Round | None:
        """Run to the end of the current round; None when the events ran out before."""

    def is_live(self, version: int) -> bool:
        """Tell whether a job in flight still uses these weights."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to continue, as arrays."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `state`."""


@dataclass(frozen=True)
class TimingLog:
    """Result of a timing-only run.

    Attributes
    ----------
    close_s, counts : arrays of shape (K,)
        End and size of each round.
    arrival_s, ues, versions, jobs : arrays of shape (updates,)
        Updates in the order in which they were used.
    events, failures, outages : int
        Events processed, updates lost, draws lost to outage.
    """

    close_s: Float[np.ndarray, " rounds"]
    counts: Int[np.ndarray, " rounds"]
    arrival_s: Float[np.ndarray, " updates"]
    ues: Int[np.ndarray, " updates"]
    versions: Int[np.ndarray, " updates"]
    jobs: Int[np.ndarray, " updates"]
    events: int = 0
    failures: int = 0
    outages: int = 0

    @property
    def rounds(self) -> Int[np.ndarray, " updates"]:
        """Round of each update."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def staleness(self) -> Int[np.ndarray, " updates"]:
        """Staleness of each update."""
        return np.asarray(self.rounds - self.versions)

    def participation(self, ues: int) -> Float[np.ndarray, " ues"]:
        """Relative participation eta_i, updates of each UE over rounds."""
        return np.bincount(self.ues, minlength=ues) / max(len(self.counts), 1)

    def __repr__(self) -> str:
        end = self.close_s[-1] if len(self.close_s) else 0.0
        return (
            f"TimingLog({len(self.counts)} rounds, {len(self.ues)} updates, {end:.4g} simulated s)"
        )


def static_shares(system: System, policy: str) -> Float[np.ndarray, " ues"]:
    """Share the band once: equally, or proportionally to bits over mean spectral efficiency."""
    band, n = system.config.bandwidth_hz, system.ues
    if policy == "equal":
        return np.full(n, band / n)
    need = system.bits / np.log2(1.0 + system.snr_hz / (band / n))
    return np.asarray(band * need / need.sum())


class IndependentClock:
    """First-A rounds over fixed shares: uploads do not influence each other. Compiled.

    Parameters
    ----------
    system : System
        UEs.
    config : ExperimentConfig
        `schedule` and `seed` are used.
    """

    def __init__(self, system: System, config: ExperimentConfig) -> None:
        s, c = config.schedule, system.config
        n = system.ues
        require(n == config.ues, "system", n, f"as many UEs as ues = {config.ues}")
        self.seed = config.seed
        self.participants = s.participants
        self.staleness = s.staleness
        self.restart_on_arrival = s.restart == "arrival"
        self.band = static_shares(system, s.bandwidth)
        self.mean_s = np.ascontiguousarray(system.compute_s, dtype=float)
        self.bits = np.ascontiguousarray(system.bits, dtype=float)
        self.snr = np.ascontiguousarray(system.snr_hz, dtype=float)
        self.laws = (LAWS[c.compute_law], c.compute_spread)
        self.radio = (c.fading, system.fading_floor, c.outage_retry_s, c.coherence_s)
        self.failure_rate = c.failure_rate
        require(
            bool(np.all(self.mean_s + self.bits > 0)),
            "compute_s",
            0.0,
            "a job that takes time: positive compute time or bits",
        )
        churn = sorted((t, KINDS[kind], ue) for t, ue, kind in s.churn)
        self.churn_t = np.array([t for t, _, _ in churn], dtype=float)
        self.churn_kind = np.array([k for _, k, _ in churn], dtype=np.int64)
        self.churn_u = np.array([u for _, _, u in churn], dtype=np.int64)
        self._start(n, late_joiners(s.churn))

    def _start(self, n: int, late: set[int]) -> None:
        self.counters = np.zeros(ev.STATE_SIZE, dtype=np.int64)
        self.now = np.zeros(1)
        room = n + len(self.churn_t) + 1
        self.heap_t = np.full(room, np.inf)
        self.heap_u = np.zeros(room, dtype=np.int64)
        self.version = np.zeros(n, dtype=np.int64)
        self.job = np.zeros(n, dtype=np.int64)
        self.due = np.full(n, ev.IDLE)
        self.alive = np.ones(n, dtype=np.bool_)
        self.alive[list(late)] = False
        self.flying = np.zeros(1024, dtype=np.int64)
        self.buffer_u = np.zeros(n, dtype=np.int64)
        self.buffer_v = np.zeros(n, dtype=np.int64)
        self.buffer_t = np.zeros(n)
        self.buffer_j = np.zeros(n, dtype=np.int64)
        started, outages = _start_jobs(
            self.seed, self.mean_s, *self.laws, self.bits, self.snr, self.band, *self.radio,
            self.alive, self.due, self.heap_t, self.heap_u,
        )  # fmt: skip
        self.counters[ev.HEAP] = self.counters[ev.FLYING] = self.flying[0] = started
        self.counters[ev.OUTAGES] = outages
        if self.staleness == 0:
            self.counters[ev.MISSING] = started

    @property
    def round_index(self) -> int:
        """Round that is open."""
        return int(self.counters[ev.ROUND])

    @property
    def time_s(self) -> float:
        """Time of the last event."""
        return float(self.now[0])

    def advance(
        self, rounds: int, max_events: int | None = None, max_time_s: float = np.inf
    ) -> TimingLog:
        """Close up to `rounds` more rounds, or stop after `max_events` events or a time.

        Raises
        ------
        InfeasibleError
            When no UE is left, or the round waits for an upload that never ends.
        """
        goal = self.round_index + rounds
        if goal + 2 > len(self.flying):
            grown = np.zeros(max(goal + 2, 2 * len(self.flying)), dtype=np.int64)
            grown[: len(self.flying)] = self.flying
            self.flying = grown
        close = np.empty(rounds)
        counts = np.empty(rounds, dtype=np.int64)
        room = max(len(self.version), min(rounds * self.participants, 1 << 22))
        parts: list[tuple[np.ndarray, ...]] = []
        before = self.counters.copy()
        done = 0
        left = 1 << 62 if max_events is None else max_events
        while True:
            log = (
                np.empty(room),
                np.empty(room, dtype=np.int64),
                np.empty(room, dtype=np.int64),
                np.empty(room, dtype=np.int64),
            )
            events = int(self.counters[ev.EVENTS])
            reason, rows, closed = ev.advance(
                self.seed, self.participants, self.staleness, self.restart_on_arrival,
                self.mean_s, *self.laws, self.bits, self.snr, self.band, *self.radio,
                self.failure_rate, self.churn_t, self.churn_u, self.churn_kind,
                self.counters, self.now, self.heap_t, self.heap_u, self.version, self.job,
                self.due, self.alive, self.flying, self.buffer_u, self.buffer_v, self.buffer_t,
                self.buffer_j, goal, left, max_time_s, close[done:], counts[done:], *log,
            )  # fmt: skip
            left -= int(self.counters[ev.EVENTS]) - events
            parts.append(tuple(column[:rows].copy() for column in log))
            done += closed
            if reason != ev.LOG_FULL:
                break
        if reason in (ev.STARVED, ev.NEVER):
            raise InfeasibleError(self._why(reason))
        t, u, v, j = (np.concatenate(columns) for columns in zip(*parts))
        gain = self.counters - before
        return TimingLog(
            close[:done], counts[:done], t, u, v, j,
            int(gain[ev.EVENTS]), int(gain[ev.FAILED]), int(gain[ev.OUTAGES]),
        )  # fmt: skip

    def _why(self, reason: int) -> str:
        if reason == ev.STARVED:
            return (
                f"round {self.round_index} at {self.time_s:.6g} s: every UE has left and none "
                "joins; add a join to schedule.churn"
            )
        ue = int(np.flatnonzero(np.isinf(self.due) & self.alive)[0])
        return (
            f"round {self.round_index} waits for UE {ue}, whose upload never ends (deep fade or "
            "no channel); set system.outage_probability or leave the UE out"
        )

    @property
    def events(self) -> int:
        """Events processed so far."""
        return int(self.counters[ev.EVENTS])

    def next_round(self, max_events: int | None = None) -> Round | None:
        """Run to the end of the current round; None when the events ran out before."""
        index = self.round_index
        log = self.advance(1, max_events)
        if not len(log.close_s):
            return None
        return Round(
            index, float(log.close_s[0]), log.ues, log.versions, log.jobs, log.arrival_s,
            self.band[log.ues],
        )  # fmt: skip

    def is_live(self, version: int) -> bool:
        """Tell whether a job in flight still uses these weights."""
        return bool(self.flying[version] > 0)

    _ARRAYS = (
        "counters", "now", "heap_t", "heap_u", "version", "job", "due", "alive", "flying",
        "buffer_u", "buffer_v", "buffer_t", "buffer_j",
    )  # fmt: skip

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to continue, as arrays (valid after any event)."""
        return {name: getattr(self, name).copy() for name in self._ARRAYS}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `state`."""
        for name in self._ARRAYS:
            setattr(self, name, np.array(state[name]))


def late_joiners(churn: tuple[tuple[float, int, str], ...]) -> set[int]:
    """UEs whose first event is a join: they are absent at the start.

    Examples
    --------
    >>> sorted(late_joiners(((5.0, 3, "join"), (1.0, 2, "leave"), (4.0, 2, "join"))))
    [3]
    """
    first: dict[int, str] = {}
    for _, ue, kind in sorted(churn):
        first.setdefault(ue, kind)
    return {ue for ue, kind in first.items() if kind == "join"}


@ev.nb.njit(cache=True, nogil=True)
def _start_jobs(  # type: ignore[no-untyped-def]
    seed, mean_s, law, spread, bits, snr, band, fading, floor, retry_s, coherence_s,
    alive, due, heap_t, heap_u,
):  # fmt: skip
    size = 0
    outages = 0
    for u in range(alive.shape[0]):
        if alive[u]:
            due[u], lost = ev.job_seconds(
                seed, u, 0, 0.0, mean_s[u], law, spread, bits[u], snr[u], band[u], fading, floor,
                retry_s, coherence_s,
            )  # fmt: skip
            heap_t[size] = due[u]
            heap_u[size] = u
            outages += lost
            size += 1
    ev.heapify(heap_t, heap_u, size)
    return size, outages


def make_clock(system: System, config: ExperimentConfig) -> Clock:
    """Clock that the experiment's scheduling and bandwidth ask for."""
    from .clock_scheduled import ScheduledClock
    from .clock_sharing import SharingClock

    s = config.schedule
    if s.bandwidth == "processor_sharing":
        return SharingClock(system, config)
    if s.scheduling != "arrival" or s.bandwidth == "optimal":
        return ScheduledClock(system, config)
    return IndependentClock(system, config)
