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

ENVIRONMENT = "NASA_ISA"
"""Environment variable that forces kernels: ``avx512``, ``avx2``, ``portable`` or ``torch``."""

_loaded: ModuleType | None = None
_tried = False


def native() -> Any:
    """Return the compiled module, or None where it is absent or ``NASA_ISA=torch``."""
    global _loaded, _tried
    if isa() == "torch":
        return None
    if not _tried:
        _tried = True
        try:
            _loaded = importlib.import_module("nasa._native")
        except ImportError as error:
            warnings.warn(
                f"nasa's compiled kernels are absent ({error}); adder and integer layers run on "
                "torch, slower. `nasa doctor` says what is missing.",
                RuntimeWarning,
                stacklevel=2,
            )
    return _loaded


@lru_cache(maxsize=1)
def cuda() -> ctypes.CDLL | None:
    """Return the CUDA kernels, or None where the package was built without them."""
    for path in Path(__file__).parent.glob("libnasa_cuda.*"):
        library = ctypes.CDLL(str(path))
        numbers = ctypes.POINTER(ctypes.c_int64)
        library.nasa_cuda_adder_forward.argtypes = [numbers, *[ctypes.c_void_p] * 4]
        library.nasa_cuda_adder_grad_input.argtypes = [numbers, *[ctypes.c_void_p] * 5]
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
