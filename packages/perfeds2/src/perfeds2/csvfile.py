"""Columns of numbers from a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from .errors import InputError


def read_columns(path: Path, names: list[str]) -> dict[str, list[float]]:
    """Read some columns of a CSV file with a header; other columns are ignored.

    Raises
    ------
    InputError
        When the file cannot be read, a column is missing or a value is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        text = " ".join(str(error).split())
        raise InputError(f"ues = {str(path)!r}: allowed is a CSV file; {text}") from None
    header = [c.strip() for c in rows[0]] if rows else []
    missing = [n for n in names if n not in header]
    if missing or len(rows) < 2:
        raise InputError(
            f"ues = {str(path)!r}: allowed is a header with {', '.join(names)} and one row per UE"
        )
    columns: dict[str, list[float]] = {n: [] for n in names}
    for line, row in enumerate(rows[1:], start=2):
        for name in names:
            at = header.index(name)
            try:
                columns[name].append(float(row[at]))
            except (ValueError, IndexError):
                text = row[at] if at < len(row) else ""
                raise InputError(
                    f"{path.name}, line {line}, column {name} = {text!r}: allowed is a number"
                ) from None
    return columns
