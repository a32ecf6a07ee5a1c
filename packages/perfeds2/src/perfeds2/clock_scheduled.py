"""Rounds with a scheduled set: the server picks who sends, splits the band, closes when all did.

At the start of a round it knows each UE's remaining compute time and channel. UEs outside the set
keep computing or wait with a finished update and do not transmit. Ours.
"""

from __future__ import annotations

import numpy as np

from . import _events as ev
from ._jobs import JobTable
from .bandwidth import allocate, equal_split, finishing_times, proportional_split
from .clock import Round
from .config import NO_BOUND, ExperimentConfig
from .errors import InfeasibleError, require
from .schedule import exact_round, greedy
from .system import System

SPLITS = {"equal": equal_split, "proportional": proportional_split, "optimal": allocate}


class ScheduledClock(JobTable):
    """Rounds closed by a scheduled set under `greedy`, `exact_round`, or everybody.

    Parameters
    ----------
    system : System
        UEs; a coherence time is not supported here (the channel is known for the whole round).
    config : ExperimentConfig
        `schedule` and `seed` are used.
    """

    def __init__(self, system: System, config: ExperimentConfig) -> None:
        require(
            system.config.coherence_s == 0,
            "system.coherence_s",
            system.config.coherence_s,
            "0 with a scheduler that allocates once per round",
        )
        super().__init__(system, config)

    def next_round(self, max_events: int | None = None) -> Round | None:
        """Schedule and run the current round; a scheduling decision counts as one event."""
        limit = None if max_events is None else self.events + max_events
        while limit is None or self.events < limit:
            self.counters[3] += 1
            self._churn_until(self.time_s)
            if not self.alive.any():
                event = self.next_churn()
                if event is None:
                    raise InfeasibleError(
                        f"round {self.round_index} at {self.time_s:.6g} s: every UE has left and "
                        "none joins; add a join to schedule.churn"
                    )
                self.now[0] = event[0]
                continue
            ids, finish, shares = self._pick()
            done = self._run(ids, finish, shares)
            if done is not None:
                return done
        return None

    def _pick(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Set, absolute finishing times and shares of this round."""
        s = self.config.schedule
        here = np.flatnonzero(self.alive)
        offset = np.maximum(self.ready[here] - self.time_s, 0.0)
        snr, bits = self.snr_now[here], self.system.bits[here]
        band = self.system.config.bandwidth_hz
        forced = np.array([], dtype=np.int64)
        if s.staleness != NO_BOUND:
            forced = np.flatnonzero(self.round_index - self.version[here] >= s.staleness)
        count = min(max(s.participants, len(forced)), len(here))
        if s.scheduling == "exact_round":
            found = exact_round(offset, snr, bits, band, count, forced.tolist())
            rows, shares = found.participants, found.bandwidth_hz
            finish = np.full(len(rows), found.finish_s)
        else:
            if count == len(here):
                rows = np.arange(len(here))
            else:
                rows = greedy(offset, snr, bits, band, count, forced.tolist())
            split = SPLITS[s.bandwidth](offset[rows], snr[rows], bits[rows], band)
            shares = split.bandwidth_hz
            if s.bandwidth == "optimal":
                finish = np.full(len(rows), split.finish_s)
            else:
                finish = finishing_times(shares, offset[rows], snr[rows], bits[rows])
        if not np.all(np.isfinite(finish)):
            ue = int(here[rows][np.flatnonzero(~np.isfinite(finish))[0]])
            raise InfeasibleError(
                f"round {self.round_index} waits for UE {ue}, whose upload never ends; set "
                "system.outage_probability or leave the UE out"
            )
        return here[rows], self.time_s + finish, shares

    def _run(self, ids: np.ndarray, finish: np.ndarray, shares: np.ndarray) -> Round | None:
        """Deliver the set; None when all of it was lost on the way."""
        order = np.lexsort((ids, finish))
        ids, finish, shares = ids[order], finish[order], shares[order]
        waiting = dict(zip(ids.tolist(), zip(finish.tolist(), shares.tolist())))
        close = float(finish[-1])
        self._churn_until(close, waiting)
        rows = []
        for ue, (time_s, share) in waiting.items():
            if self.lost(ue):
                self.counters[2] += 1
                self.drop(ue)
                self.start(ue, self.round_index, time_s)
            else:
                rows.append((time_s, ue, share))
        if rows:
            close = rows[-1][0]
        self.now[0] = max(close, self.time_s) if not rows else close
        if not rows:
            return None
        k = self.round_index
        ues = np.array([ue for _, ue, _ in rows], dtype=np.int64)
        result = Round(
            k,
            close,
            ues,
            self.version[ues].copy(),
            self.job[ues].copy(),
            np.array([t for t, _, _ in rows]),
            np.array([b for _, _, b in rows]),
        )
        for ue in ues.tolist():
            self.drop(ue)
            if self.alive[ue]:
                self.start(ue, k + 1, close)
        self.counters[0] = k + 1
        return result

    def _churn_until(
        self, time_s: float, waiting: dict[int, tuple[float, float]] | None = None
    ) -> None:
        """Apply joins, leaves and failures up to a time; a UE sending then is taken out."""
        while (event := self.next_churn()) is not None and event[0] <= time_s:
            at, kind, ue = event
            self.counters[1] += 1
            sent = waiting is not None and ue in waiting and waiting[ue][0] <= at
            if kind == ev.JOIN and not self.alive[ue]:
                self.alive[ue] = True
                if not sent:
                    self.start(ue, self.round_index, at)
            elif kind != ev.JOIN and self.alive[ue]:
                if kind == ev.LEAVE:
                    self.alive[ue] = False
                if sent:
                    continue
                self.drop(ue)
                if waiting is not None:
                    waiting.pop(ue, None)
                if kind == ev.FAIL:
                    self.counters[2] += 1
                    self.start(ue, self.round_index, at)
