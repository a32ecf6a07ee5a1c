"""Writing files so that a reader sees the old one or the new one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import InputError


def write_atomic(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write under a temporary name in the same folder, then rename."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(
            f"output = {str(path)!r}: allowed is a folder that can be written; {error.strerror}"
        ) from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically."""
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically; numbers that are not finite are refused."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write an npz file atomically."""
    return write_atomic(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def read_arrays(path: str | Path, name: str = "file") -> dict[str, np.ndarray]:
    """Read an npz file without unpickling anything."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # a broken archive raises many types; all mean the same
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} = {str(path)!r}: allowed is a readable npz file; {text}"
        ) from None
