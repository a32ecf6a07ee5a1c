"""What the benchmark scripts share: options, the environment, writing the result."""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from noiser.environment import describe
from noiser.files import make_folder, write_atomically
from PIL import Image

BRACKETS = "NOISER_BRACKETS"


def parser(description: str, brackets: bool = False) -> argparse.ArgumentParser:
    """Options that every script has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--out", type=Path, required=True, help="folder for the result")
    if brackets:
        options.add_argument(
            "--brackets",
            type=Path,
            default=os.environ.get(BRACKETS),
            help="zip of exposure brackets, NNN/under.jpg, NNN/reference.jpg, NNN/over.jpg"
            f" (SICE); default: the environment variable {BRACKETS}",
        )
    return options


def read_brackets(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read the shots of each scene: {scene: {"under" | "reference" | "over": uint8 RGB}}."""
    scenes: dict[str, dict[str, np.ndarray]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                scene, shot = name.split("/")[-2:]
                with archive.open(name) as file, Image.open(file) as image:
                    scenes.setdefault(scene, {})[shot[:-4]] = np.asarray(image.convert("RGB"))
    return scenes


def write(
    out: Path,
    name: str,
    title: str,
    command: str,
    goals: list[dict],
    tables: list[dict],
    threads: int,
    packages: tuple[str, ...] = ("numpy", "pillow"),
) -> None:
    """Write the result and print its tables."""
    result = {
        "schema_version": 1,
        "package": "noiser",
        "version": version("noiser"),
        "benchmark": name,
        "title": title,
        "command": command,
        "environment": describe(threads, packages),
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
