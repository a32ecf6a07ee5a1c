"""Shared by the benchmarks of this package: arguments and the result file."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from elixir._files import write_text
from elixir.report import environment


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    return parser


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
    out: Path, script: str, title: str, goals: list[dict], tables: list[dict], accelerator: str = ""
) -> None:
    name = Path(script).stem
    about = environment()
    if accelerator:
        about["accelerator"] = accelerator
    result = {
        "schema_version": 1,
        "package": "elixir",
        "version": about["versions"]["elixir"],
        "benchmark": name,
        "title": title,
        "command": command(name),
        "environment": about,
        "goals": goals,
        "tables": tables,
    }
    write_text(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    print(f"{name}: {'; '.join(g['name'] + ': ' + g['measured'] for g in goals)}")


def goal(name: str, bar: str, measured: str, met: bool | None, note: str = "") -> dict:
    return {"name": name, "goal": bar, "measured": measured, "met": met, "note": note}
