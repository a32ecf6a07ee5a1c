"""What the benchmark scripts share: options, the result file, a printed table."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from migperf.study import environment


def parse(what: str, *, tables: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    if tables:
        parser.add_argument(
            "--tables",
            type=Path,
            default=os.environ.get("MIGPERF_TABLES"),
            help="the paper's measured A100-80GB tables ({infer,train}/*/integrated_result*.csv); "
            "also by MIGPERF_TABLES",
        )
    return parser.parse_args()


def goal(name: str, bar: str, measured: str, met: bool | None, note: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "goal": bar, "measured": measured, "met": met}
    return {**row, "note": note} if note else row


def table(title: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    return {"title": title, "columns": columns, "rows": rows}


def write(
    out: Path,
    script: str,
    title: str,
    goals: list[dict[str, Any]],
    tables: list[dict[str, Any]],
    peers: tuple[str, ...] = (),
    options: str = "",
) -> None:
    machine = environment()
    for peer in peers:
        try:
            machine["versions"][peer] = metadata.version(peer)
        except metadata.PackageNotFoundError:
            machine["versions"][peer] = "not installed"
    name = Path(script).stem
    result = {
        "schema_version": 1,
        "package": "migperf",
        "version": metadata.version("migperf"),
        "benchmark": name,
        "title": title,
        "command": f"python benchmarks/{name}.py --out benchmarks/results{options}",
        "environment": machine,
        "goals": goals,
        "tables": tables,
    }
    out.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".bench-", dir=out)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(result, indent=1) + "\n")
    Path(temporary).chmod(0o644)
    Path(temporary).replace(out / f"{name}.json")
    for row in goals:
        word = {True: "met", False: "NOT met", None: "left out"}[row["met"]]
        print(f"{word}: {row['name']}: {row['measured']} (goal {row['goal']})")
