"""Joint scheduling: size, exactness against enumeration, gap of the greedy rule, horizon plans."""

from __future__ import annotations

import numpy as np
from _common import goal, median, options, seconds, spread, table, write
from perfeds2 import allocate, exact_round, exhaustive_round, greedy


def main() -> None:
    args = options("bench_scheduler", __doc__)
    g = np.random.default_rng(0)
    instances = 100 if args.quick else 1000
    wrong, gaps = 0, []
    for _ in range(instances):
        n = int(g.integers(2, 13))
        count = int(g.integers(1, n + 1))
        a, s, z = g.uniform(0.1, 5, n), g.exponential(1e7, n), g.uniform(1e5, 1e6, n)
        forced = g.permutation(n)[: g.integers(0, count // 2 + 1)].tolist()
        found = exact_round(a, s, z, 1e6, count, forced)
        best = exhaustive_round(a, s, z, 1e6, count, forced)
        wrong += found.participants.tolist() != best.participants.tolist()
        chosen = greedy(a, s, z, 1e6, count, forced)
        gaps.append(allocate(a[chosen], s[chosen], z[chosen], 1e6).finish_s / best.finish_s - 1)
    rows, worst = [], 0.0
    n = 100_000 if args.quick else 1_000_000
    exact_round(np.ones(50), np.full(50, 1e7), 1e5, 1e6, 5)
    for count in (100, 1000, 10_000):
        for band in (1e6, 1e8, 1e10):
            a, s = g.uniform(0.1, 5, n), 1e8 * g.exponential(1, n)
            times = [
                seconds(lambda a=a, s=s, b=band, c=count: exact_round(a, s, 64e4, b, c))
                for _ in range(5)
            ]
            found = exact_round(a, s, 64e4, band, count)
            worst = max(worst, median(times))
            rows.append([n, count, band, median(times), spread(times), found.iterations])
    write(
        args.out,
        "bench_scheduler",
        "Joint scheduling and bandwidth",
        [
            goal(
                "exact_round at n = 10^6",
                "at most 0.5 s",
                f"{worst:.3f} s, the slowest of {len(rows)} settings (median of 5), one thread",
                worst <= 0.5 and n == 1_000_000,
            ),
            goal(
                "set equal to exhaustive search, n <= 12",
                "all of 1000 instances",
                f"{instances - wrong} of {instances}",
                wrong == 0 and instances >= 1000,
            ),
        ],
        [
            table(
                "exact_round",
                ["n", "A", "band Hz", "median s", "spread s", "sets tried"],
                rows,
            ),
            table(
                "Greedy set with optimal bandwidth, excess over the optimum",
                ["mean", "median", "90 %", "largest"],
                [[float(np.mean(gaps)), float(np.median(gaps)), float(np.quantile(gaps, 0.9)),
                  float(np.max(gaps))]],
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
