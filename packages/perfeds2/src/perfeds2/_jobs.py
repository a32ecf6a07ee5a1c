"""Jobs of the clocks written in Python: the same draws as the compiled event loop."""

from __future__ import annotations

import numpy as np

from . import _events as ev
from .clock import KINDS, LAWS, late_joiners
from .config import ExperimentConfig
from .rng import FAILURE, uniform
from .system import System


class JobTable:
    """Versions, job numbers and ready times of all UEs, with churn."""

    _ARRAYS: tuple[str, ...] = (
        "now",
        "counters",
        "version",
        "job",
        "ready",
        "snr_now",
        "alive",
        "flying",
    )

    def __init__(self, system: System, config: ExperimentConfig) -> None:
        self.system = system
        self.config = config
        self.seed = config.seed
        n = system.ues
        self.now = np.zeros(1)
        # round, position in the churn list, failures, events
        self.counters = np.zeros(4, dtype=np.int64)
        self.version = np.zeros(n, dtype=np.int64)
        self.job = np.full(n, -1, dtype=np.int64)
        self.ready = np.zeros(n)
        self.snr_now = np.zeros(n)
        self.alive = np.ones(n, dtype=np.bool_)
        self.alive[list(late_joiners(config.schedule.churn))] = False
        self.flying = np.zeros(1024, dtype=np.int64)
        self.churn = sorted((t, KINDS[kind], ue) for t, ue, kind in config.schedule.churn)
        for ue in np.flatnonzero(self.alive):
            self.start(int(ue), 0, 0.0)

    @property
    def round_index(self) -> int:
        """Round that is open."""
        return int(self.counters[0])

    @property
    def time_s(self) -> float:
        """Time of the last event."""
        return float(self.now[0])

    @property
    def events(self) -> int:
        """Events processed so far."""
        return int(self.counters[3])

    def start(self, ue: int, version: int, time_s: float) -> None:
        """Give a UE the weights of a version and let it compute."""
        c = self.system.config
        self.version[ue] = version
        self.job[ue] += 1
        job = int(self.job[ue])
        gain, lost = ev.fade(self.seed, ue, job, c.fading, self.system.fading_floor)
        self.snr_now[ue] = self.system.snr_hz[ue] * gain
        self.ready[ue] = (
            time_s
            + ev.compute_seconds(
                self.seed, ue, job, self.system.compute_s[ue], LAWS[c.compute_law], c.compute_spread
            )
            + lost * c.outage_retry_s
        )
        if version >= len(self.flying):
            grown = np.zeros(2 * len(self.flying), dtype=np.int64)
            grown[: len(self.flying)] = self.flying
            self.flying = grown
        self.flying[version] += 1

    def drop(self, ue: int) -> None:
        """Take a job out of flight (delivered, lost or left)."""
        self.flying[self.version[ue]] -= 1

    def lost(self, ue: int) -> bool:
        """Is this delivery lost at random."""
        rate = self.system.config.failure_rate
        return rate > 0 and uniform(self.seed, ue, FAILURE, int(self.job[ue]), 0) < rate

    def next_churn(self) -> tuple[float, int, int] | None:
        """Next join, leave or fail."""
        at = int(self.counters[1])
        return self.churn[at] if at < len(self.churn) else None

    def is_live(self, version: int) -> bool:
        """Tell whether a job in flight still uses these weights."""
        return bool(self.flying[version] > 0)

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to continue, as arrays."""
        return {name: getattr(self, name).copy() for name in self._ARRAYS}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `state`."""
        for name in self._ARRAYS:
            setattr(self, name, np.array(state[name]))
