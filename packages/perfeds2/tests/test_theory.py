"""The bound on problems whose constants are exact, estimators, and the choice of A."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from perfeds2 import (
    ExperimentConfig,
    InfeasibleError,
    InputError,
    Simulation,
    bound,
    build_system,
    estimate_constants,
    largest_step,
    rounds_needed,
    tune_participants,
)
from perfeds2.clock import IndependentClock
from perfeds2.data import federate
from perfeds2.quadratic import QuadraticProblem
from perfeds2.replay import bound_of_run
from torch import nn


def violations(trials, cases, rounds, seed):
    g = np.random.default_rng(seed)
    found = 0
    for trial in range(trials):
        n = int(g.integers(1, 21))
        count = int(g.integers(1, n + 1))
        config = ExperimentConfig.from_dict(
            {
                "ues": n,
                "seed": trial,
                "schedule": {"participants": count},
                "system": {"payload_bits": 2e4},
            }
        )
        log = IndependentClock(build_system(config), config).advance(rounds)
        worst = int(log.staleness.max())
        problem = QuadraticProblem.random(cases, n, 4, g)
        start = 3 * g.normal(size=(cases, 4))
        step = g.uniform(0.05, 1, cases) * np.array(
            [largest_step(c, worst) for c in problem.smoothness]
        )
        measured = problem.descend(log, start, step, g).mean(0)
        for i, gap in enumerate(problem.gap(start)):
            right = bound(
                gap, step[i], problem.smoothness[i], rounds, count, worst, problem.sigma[i] ** 2,
                problem.heterogeneity[i],
            )  # fmt: skip
            found += int(measured[i] > right.total)
    return found


def test_no_violation_on_1000_quadratics():
    assert violations(20, 50, 80, 0) == 0


@pytest.mark.stress
def test_no_violation_on_10000_quadratics():
    assert violations(100, 100, 150, 1) == 0


def test_terms_by_hand():
    b = bound(2.0, 0.05, 2.0, 50, 4, 2, noise_variance=3.0, heterogeneity=0.1)
    assert b.optimisation == pytest.approx(2 * 2.0 / (0.05 * 50))
    assert b.heterogeneity == pytest.approx(0.2)
    assert b.noise == pytest.approx((0.1 + 2 * 0.01 * 4) * 3 / 4)
    biased = bound(2.0, 0.05, 2.0, 50, 4, 2, 3.0, 0.1, bias=0.5)
    assert biased.heterogeneity == pytest.approx(0.3 + 0.75)
    assert biased.noise == pytest.approx((0.1 + 3 * 0.01 * 4) * 3 / 4)
    assert b.total == pytest.approx(b.optimisation + b.heterogeneity + b.noise)


def test_step_above_the_limit_is_refused():
    with pytest.raises(InputError, match=r"1 / \(L \(1 \+ 2S\)\) = 0.1"):
        bound(1.0, 0.11, 2.0, 10, 1, 2, 0.0, 0.0)


def test_rounds_needed_is_the_inverse_of_the_bound_and_optimal():
    args = {"noise_variance": 0.7, "heterogeneity": 0.02}
    rounds, step = rounds_needed(0.3, 1.5, 2.0, 4, 3, **args)
    at = bound(1.5, step, 2.0, 10**9, 4, 3, **args)
    total = at.heterogeneity + at.noise + 2 * 1.5 / (step * rounds)
    assert total == pytest.approx(0.3, rel=1e-9)
    for other in np.geomspace(largest_step(2.0, 3) / 100, largest_step(2.0, 3), 200):
        rest = bound(1.5, other, 2.0, 10**9, 4, 3, **args)
        left = 0.3 - rest.heterogeneity - rest.noise
        if left > 0:
            assert 2 * 1.5 / (other * left) >= rounds * (1 - 1e-6)


def test_epsilon_below_the_floor_is_infeasible():
    with pytest.raises(InfeasibleError, match="floor 2 gamma"):
        rounds_needed(0.1, 1.0, 1.0, 1, 0, 0.0, 0.06)


class Quadratic(nn.Module):
    """Output w itself, so that a squared loss is a quadratic with identity Hessian."""

    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d, dtype=torch.float64))

    def forward(self, x):
        return self.w - x


def quadratic_simulation(alpha):
    """f_i(w) = mean ||w - x||^2 / 2: Hessian I, gradient w - mean(x)."""
    g = np.random.default_rng(0)
    x = g.normal(size=(120, 3)) + np.repeat(np.arange(4.0), 30)[:, None]
    data = federate(x, np.zeros(120, int), np.split(np.arange(120), 4), 0.25, 0, 1, torch.float64)
    config = ExperimentConfig.from_dict(
        {
            "ues": 4,
            "schedule": {"participants": 2},
            "method": {"alpha": alpha},
            "train": {"precision": "float64", "rounds": 30},
            "server": {"step": 0.1},
        }
    )
    sim = Simulation(
        config, model=Quadratic(3), loss=lambda out, y: (out**2).sum(-1) / 2, dataset=data
    )
    means = [data.train.x[s : s + m].mean(0) for s, m in zip(data.train.start, data.train.size)]
    return sim, torch.stack(means)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_estimators_on_a_problem_with_known_constants(alpha):
    sim, means = quadratic_simulation(alpha)
    found = estimate_constants(sim, draws=64)
    scale = (1 - alpha) ** 2
    assert found.smoothness == pytest.approx(scale, rel=1e-6)
    away = scale * (means - means.mean(0))
    assert found.heterogeneity == pytest.approx(float((away**2).sum(1).max()), rel=1e-9)
    assert found.gradient_norm_sq == pytest.approx(
        float((scale * means.mean(0)).square().sum()), rel=1e-9
    )
    # batches are means of 16 draws: the outer one counts with 1 - alpha, the inner one with its
    # product with alpha; both have the UE's own variance
    per_ue = []
    for s, m in zip(sim.data.train.start, sim.data.train.size):
        v = float(sim.data.train.x[s : s + m].var(0, unbiased=False).sum())
        per_ue.append(v / 16 * (1 - alpha) ** 2 * (1 + alpha**2))
    assert found.noise_variance == pytest.approx(max(per_ue), rel=0.5)
    assert found.bias < 0.1


def test_run_bound_holds_on_digits_and_names_the_binding_term():
    config = ExperimentConfig.from_dict(
        {"schedule": {"participants": 10, "staleness": 2}, "server": {"step": 0.05},
         "train": {"rounds": 12, "eval_every": 12}}
    )  # fmt: skip
    run = Simulation(config).run()
    found = bound_of_run(run)
    total = sum(found.terms().values())
    assert (found.measured <= total).all()
    assert found.to_json()["binding"] in ("optimisation", "heterogeneity", "noise")


def test_run_with_a_large_step_has_no_bound():
    config = ExperimentConfig.from_dict({"server": {"step": 4.0}, "train": {"rounds": 5}})
    with pytest.raises(InfeasibleError, match=r"server.step = 4.0"):
        bound_of_run(Simulation(config).run())


def test_tuning_prefers_few_participants_when_one_ue_is_very_slow():
    from perfeds2 import System
    from perfeds2.theory import Constants

    config = ExperimentConfig.from_dict(
        {"ues": 6, "schedule": {"participants": 6}, "system": {"payload_bits": 1e-9}}
    )
    base = build_system(config)
    compute = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 500.0])
    system = System(compute, base.snr_hz, base.bits, base.compute_j, base.power_w, config.system)
    constants = Constants(1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    found = tune_participants(system, config, constants, 0.1, staleness="mean")
    assert found.best.participants < 6
    by = {c.participants: c for c in found.candidates}
    assert by[6].round_s == pytest.approx(500.0, rel=1e-6)
    assert by[6].rounds == pytest.approx(20.0)  # 2 (F0 - F*) / (beta eps), beta = 1 / L
    assert by[6].guaranteed_s == pytest.approx(10_000.0, rel=1e-6)
    assert by[6].expected_rounds == 15  # (F0 - F*) / beta + ||grad F||^2 / 2 over epsilon
