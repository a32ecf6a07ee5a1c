"""What the benchmark scripts share: options, the environment, writing the result."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from backdoor_ft.environment import describe
from backdoor_ft.files import make_folder, write_atomically


def parser(description: str) -> argparse.ArgumentParser:
    """Options that every script has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--out", type=Path, required=True, help="folder for the result")
    options.add_argument("--threads", type=int, default=1, help="processor threads")
    return options


def goal(name: str, bar: str, measured: str, met: bool | None, note: str = "") -> dict:
    """Return one row of the goals."""
    row = {"name": name, "goal": bar, "measured": measured, "met": met}
    return row | ({"note": note} if note else {})


def command() -> str:
    """Return the command line of this run; a path outside the folder is cut to its last name."""
    words = []
    for word in sys.argv[1:]:
        path = Path(word)
        words.append(path.name if path.is_absolute() else word)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def write(
    arguments: argparse.Namespace,
    name: str,
    title: str,
    goals: list[dict],
    tables: list[dict],
    packages: tuple[str, ...] = ("torch", "numpy", "scikit-learn"),
) -> None:
    """Write the result and print its tables."""
    result = {
        "schema_version": 1,
        "package": "backdoor_ft",
        "version": version("backdoor-ft"),
        "benchmark": name,
        "title": title,
        "command": command(),
        "environment": describe(arguments.threads, packages),
        "goals": goals,
        "tables": tables,
    }
    make_folder(arguments.out)
    path = write_atomically(
        arguments.out / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode()
    )
    for row in goals:
        print(f"{row['name']}: {row['measured']} (bar {row['goal']}, met {row['met']})")
    for table in tables:
        print(f"\n{table['title']}\n" + " | ".join(table["columns"]))
        for row in table["rows"]:
            print(" | ".join(str(cell) for cell in row))
    print(path)
