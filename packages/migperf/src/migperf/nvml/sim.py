"""A simulated NVIDIA driver: ``libnvidia-ml.so.1`` over a machine that lives in one file.

The library is loaded before the first NVML call of the process, after which unmodified NVML
clients (pynvml, cuda.bindings.nvml, nvitop, gpustat) talk to it. Every process that opens the same
state file sees the same GPUs.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..boards import Board, load_board
from ..errors import InputError, MigperfError, PermissionDenied

__all__ = ["Counters", "Simulator", "attach", "library_path", "machine_names"]

NOT_MIG = 0xFFFFFFFF
KINDS = ("read", "gi_create", "ci_create", "gi_destroy", "ci_destroy", "mode_change")
ACTIVITIES = (
    "graphics", "sm", "occupancy", "tensor", "dram", "fp64", "fp32", "fp16",
)  # fmt: skip
_ARCHITECTURES = {"ampere": 7, "hopper": 9, "blackwell": 10}
_MACHINES = {
    "dgx-a100-40gb": ("a100-40gb", 8),
    "dgx-a100-80gb": ("a100-80gb", 8),
    "dgx-h100": ("h100-80gb", 8),
    "dgx-h200": ("h200-141gb", 8),
    "dgx-b200": ("b200-180gb", 8),
}


class _ComputeProfile(ctypes.Structure):
    _fields_ = (
        ("slices", ctypes.c_uint32),
        ("profile_enum", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("multiprocessors", ctypes.c_uint32),
        ("n_starts", ctypes.c_uint32),
        ("starts", ctypes.c_uint32 * 8),
    )


class _Profile(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 96),
        *((n, ctypes.c_uint32) for n in (
            "profile_enum", "id", "slices", "size", "count", "multiprocessors",
            "copy_engines", "decoders", "encoders", "jpeg", "ofa", "media_extension", "graphics",
            "n_starts", "n_compute",
        )),
        ("starts", ctypes.c_uint32 * 8),
        ("pad", ctypes.c_uint32),
        ("memory_mib", ctypes.c_uint64),
        ("compute", _ComputeProfile * 6),
    )  # fmt: skip


class _Board(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("product", ctypes.c_char * 96),
        ("memory_mib", ctypes.c_uint64),
        *((n, ctypes.c_uint32) for n in (
            "compute_slices", "memory_slices", "pci_device_id", "capability_major",
            "capability_minor", "architecture", "mode_change_resets", "gpm", "power_limit_mw",
            "idle_power_mw", "multiprocessors", "n_profiles",
        )),
        ("profiles", _Profile * 16),
    )  # fmt: skip


def _table(board: Board) -> _Board:
    out = _Board(
        name=board.name.encode(),
        product=board.product.encode(),
        memory_mib=board.memory_mib,
        compute_slices=board.compute_slices,
        memory_slices=board.memory_slices,
        pci_device_id=board.pci_device_id,
        capability_major=board.compute_capability[0],
        capability_minor=board.compute_capability[1],
        architecture=_ARCHITECTURES[board.architecture],
        mode_change_resets=board.mode_change == "reset",
        gpm=board.architecture != "ampere",
        power_limit_mw=int(board.power_limit_watts * 1000),
        idle_power_mw=int(board.idle_power_watts * 1000),
        multiprocessors=max(p.multiprocessors for p in board.gpu_profiles),
        n_profiles=len(board.gpu_profiles),
    )
    for row, profile in zip(out.profiles, board.gpu_profiles, strict=False):
        row.name = profile.name.encode()
        row.profile_enum, row.id, row.slices = profile.enum, profile.id, profile.compute_slices
        for field in ("size", "count", "multiprocessors", "copy_engines", "decoders", "encoders",
                      "jpeg", "ofa", "memory_mib"):  # fmt: skip
            setattr(row, field, getattr(profile, field))
        row.media_extension = profile.takes_media_extension
        row.graphics = "gfx" in profile.parsed.attributes
        row.n_starts, row.n_compute = len(profile.starts), len(profile.compute_profiles)
        row.starts[: len(profile.starts)] = profile.starts
        for cell, compute in zip(row.compute, profile.compute_profiles, strict=False):
            cell.slices, cell.profile_enum = compute.compute_slices, compute.enum
            cell.id, cell.count = compute.id, compute.count
            cell.multiprocessors, cell.n_starts = compute.multiprocessors, len(compute.starts)
            cell.starts[: len(compute.starts)] = compute.starts
    return out


def library_path() -> Path:
    """Path of the simulated ``libnvidia-ml.so.1``.

    Raises
    ------
    MigperfError
        The package was installed without its compiled part.
    """
    name = "libnvidia-ml.so.1"
    # In an editable installation the compiled part lies in site-packages, the sources elsewhere.
    installed = metadata.distribution("migperf").locate_file(f"migperf/nvml/{name}")
    for path in (Path(__file__).with_name(name), Path(str(installed))):
        if path.is_file():
            return path
    raise MigperfError("the simulated libnvidia-ml.so.1 is missing: reinstall migperf")


_library: ctypes.CDLL | None = None


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        import pynvml

        loaded = getattr(pynvml, "nvmlLib", None)
        if loaded is not None and not hasattr(loaded, "migperfSimAttach"):
            raise MigperfError(
                "sim: the real driver library is already loaded in this process; "
                "open the simulator before the first NVML call"
            )
        library = ctypes.CDLL(str(library_path()), mode=ctypes.RTLD_GLOBAL)
        if library.migperfSimBoardBytes() != ctypes.sizeof(_Board):
            raise MigperfError("the simulated driver and the Python package differ: reinstall")
        library.migperfSimBoard.restype = ctypes.c_char_p
        library.migperfSimCreate.argtypes = (
            ctypes.c_char_p, ctypes.POINTER(_Board), ctypes.c_uint, ctypes.c_uint,
            ctypes.c_ulonglong,
        )  # fmt: skip
        library.migperfSimOccupy.argtypes = (
            ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_ulonglong,
            ctypes.c_uint,
        )  # fmt: skip
        library.migperfSimSetLatency.argtypes = (ctypes.c_uint, ctypes.c_ulonglong)
        _library = library
    return _library


def machine_names() -> tuple[str, ...]:
    """Names of machines with several GPUs; board names and ``board:count`` work as well.

    Examples
    --------
    >>> "dgx-a100-80gb" in machine_names()
    True
    """
    return tuple(_MACHINES)


def resolve_machine(machine: str) -> tuple[Board, int]:
    """Read ``dgx-a100-80gb``, ``a30-24gb`` or ``a30-24gb:4``.

    Raises
    ------
    InputError
        The machine or the board is unknown, or the count is out of range.
    """
    if machine in _MACHINES:
        board, count = _MACHINES[machine]
        return load_board(board), count
    name, _, number = machine.partition(":")
    if number and (not number.isdigit() or not 1 <= int(number) <= 16):
        raise InputError.of("sim", machine, "BOARD[:COUNT] with COUNT from 1 to 16")
    try:
        return load_board(name), int(number or 1)
    except InputError as error:
        allowed = f"{', '.join(_MACHINES)}; or BOARD[:COUNT] with one of"
        raise InputError(f"sim: {machine!r} is not allowed; allowed: {allowed} {error}") from None


@dataclass(frozen=True)
class Counters:
    """What the simulated driver has counted.

    Parameters
    ----------
    calls : mapping of str to int
        Calls by kind: ``read``, ``gi_create``, ``ci_create``, ``gi_destroy``, ``ci_destroy``,
        ``mode_change``.
    virtual_seconds : float
        Latency added up on the virtual clock.
    recoveries : int
        How often the lock was taken over from a process that died in a call.
    """

    calls: Mapping[str, int]
    virtual_seconds: float
    recoveries: int

    @property
    def changes(self) -> int:
        """Calls that create or destroy something."""
        return sum(n for kind, n in self.calls.items() if kind not in ("read", "mode_change"))


class Simulator:
    """The control side of a simulated machine; NVML is its measuring side.

    Examples
    --------
    >>> with Simulator.create("a100-40gb") as machine:
    ...     machine.board.name
    'a100-40gb'
    """

    def __init__(self, path: Path, board: Board, *, temporary: bool = False) -> None:
        self.path = path
        self.board = board
        self._temporary = temporary

    def __repr__(self) -> str:
        return f"Simulator({self.board.name!r}, state={str(self.path)!r})"

    @classmethod
    def create(
        cls,
        machine: str,
        state: str | os.PathLike[str] | None = None,
        *,
        seed: int = 0,
        reset_required: bool = False,
    ) -> Simulator:
        """Write the state of a new machine and attach this process to it.

        Parameters
        ----------
        machine : str
            ``dgx-a100-80gb``, ``a30-24gb``, ``h200-141gb:4``, ...
        state : path, optional
            State file; a temporary one, removed by `close`, where none is given.
        seed : int
            Decides the UUIDs.
        reset_required : bool
            A mode change stays pending until `reset`, as in a pass-through virtual machine.

        Raises
        ------
        InputError
            The machine is unknown or the state file cannot be written.
        """
        board, count = resolve_machine(machine)
        library = _load()
        temporary = state is None
        if state is None:
            handle, name = tempfile.mkstemp(prefix="migperf-sim-", suffix=".state")
            os.close(handle)
            path = Path(name)
        else:
            path = Path(state)
        code = library.migperfSimCreate(
            os.fsencode(path.absolute()), ctypes.byref(_table(board)), count, reset_required, seed
        )
        if code:
            text = os.strerror(code)
            raise InputError(f"state: {str(path)!r} cannot be written ({text}); give another path")
        attach(path)
        return cls(path, board, temporary=temporary)

    @classmethod
    def open(cls, state: str | os.PathLike[str]) -> Simulator:
        """Attach this process to an existing machine.

        Raises
        ------
        InputError
            The file does not exist or is no state file.
        """
        path = Path(state)
        _load()
        attach(path)
        try:
            header = path.read_bytes()[:4096]
        except OSError as error:
            raise InputError(f"state: {str(path)!r} cannot be read ({error.strerror})") from None
        if not header.startswith(b"MIGSIM2\0"):
            raise InputError.of("state", str(path), "a file written by `migperf sim start`")
        for board in _board_candidates():
            if board.name.encode() + b"\0" in header:
                return cls(path, board)
        raise InputError.of("state", str(path), "a machine of a board that migperf knows")

    def close(self) -> None:
        """Remove a temporary state file."""
        if self._temporary:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        """Environment variables with which a child process finds this machine."""
        folder = str(library_path().parent)
        return {"MIGPERF_SIM_STATE": str(self.path.absolute()), "LD_LIBRARY_PATH": folder}

    def _call(self, function: str, *arguments: object) -> None:
        import pynvml

        pynvml.nvmlInit()  # the control calls need the state mapped, as any NVML call does
        try:
            code = getattr(_load(), function)(*arguments)
        finally:
            pynvml.nvmlShutdown()
        if code == 4:
            raise PermissionDenied(f"{function}: this user may not administer the machine")
        if code:
            name = pynvml.NVMLError(code)
            raise InputError(f"{function}{arguments}: the simulated driver answers {name}")

    def occupy(
        self,
        gpu: int,
        pid: int,
        *,
        gpu_instance: int = NOT_MIG,
        compute_instance: int = NOT_MIG,
        memory_mib: int = 0,
        watch: bool = True,
    ) -> None:
        """Let a process run on a compute instance, or on the whole GPU.

        Parameters
        ----------
        gpu, pid : int
            Device index and process.
        gpu_instance, compute_instance : int
            Ids; left out on a GPU without MIG.
        memory_mib : int
            Device memory it holds, MiB; refused where it does not fit.
        watch : bool
            Forget the entry when the process ends.
        """
        self._call(
            "migperfSimOccupy", gpu, gpu_instance, compute_instance, pid, memory_mib << 20, watch
        )

    def vacate(self, gpu: int, pid: int) -> None:
        """End what `occupy` began."""
        self._call("migperfSimVacate", gpu, pid)

    def set_activity(self, gpu: int, gpu_instance: int = NOT_MIG, **ratios: float) -> None:
        """Set the activity ratios (0 to 1) that GPM, power and energy follow.

        Parameters
        ----------
        gpu, gpu_instance : int
            Device index and GPU instance id.
        **ratios : float
            ``graphics``, ``sm``, ``occupancy``, ``tensor``, ``dram``, ``fp64``, ``fp32``, ``fp16``.
        """
        for name, ratio in ratios.items():
            if name not in ACTIVITIES:
                raise InputError.of("activity", name, ", ".join(ACTIVITIES))
            if not 0.0 <= ratio <= 1.0:
                raise InputError.of(name, ratio, "a ratio from 0 to 1")
        values = (ctypes.c_double * len(ACTIVITIES))(*(ratios.get(a, 0.0) for a in ACTIVITIES))
        self._call("migperfSimSetActivity", gpu, gpu_instance, values, len(ACTIVITIES))

    def set_latency(self, *, virtual: bool = False, **milliseconds: float) -> None:
        """Make changes take time.

        Parameters
        ----------
        virtual : bool
            Add the latencies up instead of sleeping; see `Counters.virtual_seconds`.
        **milliseconds : float
            By kind: ``gi_create``, ``ci_create``, ``gi_destroy``, ``ci_destroy``, ``mode_change``.
        """
        for kind, value in milliseconds.items():
            if kind not in KINDS[1:] or value < 0:
                raise InputError.of("latency", {kind: value}, f"{', '.join(KINDS[1:])} >= 0")
            self._call("migperfSimSetLatency", KINDS.index(kind), int(value * 1000))
        self._call("migperfSimVirtualClock", int(virtual))

    def add_faults(self, script: str) -> None:
        """Let calls fail, for example ``nvmlGpuInstanceDestroy:GI=5:IN_USE:x3``.

        Parameters
        ----------
        script : str
            Entries separated by ``;``, each ``FUNCTION[:GPU=n][:GI=n][:after=n]:ACTION[:xN]``.
            ACTION is an NVML code, ``KILL`` or ``KILL_AFTER`` (the calling process dies before or
            after the call takes effect) or ``SLEEP=ms``. FUNCTION may end in ``*``.
        """
        try:
            self._call("migperfSimAddFaults", script.encode())
        except InputError:
            rule = "FUNCTION[:GPU=n][:GI=n][:after=n]:ACTION[:xN], at most 32"
            raise InputError.of("faults", script, rule) from None

    def clear_faults(self) -> None:
        """Forget all faults."""
        self._call("migperfSimClearFaults")

    def reset(self, gpu: int) -> None:
        """Reset a GPU: its layout goes, a pending mode becomes the mode."""
        self._call("migperfSimReset", gpu)

    def broken_invariants(self) -> int:
        """Count what may never be: overlaps, illegal places, too many of a profile, equal ids.

        All GPUs are looked at in one hold of the machine's lock, so other processes may be at work.
        """
        broken = ctypes.c_uint()
        self._call("migperfSimCheck", ctypes.byref(broken))
        return broken.value

    def counters(self, *, clear: bool = False) -> Counters:
        """Read the call counters, and set them to zero if asked."""
        calls = (ctypes.c_ulonglong * len(KINDS))()
        virtual, recoveries = ctypes.c_ulonglong(), ctypes.c_ulonglong()
        self._call(
            "migperfSimCounters", calls, ctypes.byref(virtual), ctypes.byref(recoveries), clear
        )
        return Counters(
            dict(zip(KINDS, calls, strict=True)), virtual.value * 1e-6, recoveries.value
        )


def _board_candidates() -> list[Board]:
    from ..boards import board_names

    return [load_board(name) for name in board_names()]


def attach(state: Path) -> None:
    """Choose the machine that the next NVML initialisation of this process opens.

    Raises
    ------
    MigperfError
        A node is open already; close it first.
    """
    if _load().migperfSimAttach(os.fsencode(state.absolute())):
        raise MigperfError("sim: another simulated node is open in this process; close() it first")


def is_simulated() -> bool:
    """Whether the NVML library of this process is the simulated one."""
    import pynvml

    return hasattr(getattr(pynvml, "nvmlLib", None), "migperfSimAttach")
