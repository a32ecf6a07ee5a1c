"""Shared by the benchmarks of this package: arguments and the result file."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from gptr._files import write_text
from gptr.report import environment


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    return parser


def command(script: str) -> str:
    """Return the command that was run, paths outside the package by their last part."""
    words, rest = [], iter(sys.argv[1:])
    for word in rest:
        if word == "--out":
            next(rest)
        else:
            words.append(Path(word).name if Path(word).is_absolute() else word)
    return shlex.join(
        ["python", f"benchmarks/{Path(script).name}", *words, "--out", "benchmarks/results"]
    )


def write(out: Path, script: str, title: str, goals: list[dict], tables: list[dict]) -> None:
    name = Path(script).stem
    about = environment()
    result = {
        "schema_version": 1,
        "package": "gptr",
        "version": about["versions"]["gptr"],
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
