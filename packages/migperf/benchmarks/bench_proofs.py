"""The long checks that decide a goal by passing: the stress tests, run one by one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from common import goal, parse, write

TESTS = Path(__file__).parents[1] / "tests"
CHECKS = (
    (
        "planner equal to brute force on random instances",
        "1000 of 1000",
        "1000 of 1000, each proven by the solver, no heuristic better",
        "test_planner.py::test_equal_to_brute_force_on_1000_instances",
    ),
    (
        "kill -9 inside `apply`, then resume: target or former layout, never a third",
        ">= 500 points",
        "0 third layouts at 500 points",
        "test_controller.py::test_kill_at_500_points",
    ),
)


def main() -> None:
    arguments = parse(__doc__ or "")
    goals = []
    for name, bar, passed, test in CHECKS:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "stress", str(TESTS / test)],
            cwd=TESTS.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        good = done.returncode == 0 and "1 passed" in done.stdout
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
        goals.append(
            goal(name, bar, passed if good else f"failed: {last}", good,
                 f"tests/{test}, {time.monotonic() - started:.0f} s")
        )  # fmt: skip
    write(arguments.out, __file__, "Long checks", goals, [], ("scipy",))


if __name__ == "__main__":
    main()
