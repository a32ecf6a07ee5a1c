"""What the subcommands print: status lines, tables, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, Parameter(name="--json", negative="")]


def status() -> Callable[[str], None]:
    """Return a printer of status lines: on a terminal only, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda text: None
    return lambda text: console.print(f"[dim]{text}[/dim]", end="\r", soft_wrap=True)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table; numbers with six digits."""
    found = Table(title=title)
    for i, name in enumerate(columns):
        found.add_column(name.replace("_", " "), justify="left" if i == 0 else "right")
    for row in rows:
        found.add_row(*(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row))
    Console().print(found)


def print_json(value: Any) -> None:
    """Print finite JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))
