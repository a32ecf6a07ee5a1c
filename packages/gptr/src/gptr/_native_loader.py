"""Finds the compiled descriptors; says once when they are absent."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType
from typing import Any

ENVIRONMENT = "GPTR_ISA"
"""Environment variable that forces code: ``avx512``, ``avx2``, ``portable`` or ``torch``."""

_loaded: ModuleType | None = None
_tried = False


def native() -> Any:
    """Return the compiled module, or None where it is absent or ``GPTR_ISA=torch``."""
    global _loaded, _tried
    if isa() == "torch":
        return None
    if not _tried:
        _tried = True
        try:
            _loaded = importlib.import_module("gptr._native")
        except ImportError as error:
            warnings.warn(
                f"gptr's compiled descriptors are absent ({error}); they are computed with NumPy, "
                "slower. Install the package with a C++17 compiler and CMake.",
                RuntimeWarning,
                stacklevel=2,
            )
    return _loaded


def isa() -> str:
    """Return the forced instruction set, or an empty string for the best one."""
    name = os.environ.get(ENVIRONMENT, "")
    allowed = ("", "avx512", "avx2", "portable", "torch")
    if name not in allowed:
        raise ValueError(f"{ENVIRONMENT}={name!r}: allowed are {', '.join(allowed[1:])}")
    return name


def available() -> list[str]:
    """Return the code that this processor and this build offer, best first."""
    module = native()
    return [*(module.available() if module else []), "torch"]
