"""The package checks itself against closed forms and enumeration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .bandwidth import allocate, snr_for_load
from .clock import IndependentClock
from .config import ExperimentConfig
from .engine import Simulation
from .objective import FlatModel, MetaGradient
from .quadratic import QuadraticProblem
from .schedule import exact_round, exhaustive_round
from .system import build_system
from .theory import bound, largest_step

# mpmath at 40 digits: (rho, 1 - rho) -> s / b. Both are given because near 1 the nearest float of
# rho alone has lost the digits that matter.
GOLDEN_SNR = {
    (1e-3, 0.999): 9118.1296448337879,
    (0.1, 0.9): 36.149504270875306,
    (0.5, 0.5): 2.5128624172523394,
    (0.999, 1e-3): 2.0026697812185126e-3,
    (0.999999, 1e-6): 2.0000026666697778e-6,
}
GOLDEN_FINISH_S = 3.15451332998640819


@dataclass(frozen=True)
class Check:
    """One check: what was compared, the error found, the error allowed."""

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Is the error within what is allowed."""
        return bool(self.error <= self.allowed)


def _inverse_rate(seed: int) -> float:
    return max(
        abs(float(snr_for_load(np.array(rho), np.array(rest))) / x - 1)
        for (rho, rest), x in GOLDEN_SNR.items()
    )


def _finish_time(seed: int) -> float:
    found = allocate([1, 2, 3], [1e8, 5e7, 2e7], 640_000, 1e6)
    return abs(found.finish_s / GOLDEN_FINISH_S - 1)


def _exact_round(seed: int) -> float:
    g = np.random.default_rng(seed)
    wrong = 0
    for _ in range(100):
        n = int(g.integers(2, 9))
        count = int(g.integers(1, n + 1))
        a, s = g.uniform(0.1, 5, n), g.exponential(1e7, n)
        forced = g.permutation(n)[: g.integers(0, count + 1)].tolist()
        found = exact_round(a, s, 640_000, 1e6, count, forced)
        best = exhaustive_round(a, s, 640_000, 1e6, count, forced)
        wrong += not np.array_equal(found.participants, best.participants)
    return float(wrong)


def _exponential(ues: int, participants: int, seed: int) -> IndependentClock:
    config = ExperimentConfig.from_dict(
        {
            "ues": ues,
            "seed": seed,
            "schedule": {"participants": participants},
            "system": {
                "compute_law": "exponential", "frequency_min_hz": 1e9, "payload_bits": 1e-9,
                "cycles_per_sample": 1e9, "samples_per_update": 1, "fading": False,
            },
        }
    )  # fmt: skip
    return IndependentClock(build_system(config), config)


def _order_statistics(seed: int) -> float:
    """Mean round with exponential work: (1 / mu) sum_{j<A} 1 / (n - j), in every round."""
    log = _exponential(20, 5, seed).advance(20_000)
    expected = sum(1 / (20 - j) for j in range(5))
    return abs(float(log.close_s[-1]) / 20_000 / expected - 1)


def _little(seed: int) -> float:
    """Mean staleness is (n - A) / A when every UE always has a job."""
    log = _exponential(20, 5, seed).advance(20_000)
    return abs(float(log.staleness.mean()) - 3.0)


def _meta_gradient(seed: int) -> float:
    """Exact estimator against central differences of F_i in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    model = FlatModel(module)
    w = model.initial()
    exact = MetaGradient(model, 0.3).single(w, (x, y), (x, y), (x, y))

    def value(u: torch.Tensor) -> float:
        step = torch.func.grad(model.loss)(u, (x, y))
        return float(model.loss(u - 0.3 * step, (x, y)))

    worst = 0.0
    for i in range(len(w)):
        e = torch.zeros_like(w)
        e[i] = 1e-5
        worst = max(worst, abs((value(w + e) - value(w - e)) / 2e-5 - float(exact[i])))
    return worst


def _synchronous(seed: int) -> float:
    """Check that A = n and S = 0 give the same weights, bit for bit."""
    config = ExperimentConfig(seed=seed).with_(train={"rounds": 4})
    every = Simulation(config.with_(schedule={"participants": 20})).run().weights
    bounded = Simulation(config.with_(schedule={"participants": 3, "staleness": 0})).run().weights
    return float(np.count_nonzero(every != bounded))


def _bound(seed: int) -> float:
    """Violations of the bound on random quadratics."""
    g = np.random.default_rng(seed)
    violations = 0
    for trial in range(10):
        config = ExperimentConfig.from_dict(
            {
                "ues": 8,
                "seed": seed + trial,
                "schedule": {"participants": int(g.integers(1, 9))},
                "system": {"payload_bits": 2e4},
            }
        )
        log = IndependentClock(build_system(config), config).advance(100)
        worst = int(log.staleness.max())
        problem = QuadraticProblem.random(50, 8, 4, g)
        start = 3 * g.normal(size=(50, 4))
        step = np.array([largest_step(c, worst) for c in problem.smoothness])
        measured = problem.descend(log, start, step, g).mean(0)
        for i, gap in enumerate(problem.gap(start)):
            right = bound(
                gap, step[i], problem.smoothness[i], 100, config.schedule.participants, worst,
                problem.sigma[i] ** 2, problem.heterogeneity[i],
            )  # fmt: skip
            violations += measured[i] > right.total
    return float(violations)


CHECKS: tuple[tuple[str, Callable[[int], float], float], ...] = (
    ("inverse rate against 40-digit values (relative)", _inverse_rate, 1e-13),
    ("common finishing time against 40-digit value (relative)", _finish_time, 1e-13),
    ("exact_round against enumeration (wrong sets of 100)", _exact_round, 0.0),
    ("mean round, exponential work, against order statistics (relative)", _order_statistics, 0.02),
    ("mean staleness against (n - A) / A (absolute)", _little, 0.02),
    ("exact meta-gradient against central differences (absolute)", _meta_gradient, 1e-8),
    ("A = n against S = 0 (weights that differ)", _synchronous, 0.0),
    ("bound on 500 random quadratics (violations)", _bound, 0.0),
)


def verify(seed: int = 0) -> list[Check]:
    """Run all checks.

    Examples
    --------
    >>> CHECKS[0][0]
    'inverse rate against 40-digit values (relative)'
    """
    return [Check(name, float(run(seed)), allowed) for name, run, allowed in CHECKS]
