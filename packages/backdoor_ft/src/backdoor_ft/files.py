"""Writing a file so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from backdoor_ft.errors import InputError


def write_atomically(path: Path | str, data: bytes) -> Path:
    """Write `data` under a temporary name in the same folder, then rename it to `path`.

    Parameters
    ----------
    path : file to write; its folder must exist
    data : the complete content

    Returns
    -------
    the path

    Raises
    ------
    InputError
        The file cannot be written: no such folder, no permission, no space.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"output={str(path)!r} cannot be written ({error.strerror}):"
            " name a file in a folder with write permission and free space"
        ) from error
    return path


def make_folder(path: Path | str) -> Path:
    """Create a folder and its parents, and check that it can be written to.

    Parameters
    ----------
    path : folder

    Returns
    -------
    the path

    Raises
    ------
    InputError
        It cannot be created or entered for writing.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise InputError(
            f"out={str(path)!r} cannot be used as a folder ({error.strerror}):"
            " name a folder with write permission"
        ) from error
    if not writable:
        raise InputError(
            f"out={str(path)!r} has no write permission: name a folder with write permission"
        )
    return path
