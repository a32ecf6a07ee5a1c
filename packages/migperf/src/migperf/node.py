"""The GPUs of a machine, real or simulated, as objects."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .boards import Board, GpuProfile, board_names, load_board
from .controller import Applied, Controller
from .errors import InputError, InstanceInUse, MigperfError, ResetRequired
from .layout import Layout, PlacedLayout
from .nvml import abi
from .nvml.sim import Simulator, is_simulated
from .placement import Placement
from .restore import Hold, layout_record, put_layout_back, state_folder
from .transition import ComputeInstance, GpuInstance, Transition, plan_transition

__all__ = ["Gpu", "MigDevice", "Node"]

_MODES = {0: False, 1: True}
_GI_PROFILE_COUNT = 18
# Order in which the driver tries the starts, for boards that are not in the tables.
_START_ORDER = {1: (6, 4, 5, 0, 1, 2, 3), 2: (4, 0, 2), 4: (4, 0)}


@dataclass(frozen=True)
class MigDevice:
    """A MIG device: what one CUDA process can use.

    Parameters
    ----------
    index : int
        Index among the MIG devices of its GPU; holes are possible.
    uuid : str
        Valid as long as the compute instance lives.
    gpu_instance_id, compute_instance_id : int
        Driver's ids.
    name : str
        Such as ``NVIDIA A100-SXM4-80GB MIG 3g.40gb``.
    memory_mib : int
        Memory of its GPU instance.
    multiprocessors : int
        Streaming multiprocessors of its compute instance.
    """

    index: int
    uuid: str
    gpu_instance_id: int
    compute_instance_id: int
    name: str
    memory_mib: int
    multiprocessors: int

    def env(self) -> dict[str, str]:
        """Environment that lets a CUDA process see this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Gpu:
    """One GPU of a `Node`.

    Attributes
    ----------
    index : int
        NVML index.
    uuid, name : str
        As the driver reports them.
    board : Board
        Geometry, read from the device where the driver answers, else from the tables.
    """

    def __init__(self, node: Node, index: int) -> None:
        self._node = node
        self.index = index
        self.handle: abi.Handle = abi.call("nvmlDeviceGetHandleByIndex", index)
        self.uuid = abi.text(abi.call("nvmlDeviceGetUUID", self.handle))
        self.name = abi.text(abi.call("nvmlDeviceGetName", self.handle))
        self._board: Board | None = None

    def __repr__(self) -> str:
        mode = self.mig_mode()
        if mode is None:
            return f"Gpu({self.index}: {self.name}, no MIG)"
        if not mode[0]:
            return f"Gpu({self.index}: {self.name}, MIG off)"
        layout = ", ".join(map(str, self.instances())) or "no instances"
        return f"Gpu({self.index}: {self.name}, {layout})"

    @property
    def node(self) -> Node:
        """The machine that the GPU belongs to."""
        return self._node

    @property
    def board(self) -> Board:
        """Geometry of this GPU."""
        if self._board is None:
            pci = abi.call("nvmlDeviceGetPciInfo", self.handle)
            self._board = _read_board(self.handle, self.name, pci.pciDeviceId)
        return self._board

    def mig_mode(self) -> tuple[bool, bool] | None:
        """Return the current and the pending MIG mode, or None on a GPU without MIG."""
        try:
            current, pending = abi.call("nvmlDeviceGetMigMode", self.handle)
        except abi.NotSupported:
            return None
        return _MODES[current], _MODES[pending]

    def set_mig_mode(self, enabled: bool, *, allow_mode_change: bool = False) -> None:
        """Switch MIG on or off.

        Parameters
        ----------
        enabled : bool
            Wanted mode.
        allow_mode_change : bool
            Needed on real hardware: the change resets the GPU on Ampere and disturbs everybody
            who uses it.

        Raises
        ------
        InputError
            Real hardware, and the change was not allowed explicitly.
        InstanceInUse, ResetRequired
            The mode stays pending.
        """
        mode = self.mig_mode()
        if mode is None:
            raise InputError.of("gpu", self.name, "a GPU with MIG")
        if mode == (enabled, enabled):
            return
        if not (self._node.simulated or allow_mode_change):
            raise InputError(
                f"gpu {self.index}: MIG mode is {'on' if mode[0] else 'off'} and this is real "
                "hardware; a mode change needs allow_mode_change=True "
                "(command line: MIGPERF_ALLOW_MODE_CHANGE=1)"
            )
        status = abi.set_mig_mode(self.handle, enabled)
        word = "on" if enabled else "off"
        if status == 16:
            raise ResetRequired(
                f"gpu {self.index}: MIG mode {word} is pending until the GPU is reset or the "
                "machine rebooted"
            )
        if status == 19:
            pids = [row[0] for row in abi.running_processes(self.handle)]
            raise InstanceInUse(
                f"gpu {self.index}: MIG mode {word} is pending, instances or processes hold the "
                f"GPU (pids {pids or 'none named'}); free it and repeat",
                pids,
            )
        if status:
            raise MigperfError(f"gpu {self.index}: activation of MIG mode {word} failed ({status})")
        self._board = None

    def instances(self) -> tuple[GpuInstance, ...]:
        """Read the GPU instances, their compute instances and who runs on them."""
        mode = self.mig_mode()
        if mode is None or not mode[0]:
            return ()
        board = self.board
        running = abi.running_processes(self.handle)
        found = []
        for profile in board.gpu_profiles:
            for row in abi.gpu_instances(self.handle, profile.id, profile.count):
                cuts = []
                for cut in profile.compute_profiles:
                    for ci in abi.compute_instances(row.handle, cut.id, cut.count):
                        pids = tuple(p for p, g, c, _ in running if (g, c) == (row.id, ci.id))
                        cuts.append(ComputeInstance(ci.start, ci.size, ci.id, pids))
                found.append(
                    GpuInstance(row.start, row.size, profile.name, tuple(sorted(cuts)), row.id)
                )
        return tuple(sorted(found))

    def profiles(self) -> tuple[GpuProfile, ...]:
        """GPU instance profiles of the board."""
        return self.board.gpu_profiles

    def placements(self, profile: str) -> tuple[int, ...]:
        """Legal starts of a profile, ascending, whether or not they are free."""
        return tuple(sorted(self.board.profile(profile).starts))

    def remaining(self, profile: str) -> int:
        """How many more instances of a profile the driver would create now."""
        row = self.board.profile(profile)
        return int(abi.call("nvmlDeviceGetGpuInstanceRemainingCapacity", self.handle, row.id))

    def placed(self) -> tuple[Placement, ...]:
        """Places of the existing GPU instances."""
        return tuple(g.placement for g in self.instances())

    def devices(self) -> tuple[MigDevice, ...]:
        """MIG devices, by index; holes in the indices are skipped."""
        count = abi.call("nvmlDeviceGetMaxMigDeviceCount", self.handle)
        devices = []
        for index in range(count):
            try:
                mig = abi.call("nvmlDeviceGetMigDeviceHandleByIndex", self.handle, index)
            except abi.NotFound:
                continue
            attributes = abi.call("nvmlDeviceGetAttributes", mig)
            devices.append(
                MigDevice(
                    index,
                    abi.text(abi.call("nvmlDeviceGetUUID", mig)),
                    abi.call("nvmlDeviceGetGpuInstanceId", mig),
                    abi.call("nvmlDeviceGetComputeInstanceId", mig),
                    abi.text(abi.call("nvmlDeviceGetName", mig)),
                    attributes.memorySizeMB,
                    attributes.multiprocessorCount,
                )
            )
        return tuple(devices)

    def plan(self, layout: Layout | PlacedLayout | str, *, keep_running: bool = True) -> Transition:
        """Dry run: what `apply` would do. Raises as `apply` does."""
        wanted = Layout.parse(layout) if isinstance(layout, str) else layout
        return plan_transition(self.board, self.instances(), wanted, keep_running=keep_running)

    def apply(
        self,
        layout: Layout | PlacedLayout | str,
        *,
        keep_running: bool = True,
        allow_mode_change: bool = False,
        on_step: Callable[[str], None] | None = None,
    ) -> Applied:
        """Cut the GPU as `layout` says, destroying as little as possible.

        Parameters
        ----------
        layout : Layout, PlacedLayout or str
            What shall exist afterwards, completely.
        keep_running : bool
            Refuse to destroy what a process runs on.
        allow_mode_change : bool
            Switch MIG on first where it is off (see `set_mig_mode`).
        on_step : callable, optional
            Told each step before it is taken.

        Returns
        -------
        Applied
            As a context manager it puts the former layout and mode back on exit, and when this
            process dies inside the block.

        Raises
        ------
        Infeasible, InstanceInUse, PermissionDenied, ResetRequired
            Nothing was changed, or everything was put back.
        """
        wanted = Layout.parse(layout) if isinstance(layout, str) else layout
        # Say no before anything is touched, the mode included.
        Layout(wanted.entries).solve(self.board)
        record = layout_record(self)
        self.set_mig_mode(True, allow_mode_change=allow_mode_change)
        return Controller(self).apply(
            wanted, keep_running=keep_running, on_step=on_step, former=record
        )

    @contextmanager
    def borrow(
        self, layout: Layout | PlacedLayout | str, *, allow_mode_change: bool = False
    ) -> Iterator[Applied]:
        """Apply a layout for the length of a block.

        The former layout and MIG mode come back on exit, on an exception, and, unlike after
        `apply`, also where this process is killed at any point from here on (see
        `migperf.restore`).
        """
        record = layout_record(self)
        hold = Hold.take("layout", record, self._node.state_dir)
        try:
            yield self.apply(layout, allow_mode_change=allow_mode_change)
        finally:
            put_layout_back(self, record)
            hold.release()


