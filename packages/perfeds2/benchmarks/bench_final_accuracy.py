"""Accuracy after the same simulated seconds, for the settings that raced to a target loss.

The forms and steps are those that `bench_time_to_target` and `bench_mnist` chose on their tuning
seeds, read from their committed results. Every form trains for three times the seconds that
synchronous rounds with equal shares took to the target, on the ten seeds of those benchmarks.
On MNIST a second race tunes each form's step for that accuracy instead, on two other seeds: the
step that was fastest to the target, half of it or a quarter of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import data_file, goal, options, table, write
from perfeds2 import ExperimentConfig, Simulation
from perfeds2.compare import TUNING_SEED, interval, parse_form
from perfeds2.data import FederatedData, load_data
from perfeds2.result import RunResult

RESULTS = Path(__file__).parent / "results"
BUDGET = 3.0
FORMS = ("sync", "sync+optimal", "async", "async+processor_sharing")
EVALUATIONS = 30
SHARES = (1.0, 0.5, 0.25)  # of a form's fastest step, for the second race
Cell = tuple[str, float, int]


def chosen(benchmark: str, title: str) -> dict[str, dict[str, Any]]:
    """Rows of a committed table, by form; the semi-synchronous winner stands among them."""
    path = RESULTS / f"{benchmark}.json"
    tables = json.loads(path.read_text())["tables"]
    found = next(t for t in tables if t["title"] == title)
    rows = [dict(zip(found["columns"], row)) for row in found["rows"]]
    winner = next(r["form"] for r in rows if "+" in r["form"] and r["form"].startswith("semi"))
    return {r["form"]: r for r in rows if r["form"] in (*FORMS, winner)}


def train(
    config: ExperimentConfig, row: dict[str, Any], seed: int, budget_s: float, data: FederatedData
) -> RunResult:
    """Train one form for the budget, evaluated about thirty times on the way and at its end."""
    expected = row["server updates"] * budget_s / row["seconds"]
    changed = parse_form(row["form"], config).with_(
        seed=seed,
        server={"step": row["step"]},
        train={
            "rounds": 10**6,
            "target_loss": 0.0,
            "max_time_s": budget_s,
            "eval_every": max(1, int(expected / EVALUATIONS)),
        },
    )
    simulation = Simulation(changed, dataset=data)
    simulation.run()
    simulation.record()
    result = simulation.result("time")
    print(row["form"], row["step"], seed, result, f"{result.accuracy[-1]:.4f}", flush=True)
    return result


def accuracy_at(run: RunResult, second: float) -> float:
    """Accuracy in percent at the last evaluation up to a simulated second."""
    return 100 * float(run.accuracy[np.searchsorted(run.eval_s, second, side="right") - 1])


def difference(runs: list[RunResult], peer: list[RunResult], second: float) -> tuple[float, float]:
    """Mean difference in points and its 95 % half-width, paired by seed."""
    return interval([accuracy_at(a, second) - accuracy_at(b, second) for a, b in zip(runs, peer)])


class Race:
    """One data set, its settings and the runs so far."""

    def __init__(
        self, name: str, config: ExperimentConfig, rows: dict[str, dict[str, Any]], seeds: int
    ) -> None:
        self.name, self.config, self.rows, self.seeds = name, config, rows, seeds
        self.once = rows["sync"]["seconds"]
        self.budget = BUDGET * self.once
        self.shared = None if config.data.source == "digits" else load_data(config)
        self.runs: dict[Cell, RunResult] = {}

    def run(self, form: str, step: float, seed: int) -> RunResult:
        """Train a form with a step, once."""
        if (form, step, seed) not in self.runs:
            data = self.shared or load_data(self.config.with_(seed=seed))
            row = {**self.rows[form], "step": step}
            self.runs[form, step, seed] = train(self.config, row, seed, self.budget, data)
        return self.runs[form, step, seed]

    def tuned(self) -> dict[str, float]:
        """Choose the steps with the best accuracy at the end of the budget, on two other seeds."""
        best = {}
        for form, row in self.rows.items():
            found = {}
            for share in SHARES:
                runs = [self.run(form, share * row["step"], TUNING_SEED + i) for i in range(2)]
                found[share * row["step"]] = sum(accuracy_at(r, self.budget) for r in runs)
            best[form] = max(found, key=lambda step: found[step])
        return best

    def verdict(self, steps: dict[str, float], what: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the goal row and the table of these steps."""
        found = {f: [self.run(f, s, seed) for seed in range(self.seeds)] for f, s in steps.items()}
        semi = next(form for form in steps if form.startswith("semi"))
        final = {
            form: float(np.mean([accuracy_at(run, self.budget) for run in runs]))
            for form, runs in found.items()
        }
        best = max((f for f in final if f != semi), key=lambda f: final[f])
        gap, half = difference(found[semi], found[best], self.budget)
        others = ", ".join(f"{f} {final[f]:.2f} %" for f in final if f != semi)
        row = goal(
            f"{self.name}, {what}: accuracy of {semi} after {self.budget:.0f} simulated seconds",
            "within 0.5 point of the best peer",
            f"{final[semi]:.2f} %, {gap:+.2f} +- {half:.2f} points to {best}, {self.seeds} seeds",
            gap >= -0.5,
            f"{others}; three times the seconds of sync to its target loss",
        )
        marks = [k * self.once for k in (0.25, 0.5, 1.0, 2.0, 3.0)]
        lines = [
            [form, steps[form], float(np.mean([len(r.counts) for r in runs]))]
            + [float(np.mean([accuracy_at(r, m) for r in runs])) for m in marks]
            + [100 * float(np.mean([r.ue_accuracy.min() for r in runs]))]
            for form, runs in found.items()
        ]
        columns = ["form", "step", "server updates"]
        columns += [f"accuracy % at {m:.1f} s" for m in marks]
        columns += ["worst UE at the end %"]
        title = f"{self.name}, {what}: accuracy over simulated seconds, mean of {self.seeds} seeds"
        return row, table(title, columns, lines)


def main() -> None:
    args = options(
        "bench_final_accuracy",
        __doc__,
        mnist=data_file("PERFEDS2_MNIST", "npz with train_<ue>_x ... of 20 UEs"),
    )
    torch.set_num_threads(1)
    races: list[tuple[str, ExperimentConfig, dict[str, dict[str, Any]]]] = []
    for labels, target in ((4, 0.35), (2, 0.25)):
        name = f"digits, {labels} labels per UE"
        config = ExperimentConfig.from_dict({"data": {"labels_per_ue": labels}})
        rows = chosen("bench_time_to_target", f"{name}, target loss {target}")
        races.append((name, config, rows))
    if args.mnist:
        config = ExperimentConfig.from_dict({"data": {"source": "npz", "path": str(args.mnist)}})
        rows = chosen("bench_mnist", "Softmax regression, target loss 0.3")
        races.append(("MNIST over 20 UEs", config, rows))
    goals, tables = [], []

    def add(row: dict[str, Any], lines: dict[str, Any]) -> None:
        goals.append(row)
        tables.append(lines)
        title = "Accuracy after the same simulated seconds"
        write(args.out, "bench_final_accuracy", title, goals, tables)

    for name, config, rows in races:
        race = Race(name, config, rows, 2 if args.quick else 10)
        fastest = {form: row["step"] for form, row in rows.items()}
        add(*race.verdict(fastest, "steps fastest to the target"))
        if config.data.source == "npz":
            add(*race.verdict(race.tuned(), "steps tuned for accuracy"))


if __name__ == "__main__":
    main()
