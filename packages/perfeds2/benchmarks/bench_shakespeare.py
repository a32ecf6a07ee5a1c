"""Simulated seconds to a target loss on a play: the next character, one speaker per UE.

A small GRU, 20 speakers, a window every 200 characters. The step of each form is tuned on one seed
and the forms are measured on two others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from _common import data_file, goal, options, table, write
from bench_time_to_target import as_table
from perfeds2 import ExperimentConfig, Simulation
from perfeds2.compare import TUNING_SEED, FormResult, parse_form, ratio_interval
from perfeds2.data import FederatedData, federate, read_play, windows_by_speaker
from perfeds2.errors import DivergedError
from perfeds2.result import RunResult

TARGET = 3.2
FORMS = {
    "sync": (1.0, 2.0),
    "sync+optimal": (),
    "semi:10+processor_sharing": (1.0, 2.0),
    "async": (0.1, 0.2),
}


def speakers(path: Path, ues: int, seed: int) -> FederatedData:
    """Windows of 20 characters of the busiest speakers."""
    x, y, parts, symbols = windows_by_speaker(*read_play(path), ues, stride=200)
    return federate(x, y, parts, 0.25, seed, symbols)


def train(config: ExperimentConfig, form: str, step: float, seed: int, data: Path) -> RunResult:
    many = form.startswith("async")
    changed = parse_form(form, config).with_(
        seed=seed,
        server={"step": step},
        train={"rounds": 900 if many else 90, "eval_every": 30 if many else 3},
    )
    run = Simulation(changed, dataset=speakers(data, config.ues, seed)).run()
    print(form, step, seed, run, flush=True)
    return run


def tried_seconds(config: ExperimentConfig, form: str, step: float, data: Path) -> float:
    """Seconds to the target on the tuning seed; inf where it is missed."""
    try:
        return train(config, form, step, TUNING_SEED, data).time_to(TARGET)
    except DivergedError:
        return np.inf


def main() -> None:
    args = options(
        "bench_shakespeare",
        __doc__,
        play=data_file("PERFEDS2_PLAY", "text with lines 'Name:' before each speech"),
    )
    if not args.play:
        print("bench_shakespeare: left out, give --play FILE or PERFEDS2_PLAY")
        return
    torch.set_num_threads(1)
    seeds = range(1 if args.quick else 2)
    config = ExperimentConfig.from_dict(
        {"model": {"kind": "chargru", "hidden": 32}, "train": {"target_loss": TARGET}}
    )
    found: dict[str, FormResult] = {}
    tried: list[list[object]] = []
    for form, grid in FORMS.items():
        # the learning curve over rounds is the same for both synchronous forms: one step for both
        steps = (found["sync"].step,) if form == "sync+optimal" else grid
        times = {step: tried_seconds(config, form, step, args.play) for step in steps}
        tried += [[form, s, t if np.isfinite(t) else None] for s, t in times.items()]
        best = min(times, key=lambda s: times[s])
        runs = [train(config, form, best, seed, args.play) for seed in seeds]
        found[form] = FormResult(form, best, runs, TARGET, times)
    ours = found["semi:10+processor_sharing"]
    goals = []
    for form in FORMS:
        if form == ours.form:
            continue
        mid, low, high = ratio_interval(found[form].seconds, ours.seconds)
        goals.append(
            goal(
                f"tiny Shakespeare by speaker: {ours.form} against {form}",
                "shown, no bar",
                f"{mid:.2f} (95 % {low:.2f} to {high:.2f}) times faster, {len(seeds)} seeds",
                None,
                f"next character, small GRU, loss {TARGET}; steps tuned on another seed",
            )
        )
    write(
        args.out,
        "bench_shakespeare",
        "Simulated seconds to a target loss on a play, by speaker",
        goals,
        [
            as_table(list(found.values()), f"GRU of 32 units, target loss {TARGET}"),
            table("Steps tried on the tuning seed", ["form", "step", "seconds"], tried),
        ],
    )


if __name__ == "__main__":
    main()
