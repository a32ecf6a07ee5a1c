"""Drawn cases against plain training, bit for bit; kills during saves; routed ranks; a soak."""

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import elixir
import psutil
import torch
from common import arguments, goal, write

TESTS = Path(__file__).resolve().parent.parent / "tests"


def load(name):
    """Import a module of the tests under a name of its own (both folders have a common.py)."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def soak(steps):
    """Train a small model for long; return the growth of resident memory after warming up."""
    helpers = sys.modules["common"]
    model, batches = helpers.gpt(), [helpers.gpt_batch(i) for i in range(8)]
    plan = elixir.plan(
        model, batches[0], device_budget="1GiB", hardware=elixir.Hardware(), recompute="none"
    )
    plan = plan._replan(device_budget=plan.least_budget)
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3, step_in_backward=True)
    process, sizes = psutil.Process(os.getpid()), []
    for step in range(steps):
        model(*batches[step % 8]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == steps // 5 or step == steps - 1:
            sizes.append(process.memory_info().rss)
    optimizer.close()
    return sizes[1] / sizes[0] - 1


def kills(count):
    """Kill a training process at random points of its saves; what is left must resume exactly."""
    kill_during_saves = load("test_checkpoint").kill_during_saves
    begin = time.perf_counter()
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            place = Path(folder) / str(number)
            place.mkdir()
            try:
                kill_during_saves(place, 1, seed=number)
                survived += 1
            except (AssertionError, elixir.CorruptCheckpointError) as error:
                print(f"kill {number}: {error}", file=sys.stderr)
    return goal(
        "SIGKILL at random points of a save: bit-exact resume",
        "100 of 100",
        f"{survived} of {count}",
        survived == count >= 100,
        f"{time.perf_counter() - begin:.0f} s",
    )


def routed(steps):
    """Randomly routed experts on 2 and 4 ranks; DDP's weights are checked after ten steps."""
    code = "import sys; from ranks import launch; launch(sys.argv[1], int(sys.argv[2]), '.', 1200)"
    done, seconds = [], []
    for world in (2, 4):
        begin = time.perf_counter()
        child = subprocess.run(
            [sys.executable, "-c", code, f"test_distributed:moe@{steps}", str(world)],
            cwd=TESTS,
            check=False,
        )
        if child.returncode == 0:
            done.append(world)
        seconds.append(time.perf_counter() - begin)
    return goal(
        "randomly routed experts with zero-token experts, hangs",
        "0 in 1,000 steps on 2 and 4 ranks",
        "0" if len(done) == 2 else f"ended on {done} of [2, 4] ranks",
        len(done) == 2 and steps >= 1000,
        f"{steps} steps each, one to three tokens for four experts; weights equal to DDP's after "
        f"ten steps (1e-5); {seconds[0]:.0f} and {seconds[1]:.0f} s",
    )


def case(seed):
    r = random.Random(seed)
    model = {"dim": r.choice([16, 24, 32]), "layers": r.randint(1, 3), "tied": r.random() < 0.5}
    plan = {
        "recompute": r.choice(["none", "all"]),
        "offload": r.choice(["none", "all"]),
        "prefetch": r.randint(0, 3),
        "policy": r.choice(["elixir", "elixir", "paper"]),
        "disk": r.random() < 0.5,
    }
    run = {
        "accumulate": r.choice([1, 1, 2]),
        "clip": r.choice([None, 1e-3, 10.0]),
        "step_in_backward": r.random() < 0.5,
        "budget": r.uniform(0, 3),
        "mover": r.choice(["plain", "adversarial"]),
    }
    return model, plan, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--soak", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--routed", type=int, default=1000, help="steps of routed experts")
    parser.add_argument(
        "--seconds", type=float, default=900.0, help="no new case starts after this"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.modules["common"] = load("common")
    check_case = load("test_runtime").check_case
    start, done, failed = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.cases):
            if time.perf_counter() - start > options.seconds:
                break
            try:
                check_case(case(seed), folder)
            except AssertionError:
                failed += 1
            done += 1
    goals = [
        goal(
            "bit-equal losses and weights, drawn cases",
            ">= 500 of 500",
            f"{done - failed} of {done}",
            failed == 0 and done >= 500,
            "model, budget, policy, recomputation, offload, prefetch, accumulation, "
            "clipping, updates in backward, disk, adversarial copies",
        ),
        goal(
            "device bytes over the budget in these cases",
            "0",
            "0" if not failed else "see failures",
            not failed,
            "arena, activations and gradients of the plan; the strict device is in the tests",
        ),
    ]
    drift = soak(options.soak)
    goals.append(
        goal(
            f"resident memory drift over {options.soak} steps",
            "< 1 %",
            f"{100 * drift:.2f} %",
            drift < 0.01,
            "between the first fifth and the end, plan at the least budget",
        )
    )
    goals += [kills(options.kills), routed(options.routed)]
    write(options.out, __file__, "Exactness and endurance", goals, [])


if __name__ == "__main__":
    main()
