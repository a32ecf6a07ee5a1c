"""Finds the compiled kernels; says once when they are absent."""

from __future__ import annotations

import ctypes
import importlib
import os
import warnings
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

ENVIRONMENT = "ELIXIR_ISA"
"""Environment variable that forces kernels: ``avx512``, ``avx2``, ``portable`` or ``torch``."""

_loaded: ModuleType | None = None
_tried = False


def native() -> Any:
    """Return the compiled module, or None where it is absent or ``ELIXIR_ISA=torch``."""
    global _loaded, _tried
    if isa() == "torch":
        return None
    if not _tried:
        _tried = True
        try:
            _loaded = importlib.import_module("elixir._native")
        except ImportError as error:
            warnings.warn(
                f"elixir's compiled kernels are absent ({error}); AdamW, copies and the planner "
                f"run "
                "on torch and Python, slower. `elixir doctor` says what is missing.",
                RuntimeWarning,
                stacklevel=2,
            )
    return _loaded


@lru_cache(maxsize=1)
def cuda() -> ctypes.CDLL | None:
    """Return the CUDA kernels, or None where the package was built without them."""
    folders = importlib.import_module("elixir").__path__
    for path in (p for folder in folders for p in Path(folder).glob("libelixir_cuda.*")):
        library = ctypes.CDLL(str(path))
        pointer = ctypes.c_void_p
        library.elixir_cuda_adamw.argtypes = [
            ctypes.POINTER(ctypes.c_float),
            *[pointer] * 4,
            ctypes.c_int,
            pointer,
            ctypes.c_int,
            ctypes.c_int64,
            pointer,
        ]
        library.elixir_cuda_not_finite.argtypes = [
            pointer,
            ctypes.c_int,
            ctypes.c_int64,
            pointer,
            pointer,
        ]
        return library
    return None


def isa() -> str:
    """Return the forced instruction set, or an empty string for the best one."""
    name = os.environ.get(ENVIRONMENT, "")
    allowed = ("", "avx512", "avx2", "portable", "torch")
    if name not in allowed:
        raise ValueError(f"{ENVIRONMENT}={name!r}: allowed are {', '.join(allowed[1:])}")
    return name


def available() -> list[str]:
    """Return the kernels that this processor and this build offer, best first."""
    module = native()
    return [*(module.available() if module else []), "torch"]
