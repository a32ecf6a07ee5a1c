"""Training on the strict device: what its allocator counts against the budget."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import elixir
import torch
from common import arguments, goal, write
from elixir.testing import sim

TESTS = Path(__file__).resolve().parent.parent / "tests"


def load(name):
    """Import a module of the tests under a name of its own (both folders have a common.py)."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def drawn(tests, count, steps):
    """Train drawn cases, each under its plan's budget; return what was counted, and failures."""
    rows, failures = [], []
    for seed in range(1000, 1000 + count):
        case = tests.draw(seed)
        try:
            rows.append(tests.check_case(case, steps=steps))
        except (AssertionError, torch.OutOfMemoryError, elixir.BudgetExceededError) as error:
            failures.append(seed)
            print(f"case {seed}: {error!r} {case}", file=sys.stderr)
            error.__traceback__ = None
            tests.everything_freed()
    return rows, failures


def larger_than_the_device(tests, steps=10):
    """Train a GPT whose state is ten times the budget; return ratio, peak share, loss error."""
    helpers = sys.modules["common"]
    batches = [helpers.gpt_batch(i, batch=1, length=4) for i in range(steps)]
    model = helpers.gpt(dim=64, layers=12, context=8)
    state = 16 * sum(p.numel() for p in model.parameters())
    plan = elixir.plan(
        model,
        batches[0],
        device_budget=state // 10,
        hardware=helpers.HARDWARE,
        device="sim",
        recompute="all",
    )
    expected = helpers.plain_steps(helpers.gpt(dim=64, layers=12, context=8), batches)
    losses, weights, counted = tests.train(model, batches, plan)
    error = max(abs(a - b) for a, b in zip(losses, expected[0], strict=True))
    equal = all(torch.equal(v, weights[k]) for k, v in expected[1].items())
    return state / plan.device_budget, counted["peak"] / plan.device_budget, error, equal


def predicted(tests):
    """Return the allocator's peaks over the predicted ones, in bytes, for plans of each kind."""
    helpers = sys.modules["common"]
    batches = [helpers.gpt_batch(i) for i in range(3)]
    errors = []
    for tier in ("host", "device", "pinned"):
        for recompute in ("none", "all", ["blocks.1"]):
            for dtype in (torch.float32, torch.bfloat16):
                model = helpers.gpt()
                plan = elixir.plan(
                    model,
                    batches[0],
                    device_budget="1GiB",
                    hardware=helpers.HARDWARE,
                    device="sim",
                    recompute=recompute,
                    dtype=dtype,
                ).override("*", tier=tier)
                _, _, counted = tests.train(model, batches, plan)
                errors.append(counted["peak"] - counted["arena"] - plan.activation_bytes)
    return errors


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault(sim.SOURCE, str(TESTS.parent / "csrc" / "sim"))
    begin = time.perf_counter()
    sim.load()
    built = time.perf_counter() - begin
    sys.modules["common"] = load("common")
    sys.path.append(str(TESTS))
    tests = load("test_sim_device")
    rows, failures = drawn(tests, options.cases, options.steps)
    over = max(max(r["peak"] - r["budget"], 0) for r in rows)
    shares = sorted(r["peak"] / r["budget"] for r in rows)
    space = max(rows, key=lambda r: r["workspace"] / r["budget"])
    ratio, share, error, equal = larger_than_the_device(tests)
    errors = predicted(tests)
    goals = [
        goal(
            "device bytes over the budget, counted by the allocator of the strict device",
            "0",
            f"{over}" if not failures else f"{len(failures)} cases failed",
            over == 0 and not failures and len(rows) == options.cases >= 50,
            f"{len(rows)} drawn cases from initialize to close; peaks from "
            f"{100 * shares[0]:.0f} to {100 * shares[-1]:.1f} % of the budget; "
            f"{sum(r['refused'] for r in rows)} allocations refused",
        ),
        goal(
            "bit-equal losses and weights on the strict device, drawn cases",
            "all",
            f"{len(rows)} of {options.cases}",
            len(rows) == options.cases,
            "as above, with bfloat16, chunks pinned, on disk, or with states on the device",
        ),
        goal(
            "training state over the strict device's budget",
            ">= 10",
            f"{ratio:.1f}",
            ratio >= 10 and share <= 1 and error == 0 and equal,
            f"peak {100 * share:.1f} % of the budget; losses and weights bit-equal"
            if equal and error == 0
            else f"loss off by {error}",
        ),
        goal(
            "allocator's peak over the predicted peak",
            "0 bytes",
            f"{max(errors, key=abs)} bytes",
            not any(errors),
            f"worst of {len(errors)} plans, copies that take no time",
        ),
        goal(
            "most workspace that operators held beside their tensors",
            "shown",
            f"{space['workspace'] / 1024:.1f} KiB",
            None,
            f"{100 * space['workspace'] / space['budget']:.1f} % of the budget in its case; CPU "
            f"kernels' own, counted but in no budget",
        ),
    ]
    print(f"the device was built or found in {built:.1f} s", file=sys.stderr)
    write(options.out, __file__, "The strict device", goals, [])


if __name__ == "__main__":
    main()
