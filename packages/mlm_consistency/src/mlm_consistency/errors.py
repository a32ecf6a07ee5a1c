"""The errors of this package: one line that names the argument, the value and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """An argument or a file is not usable; the command line exits with code 2."""


class ProbeError(InputError):
    """A probe cannot be scored as asked (splits, truncation, changed neighbours, no mask)."""


class ScoreError(InputError):
    """A model returned logits that are no log-probabilities (NaN, all minus infinity)."""


class SupportError(InputError):
    """A table has a row or column without any support, so that no conditional exists."""


class VerdictError(RuntimeError):
    """The computation says no (not converged, gate failed); the command line exits with code 3."""


def require(condition: bool, name: str, value: object, allowed: str, remedy: str = "") -> None:
    """Raise `InputError` with the uniform one-line message unless `condition` holds.

    Examples
    --------
    >>> require(3 > 0, "pairs", 3, "at least 1")
    >>> require(False, "pairs", 0, "at least 1", "use 500 for an interval")
    Traceback (most recent call last):
        ...
    mlm_consistency.errors.InputError: pairs = 0: allowed is at least 1; use 500 for an interval
    """
    if not condition:
        tail = f"; {remedy}" if remedy else ""
        raise InputError(f"{name} = {value!r}: allowed is {allowed}{tail}")
