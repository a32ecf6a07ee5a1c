"""The convergence bound on random problems, and the choice of the number of participants."""

from __future__ import annotations

import numpy as np
from _common import goal, options, table, write
from perfeds2 import ExperimentConfig, bound, build_system, largest_step, tune_participants
from perfeds2.clock import IndependentClock, TimingLog
from perfeds2.quadratic import QuadraticProblem
from perfeds2.theory import Constants


def cell(ues: int, participants: int, seed: int, **system: object) -> ExperimentConfig:
    return ExperimentConfig.from_dict(
        {
            "ues": ues,
            "seed": seed,
            "schedule": {"participants": participants},
            "system": {"payload_bits": 2e4, **system},
        }
    )


def quadratics(logs: int, cases: int, rounds: int) -> tuple[int, int, list[float]]:
    g = np.random.default_rng(0)
    bad, total, looseness = 0, 0, []
    for seed in range(logs):
        n = int(g.integers(1, 21))
        count = int(g.integers(1, n + 1))
        config = cell(n, count, seed)
        log = IndependentClock(build_system(config), config).advance(rounds)
        worst = int(log.staleness.max())
        problem = QuadraticProblem.random(cases, n, 4, g)
        start = 3 * g.normal(size=(cases, 4))
        limit = np.array([largest_step(c, worst) for c in problem.smoothness])
        step = g.uniform(0.05, 1, cases) * limit
        measured = problem.descend(log, start, step, g).mean(0)
        for i, gap in enumerate(problem.gap(start)):
            right = bound(
                gap, step[i], problem.smoothness[i], rounds, count, worst, problem.sigma[i] ** 2,
                problem.heterogeneity[i],
            ).total  # fmt: skip
            bad += measured[i] > right
            total += 1
            looseness.append(right / measured[i])
    return bad, total, looseness


def logistic(logs: int, cases: int, rounds: int) -> tuple[int, int, list[float]]:
    """Logistic regression with exact gradients; constants from the data, gamma from the path.

    gamma^2 is the largest value met along the run, where the theorem needs it; L comes from the
    largest squared norm of a UE's samples, F* from below by 0.
    """
    g = np.random.default_rng(1)
    bad, total, looseness = 0, 0, []
    m, d = 10, 3
    for seed in range(logs):
        n = int(g.integers(2, 11))
        count = int(g.integers(1, n + 1))
        config = cell(n, count, seed)
        log = IndependentClock(build_system(config), config).advance(rounds)
        worst = int(log.staleness.max())
        x = g.normal(size=(cases, n, m, d)) + g.normal(size=(cases, n, 1, d))
        y = np.sign(g.normal(size=(cases, n, m)) + 0.1)
        covariance = np.einsum("cnmi,cnmj->cnij", x, x) / (4 * m)
        smooth = np.linalg.eigvalsh(covariance)[..., -1].max(1)
        step = np.array([largest_step(c, worst) for c in smooth])

        def gradients(w, x=x, y=y):
            margin = y * np.einsum("cnmi,ci->cnm", x, w)
            return np.einsum("cnm,cnmi->cni", -y / (1 + np.exp(margin)) / m, x)

        w = np.zeros((rounds + 1, cases, d))
        w[0] = g.normal(size=(cases, d))
        gap = np.log1p(np.exp(-y * np.einsum("cnmi,ci->cnm", x, w[0]))).mean((1, 2))
        norms, gamma = np.zeros(cases), np.zeros(cases)
        cut = np.concatenate([[0], np.cumsum(log.counts)])
        history = []
        for k in range(rounds):
            each = gradients(w[k])
            history.append(each)
            mean = each.mean(1, keepdims=True)
            norms += (mean[:, 0] ** 2).sum(1) / rounds
            gamma = np.maximum(gamma, ((each - mean) ** 2).sum(-1).max(1))
            rows = range(cut[k], cut[k + 1])
            used = [history[log.versions[r]][:, log.ues[r]] for r in rows]
            w[k + 1] = w[k] - step[:, None] * np.mean(used, axis=0)
        for i in range(cases):
            right = bound(gap[i], step[i], smooth[i], rounds, count, worst, 0.0, gamma[i]).total
            bad += norms[i] > right
            total += 1
            looseness.append(right / norms[i])
    return bad, total, looseness


