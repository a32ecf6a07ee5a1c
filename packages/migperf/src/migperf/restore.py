"""Changes to the machine that end with the process that made them, however it ends.

Before a process changes something that outlives it (a MIG layout or mode, an MPS daemon, a control
group) it takes a `Hold`: a file that says what to put back, and a small guardian process. On exit
and on a signal the process puts everything back itself and releases the hold. When it is killed,
the guardian does so. Should the guardian be killed too, ``migperf recover`` and the next use of the
same backend read the file.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .errors import InputError, InstanceInUse, MigperfError, PermissionDenied

if TYPE_CHECKING:
    from .node import Gpu, Node

__all__ = ["Hold", "layout_record", "recover_holds", "restore_hold", "state_folder"]

_numbers = itertools.count()


def state_folder() -> Path:
    """Folder of journals and holds: MIGPERF_STATE_DIR, or the system's or the user's place."""
    chosen = os.environ.get("MIGPERF_STATE_DIR")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/migperf")
    return Path.home() / ".local" / "state" / "migperf"


class Hold:
    """What one process has changed, until it is put back.

    Parameters
    ----------
    path : Path
        The file.
    guardian : Popen
        The process that acts when this one dies.
    """

    def __init__(self, path: Path, guardian: subprocess.Popen[bytes]) -> None:
        self.path = path
        self._guardian = guardian

    def __repr__(self) -> str:
        return f"Hold({self.path.name})"

    @classmethod
    def take(cls, kind: str, record: Mapping[str, Any], folder: Path | None = None) -> Hold:
        """Write down what to put back; call it before the first change.

        Parameters
        ----------
        kind : str
            ``layout``, ``mps`` or ``cgroups``.
        record : mapping
            What the kind needs to put the former state back.
        folder : Path, optional
            Where to write; default `state_folder`.

        Raises
        ------
        PermissionDenied
            The folder cannot be written.
        """
        place = state_folder() if folder is None else folder
        owner = psutil.Process()
        data = {
            "schema_version": 1,
            "kind": kind,
            "pid": owner.pid,
            "started": owner.create_time(),
            **record,
        }
        path = place / f"{kind}-{owner.pid}-{next(_numbers)}.hold"
        try:
            place.mkdir(parents=True, exist_ok=True)
            _write(path, data)
        except OSError as error:
            raise PermissionDenied(
                f"state: {str(path)!r} cannot be written ({error.strerror}); "
                "set MIGPERF_STATE_DIR to another folder"
            ) from None
        guardian = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("_guardian.py")), str(path),
             str(owner.pid)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip
        return cls(path.absolute(), guardian)

    def release(self) -> None:
        """End the hold: everything is as it was before."""
        self.path.unlink(missing_ok=True)
        self._guardian.kill()
        self._guardian.wait()
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()


def _write(path: Path, data: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(data, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data["kind"] not in _RESTORERS:
            raise ValueError("unknown kind")
        float(data["started"]), int(data["pid"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"hold: {str(path)!r} is no hold ({error}); look at the machine, then delete the file"
        ) from None
    return data


def note_failure(path: Path, text: str) -> None:
    """Write into a hold why it could not be put back, for ``migperf recover`` to show."""
    if path.exists():
        _write(path, {**_read(path), "error": text})


def _alive(data: Mapping[str, Any]) -> bool:
    try:
        owner = psutil.Process(int(data["pid"]))
        same = bool(abs(owner.create_time() - float(data["started"])) < 1.0)
        return same and owner.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock the folder of a hold; yields whether the hold is still there."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path.exists()
    finally:
        os.close(descriptor)


def restore_hold(path: Path, node: Node | None = None) -> bool:
    """Put back what a dead process held.

    Parameters
    ----------
    path : Path
        The hold.
    node : Node, optional
        The machine, where this process has it open already.

    Returns
    -------
    bool
        False where somebody else was faster.

    Raises
    ------
    InputError
        The file is no hold.
    MigperfError
        It cannot be put back now; the hold stays.
    """
    with _locked(path) as there:
        if there:
            data = _read(path)
            _RESTORERS[data["kind"]](data, node)
            path.unlink()
        return there


def recover_holds(folder: Path | None = None, node: Node | None = None) -> list[str]:
    """Put back everything in a folder whose owner has died; one line for each.

    Holds of living processes stay. Layouts are only put back where `node` is given.
    """
    place = state_folder() if folder is None else folder
    found = []
    for path in sorted(place.glob("*.hold")):
        data = _read(path)
        if _alive(data) or (data["kind"] == "layout" and node is None):
            continue
        if restore_hold(path, node):
            found.append(f"{data['kind']} of process {data['pid']}: put back")
    return found


def layout_record(gpu: Gpu) -> dict[str, Any]:
    """Describe the present layout and mode of a GPU, as a hold needs it."""
    mode = gpu.mig_mode()
    simulator = gpu.node.simulator_path
    return {
        "gpu": gpu.uuid,
        "mode": mode is not None and mode[1],
        "instances": [g.to_json() for g in gpu.instances()],
        "simulator": None if simulator is None else str(simulator),
        "state_dir": str(gpu.node.state_dir.absolute()),
    }


def put_layout_back(gpu: Gpu, record: Mapping[str, Any]) -> None:
    """Bring a GPU to the layout and mode of a record of `layout_record`."""
    from .controller import Controller
    from .transition import GpuInstance

    mode = gpu.mig_mode()
    if mode is None:
        return
    wanted = tuple(sorted(GpuInstance.from_json(g) for g in record["instances"]))
    if mode[0]:
        Controller(gpu).restore(wanted)
    # Whoever changed the mode was allowed to; changing it back needs no second permission.
    if gpu.mig_mode() != (record["mode"], record["mode"]):
        gpu.set_mig_mode(record["mode"], allow_mode_change=True)


def _layout(data: Mapping[str, Any], node: Node | None) -> None:
    from .node import Node
    from .nvml.sim import Simulator

    if node is None:
        if data["simulator"] is not None and not Path(data["simulator"]).exists():
            return  # the simulated machine is gone, and its layout with it
        simulator = None if data["simulator"] is None else Simulator.open(data["simulator"])
        with Node.open(simulator, state_dir=data["state_dir"]) as opened:
            _layout(data, opened)
        return
    gpu = next((g for g in node.gpus if g.uuid == data["gpu"]), None)
    if gpu is None:
        raise InputError(f"hold: there is no GPU {data['gpu']} on this machine")
    put_layout_back(gpu, data)


def _mps(data: Mapping[str, Any], _: Node | None) -> None:
    from .mps import end_daemon

    end_daemon(data["control"], Path(data["folder"]))


def _cgroups(data: Mapping[str, Any], _: Node | None) -> None:
    for name in data["folders"]:
        remove_group(Path(name))


def remove_group(folder: Path) -> None:
    """Remove a control group, and end the processes in it, whose maker has died.

    Raises
    ------
    InstanceInUse
        A process is still in it; try again in a moment.
    """
    if not folder.is_dir():
        return
    members = folder / "cgroup.procs"
    for pid in members.read_text().split() if members.is_file() else ():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MigperfError(f"{folder}: {error.strerror}") from None
        raise InstanceInUse(f"{folder}: a process is still in it") from None


_RESTORERS: dict[str, Callable[[Mapping[str, Any], Any], None]] = {
    "layout": _layout,
    "mps": _mps,
    "cgroups": _cgroups,
}
