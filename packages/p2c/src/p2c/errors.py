"""The errors of this package: one line that names the argument, the value and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """An argument or a file is not usable; the command line exits with code 2."""


class NotFiniteError(RuntimeError):
    """Rewards or losses stayed not finite; the command line exits with code 3."""


def require(condition: bool, name: str, value: object, allowed: str, remedy: str = "") -> None:
    """Raise `InputError` with the uniform one-line message unless `condition` holds.

    Examples
    --------
    >>> require(3 > 0, "samples", 3, "at least 1")
    >>> require(False, "samples", 0, "at least 1")
    Traceback (most recent call last):
        ...
    p2c.errors.InputError: samples = 0: allowed is at least 1
    """
    if not condition:
        tail = f"; {remedy}" if remedy else ""
        raise InputError(f"{name} = {value!r}: allowed is {allowed}{tail}")
