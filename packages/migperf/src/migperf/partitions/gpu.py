"""GPU partitions: MIG devices, MPS clients, plain time-slicing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import InputError, MigperfError
from ..mps import MpsDaemon, find_mps
from ..node import Gpu, MigDevice, Node
from ..restore import recover_holds
from ..telemetry.meter import GpuMeter
from .base import Availability, CoreLayout, Grant, available_cores, thread_environment

__all__ = ["Mig", "Mps", "TimeSlice"]

Opener = Callable[[], Node]


def _cuda_driver(opener: Opener) -> Availability:
    try:
        with opener() as node:
            if not node.gpus:
                return Availability(False, "the driver sees no GPU")
            if node.simulated:
                return Availability(
                    False, "the driver is simulated: CUDA programs cannot run on it"
                )
            return Availability(True)
    except MigperfError as error:
        return Availability(False, str(error))


class _OnGpu:
    """What all GPU backends share: the node is open while grants are in use.

    Parameters
    ----------
    opener : callable
        Opens the node.
    gpu : int
        GPU index.
    """

    def __init__(self, opener: Opener = Node.open, gpu: int = 0) -> None:
        self._opener = opener
        self._index = gpu
        self._gpu: Gpu | None = None

    @contextmanager
    def _opened(self) -> Iterator[Gpu]:
        with self._opener() as node:
            self._gpu = node.gpus[self._index]
            try:
                yield self._gpu
            finally:
                self._gpu = None

    def meter(self, grants: Sequence[Grant]) -> GpuMeter:
        """Energy counter of the GPU; only while a layout is open."""
        if self._gpu is None:
            raise RuntimeError("meter: no layout is open")
        return GpuMeter(self._gpu, grants)

    def check(self, pids: Sequence[int]) -> str:
        """Nothing can be wrong: CUDA fails where a device cannot be used."""
        return ""


class Mig(_OnGpu):
    """One MIG device per tenant.

    Parameters
    ----------
    opener : callable
        Opens the node.
    gpu : int
        GPU index.
    allow_mode_change : bool
        See `Gpu.set_mig_mode`.
    """

    name = "mig"
    isolates = "multiprocessors, cache, memory and its bandwidth; not PCIe or the power budget"

    def __init__(
        self, opener: Opener = Node.open, gpu: int = 0, *, allow_mode_change: bool = False
    ) -> None:
        super().__init__(opener, gpu)
        self._allow = allow_mode_change

    def available(self) -> Availability:
        """Ask for a driver and a GPU with MIG; a simulated one is enough to try it."""
        try:
            with self._opener() as node:
                if not node.gpus or node.gpus[0].mig_mode() is None:
                    return Availability(False, "no GPU with MIG")
                if node.simulated:
                    return Availability(True, "simulated driver: workloads run on the CPU")
        except MigperfError as error:
            return Availability(False, str(error))
        return Availability(True)

    @contextmanager
    def open(self, layout: str) -> Iterator[list[Grant]]:
        """Apply the layout, grant its devices, and put the former layout and mode back."""
        with self._opened() as gpu:
            # What a killed run has left would otherwise count as the former layout.
            recover_holds(gpu.node.state_dir, gpu.node)
            with gpu.borrow(layout, allow_mode_change=self._allow) as applied:
                yield self._grants(applied.devices)

    def _grants(self, devices: Sequence[MigDevice]) -> list[Grant]:
        threads = max(1, len(available_cores()))
        grants = []
        for device in devices:
            name = device.name.rsplit("MIG ", 1)[-1]
            env = {**thread_environment(threads), **device.env()}
            place = (self._index, device.gpu_instance_id)
            grants.append(Grant(name, env, (), threads, device=place))
        return grants


class TimeSlice(_OnGpu):
    """Plain processes on one GPU, which the driver runs in turns."""

    name = "timeslice"
    isolates = "nothing"

    def available(self) -> Availability:
        """Ask for a real driver."""
        return _cuda_driver(self._opener)

    @contextmanager
    def open(self, layout: str) -> Iterator[list[Grant]]:
        """Grant the whole GPU to as many tenants as the layout asks for: ``gpu*3``."""
        match = re.fullmatch(r"gpu(?:\*(\d+))?", layout.strip())
        if match is None or not 1 <= int(match[1] or 1) <= 64:
            raise InputError.of("layout", layout, "gpu*N with N from 1 to 64")
        threads = max(1, len(available_cores()))
        with self._opened() as gpu:
            env = {
                **thread_environment(threads),
                "CUDA_VISIBLE_DEVICES": gpu.uuid,
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            }
            yield [Grant("timeslice", dict(env), (), threads) for _ in range(int(match[1] or 1))]


class Mps(_OnGpu):
    """MPS clients with a limited share of multiprocessors each, on a GPU or a MIG device."""

    name = "mps"
    isolates = "share of multiprocessors (upper limit) and memory limit; not bandwidth or cache"
    _daemon: MpsDaemon

    def available(self) -> Availability:
        """Ask for a real driver and nvidia-cuda-mps-control."""
        state = _cuda_driver(self._opener)
        if not state.ok:
            return state
        if find_mps() is None:
            return Availability(False, "nvidia-cuda-mps-control is not on PATH")
        return Availability(True)

    def check(self, pids: Sequence[int]) -> str:
        """Ask the daemon whom it serves: CUDA runs without MPS, and silently, where it fails."""
        served = set(self._daemon.clients()) & set(pids)
        if len(served) == len(pids):
            return ""
        return (
            f"the MPS daemon serves {len(served)} of {len(pids)} tenants; the others ran without "
            "MPS or do not use the GPU"
        )

    @contextmanager
    def open(self, layout: str) -> Iterator[list[Grant]]:
        """Run a daemon, grant shares such as ``50%*2``, and end the daemon."""
        parts = CoreLayout.parse(layout, percent=True).parts
        threads = max(1, len(available_cores()))
        recover_holds()
        with self._opened() as gpu, MpsDaemon(device=gpu.uuid) as daemon:
            self._daemon = daemon
            yield [
                Grant(
                    f"{part}%",
                    {**thread_environment(threads), **daemon.client_env(percent=part)},
                    (),
                    threads,
                )
                for part in parts
            ]
