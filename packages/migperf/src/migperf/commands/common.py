"""What the subcommands share: output, opening the node, writing files."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import InputError, PermissionDenied
from ..node import Gpu, Node
from ..nvml.sim import Simulator

__all__ = ["gpu_of", "open_node", "print_json", "print_table", "progress", "write_text"]


def open_node(sim: str | None) -> Node:
    """Open what ``--sim`` or MIGPERF_SIM_STATE name, else the real driver.

    Parameters
    ----------
    sim : str or None
        A state file, or the name of a machine that lives as long as the command.
    """
    name = sim or os.environ.get("MIGPERF_SIM_STATE")
    if not name:
        return Node.open()
    if Path(name).exists() or os.sep in name:
        return Node.open(Simulator.open(name))
    return Node.open(name)


def gpu_of(node: Node, index: int) -> Gpu:
    """GPU by index."""
    if not 0 <= index < len(node.gpus):
        raise InputError.of("gpu", index, f"0 to {len(node.gpus) - 1}")
    return node.gpus[index]


def mode_change_allowed() -> bool:
    """Whether the user has allowed MIG mode changes on real hardware."""
    return os.environ.get("MIGPERF_ALLOW_MODE_CHANGE") == "1"


def print_json(data: Any) -> None:
    """Write one JSON document to standard output."""
    print(json.dumps(data, indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table to standard output."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)


def progress(text: str) -> None:
    """Show what is going on, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it.

    Raises
    ------
    PermissionDenied
        The folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise PermissionDenied(f"out: {str(path)!r} cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
