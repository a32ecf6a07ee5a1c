"""NVIDIA MPS: one control daemon per GPU or MIG device, ended when the block ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from .errors import InputError, MigperfError
from .restore import Hold

__all__ = ["MpsDaemon", "end_daemon", "find_mps"]

_CONTROL = "nvidia-cuda-mps-control"
_END_SECONDS = 10.0


def find_mps() -> str | None:
    """Path of the control program, or None."""
    return shutil.which(_CONTROL)


class MpsDaemon:
    """Runs a daemon for one device; a context manager.

    Parameters
    ----------
    device : str
        UUID of a GPU or a MIG device. A UUID, not an index: the daemon renumbers indices.
    control : str, optional
        Control program; default the one on PATH.
    default_percent : int, optional
        Share of multiprocessors that clients get unless they ask for less.
    static_partitioning : bool
        Start with ``-S`` (partitions of whole multiprocessors).
    protocol : int
        2, or 3 for the version of the control protocol that takes TOML files (``-p 3``).

    Examples
    --------
    >>> env = MpsDaemon("GPU-1", control="true").client_env(percent=25)
    >>> env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]
    '25'
    """

    def __init__(
        self,
        device: str,
        *,
        control: str | None = None,
        default_percent: int | None = None,
        static_partitioning: bool = False,
        protocol: int = 2,
    ) -> None:
        if protocol not in (2, 3):
            raise InputError.of("protocol", protocol, "2, 3")
        if default_percent is not None:
            _percent(default_percent)
        self.device = device
        self._control = control or find_mps()
        self._percent = default_percent
        self._flags = ["-S"] if static_partitioning else []
        self._flags += ["-p", "3"] if protocol == 3 else []
        self._folder: Path | None = None
        self._hold: Hold | None = None

    @property
    def folder(self) -> Path:
        """Folder of the daemon's pipe and log directories; each daemon needs its own."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="migperf-mps-"))
            (self._folder / "pipe").mkdir()
            (self._folder / "log").mkdir()
        return self._folder

    def daemon_env(self) -> dict[str, str]:
        """Environment of the daemon and of control commands."""
        return {
            "CUDA_VISIBLE_DEVICES": self.device,
            **_directories(self.folder),
        }

    def client_env(
        self,
        *,
        percent: int | None = None,
        memory_mib: int | None = None,
        priority: int | None = None,
    ) -> dict[str, str]:
        """Environment of a client process.

        Parameters
        ----------
        percent : int, optional
            Share of multiprocessors, 1 to 100; it can only lower the daemon's value.
        memory_mib : int, optional
            Device memory limit in MiB.
        priority : int, optional
            0 (normal) or 1 (below normal).
        """
        env = {**_directories(self.folder), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if percent is not None:
            env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(_percent(percent))
        if memory_mib is not None:
            if memory_mib < 1:
                raise InputError.of("memory_mib", memory_mib, "an integer >= 1")
            # The daemon shows its one device as number 0.
            env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={memory_mib}M"
        if priority is not None:
            if priority not in (0, 1):
                raise InputError.of("priority", priority, "0, 1")
            env["CUDA_MPS_CLIENT_PRIORITY"] = str(priority)
        return env

    def command(self, text: str) -> str:
        """Send one command to the daemon and return its answer.

        Raises
        ------
        MigperfError
            The daemon does not answer.
        """
        return self._run([], text + "\n")

    def _run(self, flags: list[str], text: str | None) -> str:
        if self._control is None:
            raise _no_control()
        try:
            result = subprocess.run(
                [self._control, *flags],
                input=text, capture_output=True, text=True, timeout=20, check=False,
                env={**os.environ, **self.daemon_env()},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MigperfError(f"mps: {self._control} failed ({error})") from None
        if result.returncode:
            detail = " ".join((result.stderr or result.stdout).split())
            raise MigperfError(f"mps: {self._control} exits with {result.returncode} ({detail})")
        return result.stdout.strip()

    def clients(self) -> list[int]:
        """Process ids that the daemon really serves.

        A client runs without MPS, and says nothing, when no daemon answers it: compare this with
        the processes that were started.
        """
        pids: list[int] = []
        for server in self.command("get_server_list").split():
            pids += [int(p) for p in self.command(f"get_client_list {server}").split()]
        return pids

    def set_percent(self, percent: int) -> None:
        """Set the default share for servers started from now on."""
        self.command(f"set_default_active_thread_percentage {_percent(percent)}")

    def set_memory_limit(self, memory_mib: int) -> None:
        """Set the default device memory limit in MiB for servers started from now on."""
        self.command(f"set_default_device_pinned_mem_limit 0 {memory_mib}M")

    def __enter__(self) -> MpsDaemon:
        if self._control is None:
            raise _no_control()
        record = {"control": self._control, "folder": str(self.folder)}
        self._hold = Hold.take("mps", record)
        try:
            self._run(["-d", *self._flags], None)
            if self._percent is not None:
                self.set_percent(self._percent)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._control is not None:
            end_daemon(self._control, self.folder)
        if self._hold is not None:
            self._hold.release()
            self._hold = None


def _directories(folder: Path) -> dict[str, str]:
    return {
        "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
    }


def _no_control() -> InputError:
    return InputError(f"mps: {_CONTROL} is not on PATH; install the CUDA driver's MPS part")


def end_daemon(control: str, folder: Path) -> None:
    """End the daemon of a folder, by command or else by its process id, and remove the folder.

    Parameters
    ----------
    control : str
        Control program.
    folder : Path
        Folder of the daemon's pipe and log directories; nothing is done where it is gone.

    Raises
    ------
    MigperfError
        The daemon lives on.
    """
    if not folder.is_dir():
        return
    daemon = _daemon_process(folder, control)
    try:
        subprocess.run(
            [control], input="quit\n", capture_output=True, text=True, timeout=20, check=False,
            env={**os.environ, **_directories(folder)},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        if daemon is not None:
            daemon.kill()
    if daemon is not None:
        try:
            daemon.wait(_END_SECONDS)
        except psutil.TimeoutExpired:
            daemon.kill()
            try:
                daemon.wait(_END_SECONDS)
            except psutil.TimeoutExpired:
                text = f"mps: the daemon {daemon.pid} of {folder} does not end"
                raise MigperfError(text) from None
    shutil.rmtree(folder, ignore_errors=True)


def _daemon_process(folder: Path, control: str) -> psutil.Process | None:
    """Process that the daemon's pid file names, where it really is that program."""
    file = folder / "pipe" / f"{_CONTROL}.pid"
    try:
        process = psutil.Process(int(file.read_text()))
        if any(Path(part).name == Path(control).name for part in process.cmdline()):
            return process
    except (OSError, ValueError, psutil.Error):
        return None
    return None


def _percent(value: int) -> int:
    if type(value) is not int or not 1 <= value <= 100:
        raise InputError.of("percent", value, "an integer from 1 to 100")
    return value
