"""What the benchmark scripts share: options, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from p2c.environment import describe
from p2c.files import write_json


def options(name: str, text: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python benchmarks/{name}.py", description=text)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    return parser.parse_args()


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time several functions in turns, after one unmeasured call of each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> tuple[float, str]:
    """Return the ratio of medians, and in words with the spread of the paired ratios."""
    pairs = [a / b for a, b in zip(times[slow], times[fast])]
    value = statistics.median(times[slow]) / statistics.median(times[fast])
    words = f"{value:.1f} times ({min(pairs):.1f} to {max(pairs):.1f}), {len(pairs)} repeats"
    return value, f"{words}, one thread"


def goal(name: str, bar: str, measured: str, met: bool | None, note: str = "") -> dict[str, Any]:
    row = {"name": name, "goal": bar, "measured": measured, "met": met}
    return {**row, "note": note} if note else row


def command(script: str) -> str:
    """Return the command that was run; a path is given by its last part."""
    words = [Path(w).name if os.sep in w else w for w in sys.argv[1:]]
    if "--out" in words:
        words[words.index("--out") + 1] = "benchmarks/results"
    return " ".join([f"python benchmarks/{script}.py", *words])


def write(
    out: Path, name: str, title: str, goals: list[Any], tables: list[Any], script: str = ""
) -> None:
    result = {
        "schema_version": 1,
        "package": "p2c",
        "version": version("p2c"),
        "benchmark": name,
        "title": title,
        "command": command(script or name),
        "environment": describe(1, ("torch", "numpy", "pycocoevalcap", "transformers")),
        "goals": goals,
        "tables": tables,
    }
    write_json(out / f"{name}.json", result)
    print(json.dumps(goals, indent=1))
