"""What the commands share: output, corpus, evaluator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from ..errors import require

Json = Annotated[bool, Parameter(name="--json", negative="")]
Names = Annotated[list[str] | None, Parameter(name="--fail-if", negative="")]


def status_line() -> Callable[[str], None]:
    """Status on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda text: None
    return lambda text: console.print(f"[dim]{text}[/dim]", end="\r", soft_wrap=True)


def show_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table."""
    made = Table(title=title)
    for i, name in enumerate(columns):
        made.add_column(name.replace("_", " "), justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*(f"{v:.5g}" if isinstance(v, float) else str(v) for v in row))
    Console().print(made)


def print_json(value: Any) -> None:
    """Print JSON; a number that JSON does not know is a fault."""
    print(json.dumps(value, indent=2, allow_nan=False))


def texts(corpus: str) -> list[str]:
    """Lines of a file, or the bundled held-out verses under the name `held-out`."""
    from ..mini import held_out_sentences
    from ..mini_data import read_lines

    return held_out_sentences() if corpus == "held-out" else read_lines(corpus)


def evaluator_of(
    model: str, top: int, candidates: str, seed: int, cache: Path | None, budget_mib: int,
    dtype: str, device: str, floor: int = 24,
) -> Any:  # fmt: skip
    """Make the evaluator that the options of a command describe."""
    from ..evaluator import ConsistencyEvaluator, EvaluatorConfig
    from ..scorers import load

    require(budget_mib >= 1, "budget_mib", budget_mib, "at least 1")
    scorer, tokenizer = load(model, dtype, device)
    config = EvaluatorConfig(top, candidates, floor, seed)
    found = ConsistencyEvaluator(
        scorer, tokenizer, config, cache, budget_mib * 2**20, status_line()
    )
    found.name = model
    return found
