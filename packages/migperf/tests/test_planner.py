"""The planner: reference answers on published data, brute force, heuristics, simulation."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migperf import Demand, Infeasible, InputError, Measurement, MeasurementTable, plan
from migperf.boards import load_board
from migperf.measurements import paper_measurements
from migperf.planner.exact import solve_exact
from migperf.planner.heuristics import compare
from migperf.planner.model import Problem, build_problem, load_demands, maximal_patterns
from migperf.planner.validate import validate_plan

BOARD = load_board("a100-80gb")
PROFILES = (("1g.10gb", 1), ("2g.20gb", 2), ("3g.40gb", 3), ("4g.40gb", 4), ("7g.80gb", 7))


def three(scale: float, slo: float, batches: tuple[int, ...]) -> list[Demand]:
    return [
        Demand("resnet50", 5000 * scale, slo, batches=batches),
        Demand("bert-base", 3000 * scale, slo, batches=batches),
        Demand("vit-b16", 1500 * scale, slo, batches=batches),
    ]


@pytest.mark.parametrize(
    ("scale", "whole", "single", "best"), [(1, 55, 14, 14), (20, 1062, 271, 271)]
)
def test_batch_one_saves_four_of_five_gpus(
    scale: float, whole: int, single: int, best: int
) -> None:
    # Optima that two other exact solvers proved on the published A100-80GB latencies.
    problem = build_problem(paper_measurements(), three(scale, 25.0, (1,)), BOARD)
    answer = solve_exact(problem)
    assert (answer.value, answer.proven) == (best, True)
    found = compare(problem)
    assert (found["whole"], found["homogeneous"]) == (whole, single)


def test_large_batches_save_almost_nothing() -> None:
    problem = build_problem(paper_measurements(), three(1, 1e6, ()), BOARD)
    answer = solve_exact(problem)
    whole = compare(problem)["whole"]
    assert answer.proven
    assert whole is not None
    assert whole / answer.value < 1.25


def random_problem(seed: int, workloads: int, largest: float) -> Problem:
    generator = np.random.default_rng(seed)
    rows, demands = [], []
    for w in range(workloads):
        base = float(generator.uniform(50, 500))
        power = float(generator.uniform(0.3, 1.0))
        for name, slices in PROFILES:
            if name != "7g.80gb" and generator.random() < 0.2:
                continue  # does not fit into this profile
            rows.append(Measurement(f"w{w}", "infer", name, 1, 1000 / (base * slices**power)))
        demands.append(Demand(f"w{w}", base * float(generator.uniform(0.2, largest))))
    return build_problem(MeasurementTable(rows), demands, BOARD)


def brute_force(problem: Problem, limit: int) -> int | None:
    """Fewest GPUs by trying every combination of patterns and every deal of their instances."""
    rates = {(o.demand, o.profile): o.rate for o in problem.offers}
    wanted = tuple(d.rate for d in problem.demands)

    def serves(instances: list[str]) -> bool:
        states = {wanted}
        for name in instances:
            after = set()
            for state in states:
                for w, missing in enumerate(state):
                    rate = rates.get((w, name), 0.0)
                    if rate and missing > 1e-9:
                        left = max(0.0, missing - rate)
                        after.add((*state[:w], left if left > 1e-9 else 0.0, *state[w + 1 :]))
                after.add(state)
            states = after
            if any(not any(s) for s in states):
                return True
        return any(not any(s) for s in states)

    for count in range(1, limit + 1):
        for patterns in itertools.combinations_with_replacement(problem.patterns, count):
            if serves([name for pattern in patterns for name in pattern]):
                return count
    return None


def check_against_brute_force(seed: int) -> None:
    problem = random_problem(seed, 2 + seed % 2, 2.5)
    answer = solve_exact(problem)
    assert answer.proven
    if answer.value <= 2:
        assert brute_force(problem, 2) == answer.value
    else:
        assert brute_force(problem, 2) is None
    for number in compare(problem).values():
        assert number is None or number >= answer.value


@pytest.mark.parametrize("seed", range(25))
def test_equal_to_brute_force(seed: int) -> None:
    check_against_brute_force(seed)


@pytest.mark.stress
def test_equal_to_brute_force_on_1000_instances() -> None:
    for seed in range(1000):
        check_against_brute_force(seed)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_plans_hold_together(seed: int) -> None:
    """Every GPU has a legal layout, every demand is served, no heuristic is better."""
    problem = random_problem(seed, 4, 8.0)
    answer = solve_exact(problem)
    assert answer.proven
    assert len(answer.gpus) == answer.value
    served: Counter[str] = Counter()
    for gpu in answer.gpus:
        assert gpu.layout == gpu.layout.__class__(gpu.layout.board, gpu.layout.entries)
        mask = 0
        for place in gpu.layout.placements:
            assert not mask & place.mask
            mask |= place.mask
        for entry, workload in zip(gpu.layout.entries, gpu.workloads, strict=True):
            if workload is not None:
                index = int(workload.split("/")[0][1:])
                offer = problem.best(index, entry.profile)
                assert offer is not None
                served[workload] += offer.rate  # type: ignore[assignment]
    for index, demand in enumerate(problem.demands):
        assert served[f"w{index}/infer"] >= demand.rate * (1 - 1e-6)


def test_patterns_are_the_maximal_multisets() -> None:
    names = tuple(n for n, _ in PROFILES)
    patterns = maximal_patterns(BOARD, names)
    counted = [Counter(p) for p in patterns]
    assert all(not (a <= b and a != b) for a in counted for b in counted)
    assert ("7g.80gb",) in patterns


def test_other_objectives() -> None:
    table = paper_measurements()
    demands = three(1, 25.0, (1,))
    full = plan(table, demands, "max_throughput", gpus=14)
    assert full.proven
    assert full.value == pytest.approx(9500.0)  # all demands are met with 14
    half = plan(table, demands, "max_throughput", gpus=7)
    assert half.value < full.value
    with pytest.raises(Infeasible, match="7 do not suffice for the demands; 14 do"):
        plan(table, demands, gpus=7)
    with pytest.raises(InputError, match="activity"):
        plan(table, demands, "min_energy")


def test_energy_objective_prefers_less_power() -> None:
    rows = [
        Measurement("m", "infer", name, 1, 1000 / (100 * slices**0.7), 1000.0, 0.9)
        for name, slices in PROFILES
    ]
    answer = plan(MeasurementTable(rows), [Demand("m", 1000.0)], "min_energy", board=BOARD)
    assert answer.proven
    # By hand: a pattern of seven 1g serves 700/s; two GPUs idle at 110 W, each sample costs
    # (400 - 55) W * 0.9 * 14/98 / 100 per second.
    assert answer.value == pytest.approx(2 * 55 + 1000 * 345 * 0.9 * 14 / 98 / 100)


def test_latency_bounds_hold_in_simulation() -> None:
    demands = [
        Demand("resnet50", 2000, 40.0, poisson=True),
        Demand("bert-base", 500, 60.0, poisson=True),
    ]
    problem = build_problem(paper_measurements(), demands, BOARD)
    answer = solve_exact(problem)
    checks = validate_plan(problem, answer, seeds=20, requests=20000, seed=99)
    assert all(c.share_met >= 0.99 for c in checks), [c.p99_ms for c in checks]
    # Without the queue in mind, the same bound is missed: utilisation alone is no plan.
    naive = [Demand(d.workload, d.rate, d.slo_ms) for d in demands]
    blind = build_problem(paper_measurements(), naive, BOARD)
    missed = validate_plan(blind, solve_exact(blind), seeds=3, requests=8000)
    assert any(c.share_met < 0.99 for c in missed)


def test_memory_and_bounds_are_respected() -> None:
    rows = [
        Measurement("m", "infer", "1g.10gb", 64, 100.0, 20000.0),  # more than the instance has
        Measurement("m", "infer", "1g.10gb", 1, 10.0, 1000.0),
        Measurement("m", "infer", "2g.20gb", 64, math.nan, status="oom"),
        Measurement("m", "infer", "2g.20gb", 1, 8.0, 1000.0),
    ]
    problem = build_problem(MeasurementTable(rows), [Demand("m", 10.0, 50.0)], BOARD)
    assert {(o.profile, o.batch) for o in problem.offers} == {("1g.10gb", 1), ("2g.20gb", 1)}
    with pytest.raises(Infeasible, match=r"slo_ms=5.0; the fastest point is 8.0 ms \(2g.20gb"):
        build_problem(MeasurementTable(rows), [Demand("m", 10.0, 5.0)], BOARD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "demands: []",
        "demands: [1]",
        "demands: [{workload: a}]",
        "demands: [{workload: a, rate: 0}]",
        "demands: [{workload: a, rate: x}]",
        "demands: [{workload: a, rate: true}]",
        "demands: [{workload: a, rate: 1, batches: 3}]",
        "demands: [{workload: a, rate: 1, foo: 2}]",
        "demands: [{workload: a, rate: 1, mode: x}]",
        "demands: [{workload: a, rate: 1, slo_ms: -1}]",
        "board: zz\ndemands: [{workload: a, rate: 1}]",
        "a: [",
    ],
)
def test_bad_demand_files_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "demands.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_demands(path)
    assert "\n" not in str(caught.value)
