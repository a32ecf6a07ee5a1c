"""What the benchmark scripts share: options, repeats, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from perfeds2.environment import describe
from perfeds2.files import write_json


def options(name: str, text: str, **extra: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python benchmarks/{name}.py", description=text)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    for flag, settings in extra.items():
        parser.add_argument(f"--{flag}", **settings)
    return parser.parse_args()


def data_file(variable: str, what: str) -> dict[str, Any]:
    """Option for a data file that the package does not ship."""
    return {
        "type": Path,
        "default": os.environ.get(variable),
        "help": f"{what}; {variable} does the same",
    }


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time several functions in turns, after one unmeasured call of each."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def goal(name: str, bar: str, measured: str, met: bool | None, note: str = "") -> dict[str, Any]:
    row = {
        "name": name,
        "goal": bar,
        "measured": measured,
        "met": None if met is None else bool(met),
    }
    if note:
        row["note"] = note
    return row


def table(title: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    clean = [[float(f"{v:.6g}") if isinstance(v, float) else v for v in row] for row in rows]
    return {"title": title, "columns": columns, "rows": clean}


def command(name: str) -> str:
    """Return the command that was run, paths outside the package by their last part."""
    words, rest = [], iter(sys.argv[1:])
    for word in rest:
        if word == "--out":
            next(rest)
        else:
            words.append(Path(word).name if Path(word).is_absolute() else word)
    return shlex.join(["python", f"benchmarks/{name}.py", *words, "--out", "benchmarks/results"])


def write(
    out: Path,
    name: str,
    title: str,
    goals: list[dict[str, Any]],
    tables: list[dict[str, Any]],
    threads: int = 1,
    packages: tuple[str, ...] = (),
) -> None:
    result = {
        "schema_version": 1,
        "package": "perfeds2",
        "version": version("perfeds2"),
        "benchmark": name,
        "title": title,
        "command": command(name),
        "environment": describe(threads, ("torch", "numpy", "numba", *packages)),
        "goals": goals,
        "tables": tables,
    }
    write_json(out / f"{name}.json", result)
    print(json.dumps(goals, indent=1))
