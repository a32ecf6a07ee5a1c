"""Choose the number of participants: rounds to a gradient norm, times the length of a round.

The bound sets the step of every candidate and guarantees a number of rounds. Guarantees compare
badly, because their slack differs between candidates, so the choice goes by the expected rounds at
that step. Along gradient flow beta sum_k ||grad F(w_k)||^2 = F(w_0) - F*; half of the first term is
added for the difference between sum and integral, and the stationary noise beta L sigma^2 / (2 A)
is taken off the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .clock import make_clock
from .config import ExperimentConfig
from .errors import InfeasibleError, require
from .system import System
from .theory import Constants, rounds_needed


@dataclass(frozen=True)
class Candidate:
    """One number of participants.

    Attributes
    ----------
    participants : int
        A.
    staleness : float
        Largest (or mean) staleness the clock showed.
    step : float
        Best step of the bound.
    rounds : float
        Rounds the bound guarantees to suffice at that step.
    expected_rounds : float
        Rounds expected at that step.
    round_s : float
        Mean length of a round in simulated seconds.
    """

    participants: int
    staleness: float
    step: float
    rounds: float
    expected_rounds: float
    round_s: float

    @property
    def seconds(self) -> float:
        """Expected simulated seconds."""
        return self.expected_rounds * self.round_s

    @property
    def guaranteed_s(self) -> float:
        """Simulated seconds of the guaranteed rounds."""
        return self.rounds * self.round_s


@dataclass(frozen=True)
class Tuning:
    """Result of `tune_participants`; `best` has the fewest expected seconds."""

    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """Candidate with the fewest expected seconds; the larger A on a tie."""
        return min(self.candidates, key=lambda c: (c.seconds, -c.participants))

    def to_json(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "best": self.best.participants,
            "candidates": [
                {**asdict(c), "seconds": c.seconds, "guaranteed_s": c.guaranteed_s}
                for c in self.candidates
            ],
        }


def measure_rounds(
    system: System, config: ExperimentConfig, rounds: int | None = None
) -> tuple[float, int, float]:
    """Mean round length in seconds, largest and mean staleness, by running the clock alone."""
    count = rounds or max(50, 10 * -(-config.ues // config.schedule.participants))
    clock = make_clock(system, config)
    worst, total, updates = 0, 0, 0
    for _ in range(count):
        closed = clock.next_round()
        if closed is None:
            raise InfeasibleError("the clock stopped before the rounds were closed")
        worst = max(worst, int(closed.staleness.max()))
        total += int(closed.staleness.sum())
        updates += len(closed.ues)
    return clock.time_s / count, worst, total / updates


def tune_participants(
    system: System,
    config: ExperimentConfig,
    constants: Constants,
    epsilon: float,
    participants: Sequence[int] | None = None,
    staleness: str = "max",
) -> Tuning:
    """Choose the number of participants that reaches a gradient norm soonest.

    Parameters
    ----------
    system : System
        UEs.
    config : ExperimentConfig
        Experiment; everything but ``schedule.participants`` is kept. A staleness bound too small
        for a candidate leaves that candidate out.
    constants : Constants
        L, sigma^2, gamma^2 and F(w) (taken as F(w_0) - F*).
    epsilon : float
        Target of the mean squared gradient norm.
    participants : sequence of int, optional
        Candidates; all 1..n by default up to 32 UEs, about 20 spread values above.
    staleness : {"max", "mean"}
        ``max`` uses the bound as it is proved. ``mean`` puts the mean staleness in place of S: a
        rule of thumb, no theorem, that is closer to what tuned steps tolerate.

    Raises
    ------
    InfeasibleError
        When epsilon is below the floor 2 gamma^2.
    """
    require(epsilon > 0, "epsilon", epsilon, "positive")
    require(staleness in ("max", "mean"), "staleness", staleness, "'max' or 'mean'")
    n = config.ues
    if participants is None:
        step = max(1, n // 20) if n > 32 else 1
        participants = sorted({1, n, *range(step, n + 1, step)})
    rows = []
    for count in participants:
        schedule: dict[str, object] = {"participants": int(count)}
        if config.schedule.staleness > 0 and config.schedule.staleness < -(-n // count) - 1:
            continue
        kind = (config.schedule.scheduling, config.schedule.bandwidth)
        if count < n and kind == ("arrival", "optimal"):
            schedule["scheduling"] = "greedy"
        changed = config.with_(schedule=schedule)
        round_s, worst, mean = measure_rounds(system, changed)
        behind = worst if staleness == "max" else mean
        rounds, beta = rounds_needed(
            epsilon,
            constants.objective,
            constants.smoothness,
            int(count),
            behind,
            constants.noise_variance,
            constants.heterogeneity,
        )
        noise = 0.5 * beta * constants.smoothness * constants.noise_variance / count
        total = constants.objective / beta + 0.5 * constants.gradient_norm_sq
        expected = float(np.ceil(total / (epsilon - noise)))
        rows.append(Candidate(int(count), behind, beta, rounds, expected, round_s))
    require(bool(rows), "schedule.staleness", config.schedule.staleness, "feasible for some A")
    return Tuning(tuple(rows))
