"""Exactness on tables: joints, injected errors, zero patterns, nearest joints, scale in k."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import cvxpy as cp
import numpy as np
from _common import goal, options, table, write
from mlm_consistency import CubeTable, PairTable, compat, gibbs, hodge, joints, metrics
from mlm_consistency import arnold_gokhale as ag
from mlm_consistency.tables import normalise
from scipy.special import logsumexp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def random_joints(draws: int, seed: int) -> tuple[dict[str, float], int]:
    """Largest value of every metric on joints; how many errors of 1e-6 are found with corner."""
    rng = np.random.default_rng(seed)
    worst = {"curl": 0.0, "hodge curl": 0.0, "path": 0.0, "marginal": 0.0, "Gibbs": 0.0, "AG": 0.0}
    found = 0
    for draw in range(draws):
        k = int(rng.integers(2, 5))
        shape = tuple(int(v) for v in rng.integers(2, {2: 9, 3: 6, 4: 5}[k], k))
        log_joint = normalise(rng.normal(size=shape) * 2, tuple(range(k)))
        cube = CubeTable.from_joint(log_joint)
        worst["curl"] = max(worst["curl"], abs(compat.worst_quadruple(cube).gap))
        worst["hodge curl"] = max(worst["hodge curl"], hodge.decompose(cube).curl_rms)
        if k == 2:
            pair = PairTable.from_joint(log_joint, gold=(0, 0))
            worst["path"] = max(worst["path"], float(np.abs(metrics.path_gaps(pair)).max()))
            worst["marginal"] = max(worst["marginal"], *metrics.marginal_tv(pair))
        if draw % 10 == 0:
            worst["Gibbs"] = max(worst["Gibbs"], gibbs.scan_orders(cube).tv)
            worst["AG"] = max(worst["AG"], joints.ag(cube).objective)
        axis = int(rng.integers(k))
        cell = tuple(int(rng.integers(s)) for s in shape)
        arrays = [c.copy() for c in cube.conditionals]
        arrays[axis][cell] += 1e-6
        verdict = compat.test(CubeTable(tuple(arrays)), tol=1e-9)
        c = verdict.certificate
        found += (
            not verdict and cell in c.cells and axis in c.axes and abs(abs(c.gap) - 1e-6) < 1e-9
        )
    return worst, found


def nearest_joints(draws: int, seed: int) -> dict[str, list[float]]:
    """Objective against cvxpy, certified gap, iterations against plain iteration."""
    rng = np.random.default_rng(seed)
    out: dict[str, list[float]] = {"cvxpy": [], "gap": [], "newton": [], "plain": []}
    problems = {}
    for draw in range(draws):
        a, b = (3, 4) if draw % 2 else (4, 4)
        scale = float(rng.uniform(0.3, 3))
        logs = [normalise(rng.normal(size=(a, b)) * scale, axis) for axis in (0, 1)]
        if (a, b) not in problems:
            theta, n = cp.Variable((a, b)), cp.Parameter((a, b), nonneg=True)
            value = -cp.sum(cp.multiply(n, theta))
            value += sum(cp.log_sum_exp(theta[:, j]) for j in range(b))
            value += sum(cp.log_sum_exp(theta[i, :]) for i in range(a))
            problems[a, b] = (cp.Problem(cp.Minimize(value), [cp.sum(theta) == 0]), n)
        problem, n = problems[a, b]
        n.value = sum(np.exp(log) for log in logs)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        best = problem.value + sum(float((np.exp(log) * log).sum()) for log in logs)
        found = ag.solve(tuple(logs))
        plain = ag.plain_iterations(tuple(logs), 5000, 1e-10)
        out["cvxpy"].append(abs(found.objective - best))
        out["gap"].append(found.gap)
        out["newton"].append(found.iterations)
        out["plain"].append(plain.iterations)
    return out


def ten_positions(seed: int) -> float:
    """Order gaps of ten positions by swaps against the two full sums, largest difference."""
    rng = np.random.default_rng(seed)
    log_p = {
        frozenset(s): rng.normal(size=10)
        for n in range(11)
        for s in itertools.combinations(range(10), n)
    }

    def total(order: tuple[int, ...]) -> float:
        return sum(float(log_p[frozenset(order[:n])][p]) for n, p in enumerate(order))

    worst = 0.0
    for _ in range(300):
        first, second = (tuple(int(v) for v in rng.permutation(10)) for _ in range(2))
        by_swaps = metrics.order_gap_by_swaps(log_p, first, second)
        worst = max(worst, abs(by_swaps - (total(first) - total(second))))
    return worst


def main() -> None:
    arguments = options("bench_theory", __doc__)
    draws = 300 if arguments.quick else 10_000
    worst, found = random_joints(draws, 0)
    from test_compat import zero_pattern_draws

    patterns = 50 if arguments.quick else 1000
    agree, compatible = zero_pattern_draws(patterns, 5)
    near = nearest_joints(20 if arguments.quick else 500, 1)
    ratio = np.asarray(near["plain"]) / np.maximum(near["newton"], 1)
    rng = np.random.default_rng(2)
    cube = CubeTable(
        tuple((x := rng.normal(size=(20, 20, 20))) - logsumexp(x, axis=i, keepdims=True)
              for i in range(3))
    )  # fmt: skip
    start = time.process_time()
    parts = hodge.decompose(cube)
    middle = time.process_time()
    gibbs.scan_orders(cube)
    end = time.process_time()
    swaps = ten_positions(3)
    largest = max(worst.values())
    goals = [
        goal("random joints, every metric", "at most 1e-10",
             f"{largest:.1e} over {draws} joints of 2 to 4 positions", largest <= 1e-10),
        goal("injected odds-ratio errors of 1e-6, found with their quadruple", "all",
             f"{found} of {draws}", found == draws),
        goal("zero patterns against linear programming", "1000 of 1000",
             f"{agree} of {patterns} ({compatible} compatible)", agree == patterns),
        goal("Arnold-Gokhale against cvxpy", "within 1e-8 on 500",
             f"{max(near['cvxpy']):.1e}, largest of {len(near['cvxpy'])}",
             max(near["cvxpy"]) <= 1e-8),
        goal("Arnold-Gokhale, certified gap", "at most 1e-10", f"{max(near['gap']):.1e}, largest",
             max(near["gap"]) <= 1e-10),
        goal("iterations against plain iteration at a gap of 1e-10", "at most 1/5",
             f"median 1/{np.median(ratio):.0f}, {100 * np.mean(ratio >= 5):.1f} % of tables at"
             f" most 1/5", np.median(ratio) >= 5,
             "plain iteration is checked every 5th step; tables that are almost compatible need"
             " few steps of either" if np.mean(ratio >= 5) < 1 else ""),
        goal("triple of 20 values: Hodge and six scan orders, one core", "below 5 s",
             f"{end - start:.2f} s ({1e3 * (middle - start):.1f} ms for {parts.edges} edges)",
             end - start < 5),
        goal("ten positions: order gaps by swaps against full sums", "equal", f"{swaps:.1e} nats",
             swaps <= 1e-10),
    ]  # fmt: skip
    tables = [
        table("Largest value on joints", ["metric", "value"], [[k, v] for k, v in worst.items()])
    ]
    write(arguments.out, "bench_theory", "Exactness on tables", goals, tables, packages=("cvxpy",))


if __name__ == "__main__":
    main()
