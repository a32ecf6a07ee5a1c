"""What the benchmark scripts share: options, the environment, writing the result."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from vitcod.environment import describe
from vitcod.files import make_folder, write_atomically

MASK = "VITCOD_MASK"


def parser(description: str) -> argparse.ArgumentParser:
    """Options that every script has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--out", type=Path, required=True, help="folder for the result")
    options.add_argument(
        "--mask",
        type=Path,
        default=os.environ.get(MASK),
        help="the authors' deit_tiny info_0.95.npy (bool, True = pruned);"
        f" default: the environment variable {MASK}",
    )
    return options


def command() -> str:
    """Return the command that is running; paths lose their folders, the result's folder is DIR."""
    words, out = [], False
    for word in sys.argv[1:]:
        words.append("DIR" if out else Path(word).name if "/" in word else word)
        out = word == "--out"
    return " ".join(["python", f"packages/vitcod/benchmarks/{Path(sys.argv[0]).name}", *words])


def write(
    out: Path,
    name: str,
    title: str,
    goals: list[dict],
    tables: list[dict],
    threads: int,
    accelerator: str = "",
) -> None:
    """Write the result and print its tables."""
    environment = describe(threads, ("torch", "numpy", "timm", "triton"))
    if accelerator:
        environment["accelerator"] = accelerator
    result = {
        "schema_version": 1,
        "package": "vitcod",
        "version": version("vitcod"),
        "benchmark": name,
        "title": title,
        "command": command(),
        "environment": environment,
        "goals": goals,
        "tables": tables,
    }
    make_folder(out)
    path = write_atomically(out / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
    for goal in goals:
        print(f"{goal['name']}: {goal['measured']} (bar {goal['goal']}, met {goal['met']})")
    for table in tables:
        print(f"\n{table['title']}\n" + " | ".join(table["columns"]))
        for row in table["rows"]:
            print(" | ".join(str(cell) for cell in row))
    print(path)