def seconds_to(
    problem: QuadraticProblem, log: TimingLog, start, step: float, epsilon: float
) -> float:
    """Return the simulated seconds until the running mean of ||grad F||^2 is below epsilon."""
    g = np.random.default_rng(0)
    norms = problem.descend(log, start, np.array([step]), g)[:, 0]
    running = np.cumsum(norms) / np.arange(1, len(norms) + 1)
    below = np.flatnonzero(running <= epsilon)
    return float(log.close_s[below[0]]) if below.size else float("inf")


def choice_of_a(systems: int) -> tuple[float, float, list[list[float]]]:
    """Share of random systems in which the chosen A is within 10 % of the best A of a sweep.

    Every A runs at the step its own bound asks for, on a quadratic with exact constants.
    """
    g = np.random.default_rng(2)
    excess, rows = [], []
    for seed in range(systems):
        n = int(g.integers(5, 21))
        low = 10 ** g.uniform(7.5, 9)
        config = cell(
            n, n, seed, frequency_min_hz=low, frequency_max_hz=1.01e9,
            cycles_per_sample=10 ** g.uniform(5, 7),
        )  # fmt: skip
        system = build_system(config)
        problem = QuadraticProblem.random(1, n, 4, g)
        start = 10 * g.normal(size=(1, 4))
        floor = float(problem.heterogeneity[0])
        first = float((problem.gradient(start) ** 2).sum())
        epsilon = 2 * floor + 0.05 * first
        constants = Constants(
            float(problem.smoothness[0]), float(problem.sigma[0] ** 2), floor, 0.0,
            float(problem.gap(start)[0]), first,
        )  # fmt: skip
        tuning = tune_participants(system, config, constants, epsilon)
        times = {}
        for c in tuning.candidates:
            changed = config.with_(schedule={"participants": c.participants})
            rounds = int(min(c.rounds, 6000)) + 10
            log = IndependentClock(system, changed).advance(rounds)
            times[c.participants] = seconds_to(problem, log, start, c.step, epsilon)
        best = min(times, key=lambda a: times[a])
        ratio = times[tuning.best.participants] / times[best]
        excess.append(ratio)
        rows.append([n, tuning.best.participants, best, ratio])
    values = np.array(excess)
    return float(np.mean(values <= 1.1)), float(np.median(values)), rows


def main() -> None:
    args = options("bench_bound", __doc__)
    scale = 10 if args.quick else 1
    bad_q, total_q, loose_q = quadratics(80 // scale, 100, 150)
    bad_l, total_l, loose_l = logistic(40 // scale, 50, 100)
    systems = 200 // scale
    share, middle, rows = choice_of_a(systems)
    write(
        args.out,
        "bench_bound",
        "Convergence bound and choice of participants",
        [
            goal(
                "the bound on random quadratic and logistic problems",
                "no violation in 10^4 cases",
                f"{bad_q + bad_l} in {total_q + total_l} ({total_q} quadratic, {total_l} logistic)",
                bad_q + bad_l == 0 and total_q + total_l >= 10_000,
                "quadratic: all constants exact; logistic: gamma is the largest along each run",
            ),
            goal(
                "tune-a within 10 % of the best of a sweep",
                "in at least 80 % of 200 random systems",
                f"{share * 100:.1f} % of {systems}, median excess {100 * (middle - 1):.1f} %",
                share >= 0.8 and systems >= 200,
                "simulated seconds on quadratics, every A at the step its own bound asks for",
            ),
        ],
        [
            table(
                "Bound over measurement",
                ["problems", "least", "median", "largest"],
                [
                    ["quadratic", min(loose_q), float(np.median(loose_q)), max(loose_q)],
                    ["logistic", min(loose_l), float(np.median(loose_l)), max(loose_l)],
                ],
            ),
            table("First random systems", ["n", "chosen A", "best A", "excess"], rows[:20]),
        ],
    )


if __name__ == "__main__":
    main()
