"""Replay of a saved run: the same rounds again, with gradients measured on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .clock import Round
from .engine import Simulation
from .errors import InfeasibleError, require
from .result import RunResult
from .theory import Bound, Constants, Objective, bound, estimate_constants, largest_step


def rounds_of(run: RunResult) -> list[Round]:
    """Rebuild the rounds of a saved run."""
    cuts = np.cumsum(run.counts)[:-1]
    columns = [
        np.split(values, cuts)
        for values in (run.ues, run.versions, run.jobs, run.arrival_s, run.bandwidth_hz)
    ]
    return [Round(k, float(t), *(c[k] for c in columns)) for k, t in enumerate(run.close_s)]


def _used_after(rounds: list[Round], k: int) -> Callable[[int], bool]:
    """Tell which versions the rounds after k use."""
    needed = {int(v) for later in rounds[k + 1 :] for v in later.versions}
    return lambda version: version in needed


@dataclass(frozen=True)
class RunBound:
    """Bound and measurement of a run.

    Attributes
    ----------
    rounds, measured : arrays of shape (points,)
        Rounds and the running mean of ||grad F(w_k)||^2.
    bounds : list of Bound
        Bound after each of these rounds.
    constants : Constants
        Largest local estimates along the run.
    step, step_limit : float
        beta used and the largest the theorem allows at these constants.
    """

    rounds: Float[np.ndarray, " points"]
    measured: Float[np.ndarray, " points"]
    bounds: list[Bound]
    constants: Constants
    step: float
    step_limit: float

    def terms(self) -> dict[str, Float[np.ndarray, " points"]]:
        """Terms of the bound over the rounds."""
        names = ("optimisation", "heterogeneity", "noise")
        return {name: np.array([getattr(b, name) for b in self.bounds]) for name in names}

    def to_json(self) -> dict[str, float | str | bool]:
        """Figures after the last round."""
        last = self.bounds[-1]
        return {
            **last.to_json(),
            "measured": float(self.measured[-1]),
            "step": self.step,
            "step_limit": self.step_limit,
            **{f"estimated_{k}": v for k, v in self.constants.to_json().items()},
        }


def bound_of_run(run: RunResult, points: int = 12) -> RunBound:
    """Bound of a saved run against its measured gradients.

    Constants are estimated at the first, a middle and the last weights, the largest of each is
    used. They are local estimates: a bound from them is a report, not a certificate.

    Raises
    ------
    InfeasibleError
        When the run's step is above the theorem's limit, which then says nothing.
    """
    require(len(run.counts) >= 1, "run", len(run.counts), "at least one round")
    config = run.config
    require(
        config.method.name in ("perfedavg", "fedavg")
        and config.method.local_steps == 1
        and config.server.rule == "average"
        and config.server.staleness_weight == "constant"
        and not config.server.data_weighted
        and not config.server.participation_weighted,
        "method",
        f"{config.method.name} with {config.method.local_steps} local steps",
        "perfedavg or fedavg with one local step and plain averaging",
        "the theorem covers these",
    )
    sim = Simulation(config)
    objective = Objective(sim)
    rounds = rounds_of(run)
    marks = {0, len(rounds) // 2, len(rounds) - 1}
    found = []
    norms = np.empty(len(rounds))
    for k, closed in enumerate(rounds):
        norms[k] = objective.gradient_norm_sq(sim.weights)
        if k in marks:
            found.append(estimate_constants(sim))
        order = np.argsort(closed.ues, kind="stable")
        ues = closed.ues[order]
        sent = sim.store.stack(closed.versions[order])
        updates, _ = sim.client_updates(ues, closed.jobs[order], sent, sim.state[ues])
        sim.apply(closed, updates, sent, keep=_used_after(rounds, k))
    worst = Constants(
        **{
            name: max(getattr(c, name) for c in found)
            for name in ("smoothness", "noise_variance", "heterogeneity", "bias")
        },
        objective=found[0].objective,
        gradient_norm_sq=found[-1].gradient_norm_sq,
    )
    staleness = int(run.staleness.max())
    step, limit = config.server.step, largest_step(worst.smoothness, staleness)
    if step > limit:
        raise InfeasibleError(
            f"server.step = {step}: the theorem needs at most 1 / (L (1 + 2S)) = {limit:.6g} with "
            f"L = {worst.smoothness:.4g} estimated and S = {staleness}; it is silent here"
        )
    at = np.unique(np.geomspace(1, len(rounds), points).astype(np.int64))
    bounds = [
        bound(
            worst.objective, step, worst.smoothness, int(k), int(run.counts.min()), staleness,
            worst.noise_variance, worst.heterogeneity, worst.bias,
        )
        for k in at
    ]  # fmt: skip
    running = np.cumsum(norms) / np.arange(1, len(norms) + 1)
    return RunBound(at.astype(float), running[at - 1], bounds, worst, step, limit)
