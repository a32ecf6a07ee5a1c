"""Byte sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {f"{_letter}B": 1000**_power, f"{_letter}iB": 1024**_power, _letter: 1024**_power}


def parse_bytes(value: int | float | str, argument: str = "size") -> int:
    """Return a size in bytes.

    Parameters
    ----------
    value
        A number of bytes, or text such as ``"20GiB"``, ``"512 MB"``, ``"4096"``; a bare ``K``,
        ``M``,
        ``G`` or ``T`` is binary.
    argument
        Name used in the error message.

    Raises
    ------
    ValueError
        If the text is not a size or the size is not positive.

    Examples
    --------
    >>> parse_bytes("1.5GiB")
    1610612736
    """
    if isinstance(value, int | float):
        number, unit = float(value), ""
    else:
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", value)
        if not found or found[2] not in _UNITS:
            raise ValueError(
                f"{argument}={value!r}: allowed are bytes or text such as 20GiB, 512MB"
            )
        number, unit = float(found[1]), found[2]
    size = int(number * _UNITS[unit])
    if size <= 0:
        raise ValueError(f"{argument}={value!r}: must be positive")
    return size


def format_bytes(size: float) -> str:
    """Return a size with three figures and a binary unit.

    Examples
    --------
    >>> format_bytes(1610612736)
    '1.5 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
