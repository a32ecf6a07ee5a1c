"""Shared by the benchmarks of this package: arguments and the result file."""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from nasa._files import write_text
from nasa.report import environment

ROOT = Path(__file__).resolve().parents[1]
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t for a two-sided 95 % interval, by number of values."""


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    return parser


def command(script: str) -> str:
    """Return the command that is running; paths outside the package lose their folders."""
    words = []
    for word in sys.argv[1:]:
        path = Path(word)
        if path.exists() and path.resolve().is_relative_to(ROOT):
            words.append(str(path.resolve().relative_to(ROOT)))
        else:
            words.append(path.name if "/" in word else word)
    return " ".join(["python", f"benchmarks/{Path(script).name}", *words])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t)."""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def write(
    out: Path, script: str, title: str, goals: list[dict], tables: list[dict], label: str = ""
) -> None:
    name = Path(script).stem + (f"_{label}" if label else "")
    about = environment()
    result = {
        "schema_version": 1,
        "package": "nasa",
        "version": about["versions"]["nasa"],
        "benchmark": name,
        "title": title,
        "command": command(script),
        "environment": about,
        "goals": goals,
        "tables": tables,
    }
    write_text(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    print(f"{name}: {', '.join(g['name'] + ': ' + g['measured'] for g in goals)}")


def goal(name: str, bar: str, measured: str, met: bool | None, note: str = "") -> dict:
    return {"name": name, "goal": bar, "measured": measured, "met": met, "note": note}
