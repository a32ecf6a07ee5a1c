"""Plans against the search over all schedules."""

from __future__ import annotations

import numpy as np
import pytest
from perfeds2 import InfeasibleError, InputError, exhaustive_plan, plan


def draw(g, n):
    return g.uniform(0.1, 3, n), 1e7 * (0.1 + g.exponential(1, n)), g.uniform(1e5, 6e5, n)


@pytest.mark.parametrize("seed", range(6))
def test_beam_meets_the_constraints_and_is_near_the_optimum(seed):
    g = np.random.default_rng(seed)
    n, rounds = int(g.integers(3, 6)), int(g.integers(2, 5))
    count = int(g.integers(1, n))
    staleness = -(-n // count) - 1 + int(g.integers(0, 2))
    args = (*draw(g, n), 1e6, rounds, count, max(staleness, 1))
    found, best = plan(*args), exhaustive_plan(*args)
    assert found.total_s >= best.total_s * (1 - 1e-12)
    assert found.total_s <= best.total_s * 1.02
    for p in (found, best):
        assert (p.schedule.sum(1) == count).all()
        assert (np.diff(p.close_s) > 0).all()
        version = np.zeros(n, dtype=int)
        for k in range(rounds):
            assert (k - version[p.schedule[k]] <= max(staleness, 1)).all()
            version[p.schedule[k]] = k + 1


def test_beam_equals_the_optimum_in_most_small_cells():
    g = np.random.default_rng(7)
    equal = 0
    for _ in range(20):
        args = (*draw(g, 4), 1e6, 4, 2)
        equal += plan(*args).total_s <= exhaustive_plan(*args).total_s * (1 + 1e-12)
    assert equal >= 16


def test_frequency_bounds_hold():
    a, s, z = np.array([0.1, 0.1, 5.0, 5.0]), np.full(4, 1e7), np.full(4, 1e5)
    free = plan(a, s, z, 1e6, 6, 2)
    assert free.frequency[2:].max() < 0.5
    fair = plan(a, s, z, 1e6, 6, 2, frequency=(0.5, 0.5))
    assert fair.frequency.tolist() == [0.5] * 4
    assert fair.total_s > free.total_s


def test_unreachable_constraints():
    a, s, z = np.ones(4), np.full(4, 1e7), np.full(4, 1e5)
    with pytest.raises(InfeasibleError, match="plan"):
        plan(a, s, z, 1e6, 5, 1, staleness=1)
    with pytest.raises(InfeasibleError, match="plan"):
        exhaustive_plan(a, s, z, 1e6, 5, 1, staleness=1)
    with pytest.raises(InputError, match="frequency"):
        plan(a, s, z, 1e6, 5, 1, frequency=(0.5, 1.0))