class Node:
    """A machine with GPUs.

    Attributes
    ----------
    gpus : tuple of Gpu
        In NVML's order.
    simulated : bool
        Whether the driver is the simulated one.
    state_dir : Path
        Where the journals of reconfigurations are kept.

    Examples
    --------
    >>> with Node.open(sim="dgx-a100-80gb") as node:
    ...     gpu = node.gpus[0]
    ...     applied = gpu.apply("3g.40gb@4, 2g.20gb, 1g.10gb*2")
    ...     print(len(applied.devices), gpu.remaining("1g.10gb"))
    4 0
    """

    def __init__(self, simulator: Simulator | None, state_dir: Path | None) -> None:
        self._simulator = simulator
        abi.initialise()
        self._open = True
        self.simulated = is_simulated()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if state_dir is None:
            state_dir = self._default_state_dir()
        self.state_dir = state_dir
        count = abi.call("nvmlDeviceGetCount")
        self.gpus = tuple(Gpu(self, i) for i in range(count))

    def _default_state_dir(self) -> Path:
        if self._simulator is not None:
            path = self._simulator.path
            return path.with_name(path.name + ".journal")
        return state_folder()

    @property
    def simulator_path(self) -> Path | None:
        """State file of the machine that this process simulates, absolute; None otherwise."""
        return None if self._simulator is None else self._simulator.path.absolute()

    @classmethod
    def open(
        cls, sim: str | Simulator | None = None, *, state_dir: str | os.PathLike[str] | None = None
    ) -> Node:
        """Open the driver.

        Parameters
        ----------
        sim : str or Simulator, optional
            Name of a machine to simulate (``dgx-a100-80gb``, ``a30-24gb:2``), or a simulator;
            without it the real driver is opened.
        state_dir : path, optional
            Folder of the journals.

        Raises
        ------
        InputError
            No driver, or an unknown machine.
        """
        simulator = Simulator.create(sim) if isinstance(sim, str) else sim
        return cls(simulator, None if state_dir is None else Path(state_dir))

    @property
    def sim(self) -> Simulator:
        """Control side of the simulated machine.

        Raises
        ------
        InputError
            The machine is not simulated by this process.
        """
        if self._simulator is None:
            raise InputError("node: this node was not opened with sim=...")
        return self._simulator

    def close(self) -> None:
        """Close the driver; a temporary simulated machine is removed."""
        if self._open:
            self._open = False
            abi.shutdown()
            if self._simulator is not None:
                if self._simulator._temporary:
                    for pattern in ("*.journal", "*.hold"):
                        for path in self.state_dir.glob(pattern):
                            path.unlink()
                    if self.state_dir.is_dir():
                        self.state_dir.rmdir()
                self._simulator.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "simulated " if self.simulated else ""
        return f"Node({kind}{len(self.gpus)} x {self.gpus[0].name if self.gpus else 'no GPU'})"


