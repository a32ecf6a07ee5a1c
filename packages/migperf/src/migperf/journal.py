"""The intent journal of a reconfiguration: written and synced before each driver call.

One file per GPU, JSON lines. A transaction begins with the state before and the state wanted, and
ends with ``commit`` or ``rolled_back``; a file that ends in neither tells the next run that a
process died in between.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, InstanceInUse, PermissionDenied
from .transition import Action, GpuInstance

__all__ = ["Journal", "Unfinished"]


@dataclass(frozen=True)
class Unfinished:
    """A transaction that neither ended nor was undone.

    Parameters
    ----------
    before, after : tuple of GpuInstance
        State at its begin and state wanted.
    """

    before: tuple[GpuInstance, ...]
    after: tuple[GpuInstance, ...]


class Journal:
    """Journal and lock of one GPU; use it as a context manager.

    Parameters
    ----------
    path : Path
        The file; its folder is created.

    Raises
    ------
    InstanceInUse
        Another process reconfigures this GPU right now.
    PermissionDenied
        The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PermissionDenied(
                f"journal: {str(self.path)!r} cannot be written ({error.strerror}); "
                "give another folder with state_dir"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            self._file = None
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise InstanceInUse(
                f"journal: {self.path.name} is locked, another process reconfigures this GPU; "
                "wait for it"
            ) from None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            os.close(self._file)  # drops the lock
            self._file = None

    @property
    def _descriptor(self) -> int:
        if self._file is None:
            raise RuntimeError("the journal is used outside its with block")
        return self._file

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        os.write(self._descriptor, line)
        os.fsync(self._descriptor)

    def begin(self, before: Sequence[GpuInstance], after: Sequence[GpuInstance]) -> None:
        """Start a transaction; older, finished ones are dropped from the file."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._append(
            {
                "record": "begin",
                "schema_version": 1,
                "pid": os.getpid(),
                "before": [g.to_json() for g in before],
                "after": [g.to_json() for g in after],
            }
        )

    def intent(self, action: Action) -> None:
        """Note what is about to be called."""
        self._append({"record": "intent", "action": action.to_json()})

    def done(self) -> None:
        """Note that the last intent took effect and was verified."""
        self._append({"record": "done"})

    def commit(self) -> None:
        """End the transaction: the wanted state stands."""
        self._append({"record": "commit"})

    def rolled_back(self) -> None:
        """End the transaction: the state before it stands again."""
        self._append({"record": "rolled_back"})

    def records(self) -> list[dict[str, Any]]:
        """All complete records; a torn last line, left by a crash, is ignored."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with os.fdopen(os.dup(self._descriptor), "rb") as stream:
            lines = stream.read().split(b"\n")
        records = []
        for number, line in enumerate(lines[:-1]):
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or "record" not in record:
                    raise ValueError("no record")
            except ValueError:
                raise InputError(
                    f"journal: line {number + 1} of {str(self.path)!r} is not a record; "
                    "look at the GPU with `migperf export`, then delete the file"
                ) from None
            records.append(record)
        return records

    def unfinished(self) -> Unfinished | None:
        """Return the transaction that a crash interrupted, if any."""
        records = self.records()
        if not records or records[-1]["record"] in ("commit", "rolled_back"):
            return None
        first = records[0]
        if first["record"] != "begin":
            raise InputError(
                f"journal: {str(self.path)!r} does not start with 'begin'; look at the GPU with "
                "`migperf export`, then delete the file"
            )
        return Unfinished(
            tuple(sorted(GpuInstance.from_json(g) for g in first["before"])),
            tuple(sorted(GpuInstance.from_json(g) for g in first["after"])),
        )
