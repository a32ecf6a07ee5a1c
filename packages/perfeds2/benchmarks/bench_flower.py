"""What Flower's simulation engine costs beside the in-process engine, for the same rounds.

Needs the extra: pip install "./packages/perfeds2[flower]" (its pins exclude some versions of rich).
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
import torch
from _common import goal, options, spread, table, write
from perfeds2 import ExperimentConfig, Simulation
from perfeds2.flower import missing, simulate_here


def timed(rounds: int, flower: bool) -> tuple[float, np.ndarray]:
    tables = {
        "ues": 6,
        "schedule": {"participants": 2},
        "train": {"rounds": rounds, "eval_every": rounds},
    }
    config = ExperimentConfig.from_dict(tables)
    start = time.perf_counter()
    result = simulate_here(config, 2, 2) if flower else Simulation(config).run()
    return time.perf_counter() - start, result.weights


def main() -> None:
    args = options("bench_flower", __doc__)
    if text := missing():
        print(f"bench_flower: left out, {text}")
        return
    torch.set_num_threads(1)
    short, long, repeats = (4, 12, 1) if args.quick else (5, 45, 3)
    rows, per_round, same = [], {"flower": [], "in process": []}, True
    timed(short, False)
    for _ in range(repeats):
        found = {}
        for side in ("in process", "flower"):
            (first, _), (second, weights) = (
                timed(short, side == "flower"),
                timed(long, side == "flower"),
            )
            per_round[side].append((second - first) / (long - short))
            found[side] = weights
            rows.append([side, first, second, per_round[side][-1] * 1e3])
        same &= bool(np.array_equal(found["flower"], found["in process"]))
    ratios = [a / b for a, b in zip(per_round["flower"], per_round["in process"])]
    write(
        args.out,
        "bench_flower",
        "Flower's simulation engine against the in-process engine",
        [
            goal("a round through Flower's simulation over a round in process", "shown, no bar",
                 f"{statistics.median(ratios):.0f} times ({spread(ratios)}), {repeats} repeats",
                 None, "2 of 6 UEs a round, softmax regression; start-up is taken off by the "
                 "difference of a long and a short run; 2 Ray workers, one thread each"),
            goal("weights of both engines after replay", "identical", str(same).lower(), same),
        ],
        [table("Wall-clock seconds",
               ["engine", f"{short} rounds", f"{long} rounds", "ms per round"], rows)],
        packages=("flwr", "ray"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
