"""The same problems in libraries of other people."""

from __future__ import annotations

import numpy as np
import pytest
from perfeds2 import ExperimentConfig, System, allocate, build_system
from perfeds2.clock import IndependentClock

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("n", [3, 10, 50])
def test_allocation_against_clarabel(n):
    """At our finishing time the least share of the band, by a conic solver, is exactly 1."""
    cp = pytest.importorskip("cvxpy")
    g = np.random.default_rng(n)
    a, s, z = g.uniform(0.1, 5, n), 1e8 * (0.05 + g.exponential(1, n)), g.uniform(1e5, 1e6, n)
    band = 1e6
    found = allocate(a, s, z, band)
    x = cp.Variable(n, nonneg=True)
    need = z * np.log(2.0) / ((found.finish_s - a) * band)
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [-cp.rel_entr(x, x + s / band) >= need])
    problem.solve(solver=cp.CLARABEL)
    assert problem.value == pytest.approx(1.0, abs=1e-7)
    np.testing.assert_allclose(x.value * band, found.bandwidth_hz, rtol=1e-5)


@pytest.mark.parametrize(("ues", "participants"), [(7, 3), (300, 11)])
def test_clock_against_simpy(ues, participants):
    """Identical events: times, UEs and versions."""
    simpy = pytest.importorskip("simpy")
    rounds = 60
    durations = np.random.default_rng(ues).uniform(0.5, 20.0, ues)
    env = simpy.Environment()
    arrivals, log = simpy.Store(env), []
    go, version = [env.event() for _ in range(ues)], [0] * ues

    def ue(i):
        while True:
            yield env.timeout(durations[i])
            arrivals.put(i)
            yield go[i]

    def server():
        for k in range(rounds):
            chosen = []
            for _ in range(participants):
                i = yield arrivals.get()
                log.append((env.now, i, version[i]))
                chosen.append(i)
            for i in chosen:
                version[i] = k + 1
                wake, go[i] = go[i], env.event()
                wake.succeed()

    for i in range(ues):
        env.process(ue(i))
    env.run(env.process(server()))
    config = ExperimentConfig.from_dict(
        {
            "ues": ues,
            "schedule": {"participants": participants},
            "system": {"fading": False, "payload_bits": 1.0},
        }
    )
    base, zero = build_system(config), np.zeros(ues)
    system = System(durations, base.snr_hz, zero, zero, base.power_w, config.system)
    ours = IndependentClock(system, config).advance(rounds)
    found = list(zip(ours.arrival_s.tolist(), ours.ues.tolist(), ours.versions.tolist()))
    assert found == log
