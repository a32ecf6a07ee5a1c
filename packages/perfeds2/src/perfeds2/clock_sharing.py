"""First-A rounds over a band that all UEs on air share equally at every instant.

Processor sharing: with m UEs on air each has B / m; remaining bits are tracked exactly through
every change of m.
"""

from __future__ import annotations

import numpy as np

from . import _events as ev
from ._jobs import JobTable
from .channel import rate_bit_per_s
from .clock import Round
from .config import NO_BOUND, ExperimentConfig
from .errors import InfeasibleError, require
from .system import System

IDLE, COMPUTING, SENDING, DELIVERED = range(4)


class SharingClock(JobTable):
    """First-A rounds with processor sharing of the band.

    Parameters
    ----------
    system : System
        UEs; a coherence time is not supported here.
    config : ExperimentConfig
        `schedule` and `seed` are used.
    """

    _ARRAYS: tuple[str, ...] = (*JobTable._ARRAYS, "phase", "left", "arrival")

    def __init__(self, system: System, config: ExperimentConfig) -> None:
        require(
            system.config.coherence_s == 0,
            "system.coherence_s",
            system.config.coherence_s,
            "0 with bandwidth = 'processor_sharing'",
        )
        n = system.ues
        self.phase = np.full(n, IDLE, dtype=np.int64)
        self.left = np.zeros(n)
        self.arrival = np.zeros(n)
        super().__init__(system, config)

    def start(self, ue: int, version: int, time_s: float) -> None:
        """Give a UE the weights of a version and let it compute."""
        super().start(ue, version, time_s)
        self.phase[ue] = COMPUTING
        self.left[ue] = self.system.bits[ue]

    def next_round(self, max_events: int | None = None) -> Round | None:
        """Run to the end of the current round; None when the events ran out before."""
        limit = None if max_events is None else self.events + max_events
        while not self._may_close():
            if limit is not None and self.events >= limit:
                return None
            self.step()
        return self._close()

    def step(self) -> None:
        """Process one event: a UE gets ready, an upload ends, or churn."""
        sending = np.flatnonzero(self.phase == SENDING)
        computing = np.flatnonzero(self.phase == COMPUTING)
        now = self.time_s
        event = self.next_churn()
        next_churn = event[0] if event else np.inf
        next_ready = float(self.ready[computing].min()) if computing.size else np.inf
        rate = np.empty(0)
        next_end = np.inf
        if sending.size:
            share = self.system.config.bandwidth_hz / sending.size
            rate = rate_bit_per_s(share, self.snr_now[sending])
            with np.errstate(divide="ignore"):
                ends = now + self.left[sending] / rate
            next_end = float(ends.min())
        at = min(next_churn, next_ready, next_end)
        if at == np.inf:
            stuck = [*sending.tolist(), *computing.tolist()]
            raise InfeasibleError(
                f"round {self.round_index} at {now:.6g} s: "
                + (f"the upload of UE {stuck[0]} never ends" if stuck else "every UE has left")
                + "; set system.outage_probability or add a join to schedule.churn"
            )
        at = max(at, now)
        self.counters[3] += 1
        if sending.size:
            self.left[sending] = np.maximum(self.left[sending] - rate * (at - now), 0.0)
        self.now[0] = at
        if event and next_churn <= min(next_ready, next_end):
            self._apply(event)
        elif next_end <= next_ready:
            self._deliver(int(sending[np.flatnonzero(ends == next_end)[0]]))
        else:
            self.phase[computing[np.flatnonzero(self.ready[computing] == next_ready)[0]]] = SENDING

    def _deliver(self, ue: int) -> None:
        self.drop(ue)
        self.left[ue] = 0.0
        if self.lost(ue):
            self.counters[2] += 1
            self.start(ue, self.round_index, self.time_s)
        else:
            self.phase[ue] = DELIVERED
            self.arrival[ue] = self.time_s

    def _apply(self, event: tuple[float, int, int]) -> None:
        at, kind, ue = event
        self.counters[1] += 1
        in_flight = self.phase[ue] in (COMPUTING, SENDING)
        if kind == ev.JOIN and not self.alive[ue]:
            self.alive[ue] = True
            if self.phase[ue] == IDLE:
                self.start(ue, self.round_index, at)
        elif kind != ev.JOIN and self.alive[ue]:
            if in_flight:
                self.drop(ue)
                self.phase[ue] = IDLE
            if kind == ev.LEAVE:
                self.alive[ue] = False
            elif in_flight:
                self.counters[2] += 1
                self.start(ue, self.round_index, at)

    def _may_close(self) -> bool:
        s = self.config.schedule
        delivered = int(np.count_nonzero(self.phase == DELIVERED))
        in_flight = (self.phase == COMPUTING) | (self.phase == SENDING)
        if delivered == 0 or (delivered < s.participants and in_flight.any()):
            return False
        if s.staleness == NO_BOUND:
            return True
        return not np.any(in_flight & (self.round_index - self.version >= s.staleness))

    def _close(self) -> Round:
        ids = np.flatnonzero(self.phase == DELIVERED)
        ids = ids[np.lexsort((ids, self.arrival[ids]))]
        k = self.round_index
        result = Round(
            k,
            self.time_s,
            ids,
            self.version[ids].copy(),
            self.job[ids].copy(),
            self.arrival[ids].copy(),
            np.full(len(ids), np.nan),
        )
        for ue in ids.tolist():
            self.phase[ue] = IDLE
            if self.alive[ue]:
                self.start(ue, k + 1, self.time_s)
        self.counters[0] = k + 1
        return result