def _known_board(product: str, pci_device_id: int) -> Board | None:
    for name in board_names():
        board = load_board(name)
        if board.pci_device_id == pci_device_id or board.product == product:
            return board
    return None


def _read_board(handle: abi.Handle, product: str, pci_device_id: int) -> Board:
    """Geometry from the driver; the tables fill in what it does not say."""
    known = _known_board(product, pci_device_id)
    rows: list[GpuProfile] = []
    for enum in range(_GI_PROFILE_COUNT):
        try:
            info = abi.call("nvmlDeviceGetGpuInstanceProfileInfo", handle, enum)
            places = abi.possible_placements(handle, info.id)
        except (abi.NotSupported, abi.DriverError):
            continue
        name = abi.text(info.name).removeprefix("MIG ")
        size = places[0][1] if places else 0
        starts = tuple(s for s, _ in places)
        order = _START_ORDER.get(size, ())
        if set(order) == set(starts):
            starts = order
        table = next((p for p in known.gpu_profiles if p.id == info.id), None) if known else None
        if table is not None and set(table.starts) == set(starts):
            starts = table.starts
        compute = table.compute_profiles if table else ()
        rows.append(
            GpuProfile(
                name,
                enum,
                info.id,
                info.sliceCount,
                size,
                starts,
                info.instanceCount,
                info.multiprocessorCount,
                int(info.memorySizeMB),
                info.copyEngineCount,
                info.decoderCount,
                info.encoderCount,
                info.jpegCount,
                info.ofaCount,
                True,
                "read from the driver",
                tuple(compute),
            )
        )
    if not rows:
        if known is None:
            raise InputError(
                f"gpu: {product!r} is not in migperf's tables and the driver does not say how it "
                "can be cut; switch MIG on, or add a board file"
            )
        return known
    if known is None:
        raise InputError(
            f"gpu: {product!r} (PCI id {pci_device_id:#x}) is not in migperf's tables; add a board "
            "file with its compute instance profiles"
        )
    data: dict[str, Any] = {**vars(known), "gpu_profiles": tuple(rows)}
    return Board(**data)
