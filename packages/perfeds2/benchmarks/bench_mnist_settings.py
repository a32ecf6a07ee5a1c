"""Settings tried on MNIST: seconds to two target losses on the tuning seed.

Wider than the grid of `bench_mnist.py`: more numbers of participants, both policies, more steps.
"""

from __future__ import annotations

import numpy as np
import torch
from _common import data_file, goal, options, table, write
from perfeds2 import ExperimentConfig, Simulation
from perfeds2.compare import TUNING_SEED, parse_form
from perfeds2.data import load_data
from perfeds2.errors import DivergedError

TARGETS = (0.3, 0.4)
SYNC_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0)
SEMI_STEPS = (1.0, 1.5, 2.0)
SYNC_FORMS = ("sync", "sync+optimal")
SEMI_FORMS = (
    *(f"semi:{a}+greedy+optimal" for a in (10, 12, 14, 16)),
    *(f"semi:{a}+processor_sharing" for a in (8, 10, 12)),
)


def main() -> None:
    args = options(
        "bench_mnist_settings",
        __doc__,
        mnist=data_file("PERFEDS2_MNIST", "npz with train_<ue>_x ... of 20 UEs"),
    )
    if not args.mnist:
        print("bench_mnist_settings: left out, give --mnist FILE or PERFEDS2_MNIST")
        return
    torch.set_num_threads(1)
    config = ExperimentConfig.from_dict(
        {
            "seed": TUNING_SEED,
            "data": {"source": "npz", "path": str(args.mnist)},
            "train": {"target_loss": min(TARGETS), "rounds": 100, "eval_every": 2},
        }
    )
    data = load_data(config)
    settings = [(form, step) for form in SYNC_FORMS for step in SYNC_STEPS]
    settings += [(form, step) for form in SEMI_FORMS for step in SEMI_STEPS]
    rows: list[list[object]] = []
    found: dict[str, tuple[float, float, float]] = {}  # seconds to the first target, by form
    for form, step in settings:
        try:
            run = Simulation(
                parse_form(form, config).with_(server={"step": step}), dataset=data
            ).run()
        except DivergedError:
            times = [np.inf for _ in TARGETS]
            rounds = np.inf
        else:
            times = [run.time_to(target) for target in TARGETS]
            rounds = run.rounds_to(TARGETS[0])
        print(form, step, times, rounds, flush=True)
        found[form] = min(found.get(form, (np.inf, 0.0, 0.0)), (times[0], step, rounds))
        rows.append([form, step, *(v if np.isfinite(v) else None for v in (*times, rounds))])
    semi = min(SEMI_FORMS, key=lambda form: found[form][0])
    goals = [
        goal(
            f"MNIST, best of {len(SEMI_FORMS) * len(SEMI_STEPS)} semi-synchronous settings against "
            f"{form}",
            "shown, no bar",
            f"{found[form][0] / found[semi][0]:.2f} times faster with {semi} at step "
            f"{found[semi][1]:g}, {form} at step {found[form][1]:g}",
            None,
            f"one tuning seed, loss {TARGETS[0]}; the figures over ten other seeds are those of "
            "bench_mnist.py",
        )
        for form in SYNC_FORMS
    ]
    write(
        args.out,
        "bench_mnist_settings",
        "Settings tried on MNIST",
        goals,
        [
            table(
                "Simulated seconds on the tuning seed (empty: missed in 100 rounds)",
                ["form", "step", *(f"seconds to {t}" for t in TARGETS), f"rounds to {TARGETS[0]}"],
                rows,
            )
        ],
    )


if __name__ == "__main__":
    main()
