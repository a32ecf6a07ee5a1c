"""The compiled part, if it is there: without it everything works, CIDEr-D more slowly."""

from __future__ import annotations

import os
import warnings
from functools import cache
from types import ModuleType

from .errors import InputError

try:
    import p2c._native as _compiled
except ImportError:  # a source tree that was not built, or a platform without a compiler
    _compiled = None  # type: ignore[assignment]

VARIABLE = "P2C_NATIVE"


@cache
def _warn_once() -> None:
    warnings.warn(
        "p2c runs without its compiled part: CIDEr-D is the same and slower; install it with a "
        "C++17 compiler at hand",
        RuntimeWarning,
        stacklevel=4,
    )


def compiled() -> ModuleType | None:
    """Return the compiled module; None, with one warning in all, where it was not built.

    The environment variable P2C_NATIVE forces it ("on") or Python ("off").

    Raises
    ------
    InputError
        The variable asks for what is not there, or has another value.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "on", "off"):
        raise InputError(f"{VARIABLE} = {wanted!r}: allowed is on or off")
    if wanted == "off":
        return None
    if _compiled is None:
        if wanted == "on":
            raise InputError(f"{VARIABLE} = 'on': needs the compiled part; install with a compiler")
        _warn_once()
    return _compiled
