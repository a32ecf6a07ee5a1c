"""Simulated seconds to two target losses on MNIST, split non-IID over 20 UEs.

Every form runs over a grid of server steps on one tuning seed; the two best settings of each
family run on a second one; the best of those is measured on ten other seeds.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _common import options, table, write
from bench_time_to_target import as_table, verdicts
from perfeds2 import ExperimentConfig, Simulation
from perfeds2.compare import TUNING_SEED, FormResult, parse_form
from perfeds2.data import FederatedData, load_data
from perfeds2.errors import DivergedError
from perfeds2.result import RunResult

TARGETS = (0.3, 0.4)
SYNC_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0)
SEMI_STEPS = (1.0, 1.5, 2.0)
ASYNC_STEPS = (0.075, 0.1, 0.15)
SEMI_FORMS = (
    *(f"semi:{a}+greedy+optimal" for a in (10, 12, 14, 16)),
    *(f"semi:{a}+processor_sharing" for a in (8, 10, 12)),
)
FAMILIES: dict[str, list[tuple[str, float]]] = {
    "sync": [("sync", step) for step in SYNC_STEPS],
    "sync+optimal": [("sync+optimal", step) for step in SYNC_STEPS],
    "semi": [(form, step) for form in SEMI_FORMS for step in SEMI_STEPS],
    "async": [("async", step) for step in ASYNC_STEPS],
    "async+processor_sharing": [("async+processor_sharing", step) for step in ASYNC_STEPS],
}
FINALISTS = 2
Key = tuple[str, float, int]


def until(run: RunResult, target: float) -> RunResult:
    """Run as it would have ended at a target above its own."""
    count = int(np.searchsorted(run.eval_round, run.rounds_to(target), side="right"))
    return replace(
        run,
        **{
            name: getattr(run, name)[:count]
            for name in ("eval_round", "eval_s", "loss", "accuracy")
        },
    )


class Bench:
    """Runs of settings, kept so that both targets read the same ones."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self.data: FederatedData = load_data(config)
        self.runs: dict[Key, RunResult | None] = {}

    def run(self, form: str, step: float, seed: int) -> RunResult | None:
        """Train to the lower target; None where the step diverges."""
        key = (form, step, seed)
        if key not in self.runs:
            many = form.startswith("async")
            config = parse_form(form, self.config).with_(
                seed=seed,
                server={"step": step},
                # evaluated about thirty times on the way to the target, whatever the form
                train={"rounds": 1500 if many else 100, "eval_every": 20 if many else 2},
            )
            try:
                self.runs[key] = Simulation(config, dataset=self.data).run()
            except DivergedError:
                self.runs[key] = None
            print(*key, self.runs[key], flush=True)
        return self.runs[key]

    def seconds(self, setting: tuple[str, float], seeds: list[int], target: float) -> float:
        """Mean simulated seconds to a target; inf where one seed misses it."""
        found = [self.run(*setting, seed) for seed in seeds]
        return float(np.mean([r.time_to(target) if r else np.inf for r in found]))

    def tuned(self, family: str, target: float, tuning: list[int]) -> tuple[str, float]:
        """Choose form and step of a family."""
        settings = FAMILIES[family]
        first = sorted(settings, key=lambda s: self.seconds(s, tuning[:1], target))
        return min(first[:FINALISTS], key=lambda s: self.seconds(s, tuning, target))

    def measured(self, setting: tuple[str, float], seeds: list[int], target: float) -> FormResult:
        """Measure a setting over the evaluation seeds."""
        runs = [self.run(*setting, seed) for seed in seeds]
        return FormResult(*setting, [until(r, target) for r in runs if r], target, {})

    def tried(self, target: float, tuning: list[int]) -> list[list[object]]:
        """Seconds of every setting on the tuning seeds, None where it missed or was not run."""
        rows: list[list[object]] = []
        for settings in FAMILIES.values():
            for form, step in settings:
                row: list[object] = [form, step]
                for seed in tuning:
                    run = self.runs.get((form, step, seed))
                    time_s = run.time_to(target) if run else np.inf
                    row.append(time_s if np.isfinite(time_s) else None)
                rows.append(row)
        return rows


def main() -> None:
    args = options(
        "bench_mnist",
        __doc__,
        mnist={
            "type": Path,
            "default": os.environ.get("PERFEDS2_MNIST"),
            "help": "npz with train_<ue>_x ... of 20 UEs; PERFEDS2_MNIST does the same",
        },
    )
    if not args.mnist:
        print("bench_mnist: left out, give --mnist FILE or PERFEDS2_MNIST")
        return
    torch.set_num_threads(1)
    bench = Bench(
        ExperimentConfig.from_dict(
            {
                "data": {"source": "npz", "path": str(args.mnist)},
                "train": {"target_loss": min(TARGETS)},
            }
        )
    )
    seeds = list(range(2 if args.quick else 10))
    tuning = [TUNING_SEED, TUNING_SEED + 1]
    goals: list[dict] = []
    tables: list[dict] = []
    for target in TARGETS:
        best = {family: bench.tuned(family, target, tuning) for family in FAMILIES}
        found = [bench.measured(best[family], seeds, target) for family in FAMILIES]
        goals += verdicts(found, best["semi"][0], f"MNIST over 20 UEs, loss {target}")
        tables.append(as_table(found, f"Softmax regression, target loss {target}"))
        tables.append(
            table(
                f"All settings, seconds to {target} on the tuning seeds (empty: missed or not run)",
                ["form", "step", "first seed", "second seed"],
                bench.tried(target, tuning),
            )
        )
        # the file after the first target is complete for that target
        write(args.out, "bench_mnist", "Simulated seconds to a target loss on MNIST", goals, tables)


if __name__ == "__main__":
    main()
