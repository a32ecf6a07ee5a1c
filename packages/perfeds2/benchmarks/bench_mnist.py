"""Simulated seconds to a target loss on MNIST, split non-IID over 20 UEs."""

from __future__ import annotations

import torch
from _common import data_file, options, write
from bench_time_to_target import as_table, choose_semi, verdicts
from perfeds2 import ExperimentConfig
from perfeds2.compare import compare

STEPS = (0.5, 1.0, 2.0)
ASYNC_STEPS = (0.05, 0.1, 0.15)
CANDIDATES = ("semi:12+greedy+optimal", "semi:10+processor_sharing")
TARGET = 0.3


def main() -> None:
    args = options(
        "bench_mnist",
        __doc__,
        mnist=data_file("PERFEDS2_MNIST", "npz with train_<ue>_x ... of 20 UEs"),
    )
    if not args.mnist:
        print("bench_mnist: left out, give --mnist FILE or PERFEDS2_MNIST")
        return
    torch.set_num_threads(1)
    seeds, tuning = (2, 1) if args.quick else (10, 2)
    config = ExperimentConfig.from_dict(
        {
            "data": {"source": "npz", "path": str(args.mnist)},
            "train": {"rounds": 2000, "target_loss": TARGET, "eval_every": 4},
        }
    )
    best = choose_semi(config, CANDIDATES, tuning, STEPS)
    grids = {
        "sync": STEPS,
        "sync+optimal": STEPS,
        best: STEPS,
        "async": ASYNC_STEPS,
        "async+processor_sharing": ASYNC_STEPS,
    }
    found = compare(config, list(grids), seeds, grids, tuning)
    write(
        args.out,
        "bench_mnist",
        "Simulated seconds to a target loss on MNIST",
        verdicts(found, best, "MNIST over 20 UEs"),
        [as_table(found, f"Softmax regression, target loss {TARGET}")],
    )


if __name__ == "__main__":
    main()
