"""Writing files so that a reader sees the old one or the new one, and reading them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

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
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def read_json(path: str | Path, name: str) -> Any:
    """Read a JSON file; a missing or broken one is an `InputError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{name} = {str(path)!r}: allowed is a readable JSON file; {error.strerror}"
        ) from None
    except ValueError as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"{name} = {str(path)!r}: allowed is a JSON file; {text}") from None


def save_tensors(path: str | Path, state: dict[str, Any]) -> Path:
    """Write a state dictionary of tensors and plain values atomically."""
    return write_atomic(path, lambda file: torch.save(state, file))


def load_tensors(path: str | Path, name: str = "checkpoint") -> dict[str, Any]:
    """Read what `save_tensors` wrote, without running code from the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(
            f"{name} = {str(path)!r}: allowed is a readable checkpoint; {error.strerror}"
        ) from None
    except Exception as error:  # a broken archive raises many types; all mean the same
        text = " ".join(str(error).split())[:120]
        raise InputError(
            f"{name} = {str(path)!r}: allowed is a checkpoint of p2c; {text}"
        ) from None
    if not isinstance(state, dict):
        raise InputError(f"{name} = {str(path)!r}: allowed is a checkpoint of p2c")
    return state
