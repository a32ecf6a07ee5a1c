"""Thin typed wrapper over pynvml: plain values in and out, one exception class per refusal."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pynvml

from ..errors import (
    Infeasible,
    InputError,
    InstanceInUse,
    MigperfError,
    PermissionDenied,
    ResetRequired,
)

__all__ = ["DriverError", "Handle", "NotFound", "NotSupported", "call", "initialise", "shutdown"]

Handle = Any  # an opaque ctypes pointer


class DriverError(MigperfError):
    """The driver refused a call for a reason that has no class of its own.

    Attributes
    ----------
    code : int
        NVML return code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class NotSupported(DriverError):  # noqa: N818 - NVML names it so
    """NVML_ERROR_NOT_SUPPORTED: the question makes no sense in this state or on this board."""


class NotFound(DriverError):  # noqa: N818 - NVML names it so
    """NVML_ERROR_NOT_FOUND: there is no such instance or device."""


def translate(error: Any, what: str) -> MigperfError:
    """Turn an NVML error into an exception of this package."""
    code = int(error.value)
    text = f"{what}: the driver answers {str(error)!r}"
    if code == pynvml.NVML_ERROR_NO_PERMISSION:
        return PermissionDenied(
            f"{text}; run as root or as a user who may read "
            "/proc/driver/nvidia/capabilities/mig/config"
        )
    if code == pynvml.NVML_ERROR_IN_USE:
        return InstanceInUse(f"{text}; a process or another client holds it")
    if code == pynvml.NVML_ERROR_RESET_REQUIRED:
        return ResetRequired(f"{text}; reset the GPU or reboot the machine")
    if code == pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES:
        return Infeasible(f"{text}; there is no room for it")
    if code == pynvml.NVML_ERROR_NOT_SUPPORTED:
        return NotSupported(text, code)
    if code == pynvml.NVML_ERROR_NOT_FOUND:
        return NotFound(text, code)
    return DriverError(text, code)


def call(function: str, *arguments: Any, what: str = "") -> Any:
    """Call a pynvml function by name; refusals come as exceptions of this package."""
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError as error:
        raise translate(error, what or function) from None


def initialise() -> None:
    """Load the driver library and open it.

    Raises
    ------
    InputError
        No driver library or no driver on this machine.
    PermissionDenied
        The driver refuses this user.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        code = int(error.value)
        if code == pynvml.NVML_ERROR_NO_PERMISSION:
            raise translate(error, "nvmlInit") from None
        raise InputError(
            f"driver: {str(error)!r}; allowed: a machine with an NVIDIA driver, or a simulated one "
            "(sim='dgx-a100-80gb', or MIGPERF_SIM_STATE with a state file)"
        ) from None


def shutdown() -> None:
    """Close the driver library once."""
    call("nvmlShutdown")


@dataclass(frozen=True)
class GpuInstanceRow:
    """What the driver says about a GPU instance."""

    handle: Handle
    id: int
    profile_id: int
    start: int
    size: int


@dataclass(frozen=True)
class ComputeInstanceRow:
    """What the driver says about a compute instance."""

    handle: Handle
    id: int
    profile_id: int
    start: int
    size: int


def text(value: str | bytes) -> str:
    """Decode what older pynvml versions return as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def gpu_instances(device: Handle, profile_id: int, count: int) -> list[GpuInstanceRow]:
    """List the GPU instances of one profile."""
    array = (pynvml.c_nvmlGpuInstance_t * max(count, 1))()
    number = ctypes.c_uint(count)
    call("nvmlDeviceGetGpuInstances", device, profile_id, array, ctypes.byref(number))
    rows = []
    for handle in array[: number.value]:
        info = call("nvmlGpuInstanceGetInfo", handle)
        rows.append(
            GpuInstanceRow(
                handle, info.id, info.profileId, info.placement.start, info.placement.size
            )
        )
    return rows


def compute_instances(
    gpu_instance: Handle, profile_id: int, count: int
) -> list[ComputeInstanceRow]:
    """List the compute instances of one profile inside a GPU instance."""
    array = (pynvml.c_nvmlComputeInstance_t * max(count, 1))()
    number = ctypes.c_uint(count)
    call(
        "nvmlGpuInstanceGetComputeInstances", gpu_instance, profile_id, array, ctypes.byref(number)
    )
    rows = []
    for handle in array[: number.value]:
        info = call("nvmlComputeInstanceGetInfo", handle)
        rows.append(
            ComputeInstanceRow(
                handle, info.id, info.profileId, info.placement.start, info.placement.size
            )
        )
    return rows


def possible_placements(device: Handle, profile_id: int) -> list[tuple[int, int]]:
    """List the legal (start, size) of a GPU instance profile."""
    number = ctypes.c_uint(0)
    call(
        "nvmlDeviceGetGpuInstancePossiblePlacements", device, profile_id, None, ctypes.byref(number)
    )
    array = (pynvml.c_nvmlGpuInstancePlacement_t * max(number.value, 1))()
    call(
        "nvmlDeviceGetGpuInstancePossiblePlacements", device, profile_id, array,
        ctypes.byref(number),
    )  # fmt: skip
    return sorted((p.start, p.size) for p in array[: number.value])


def create_gpu_instance(
    device: Handle, profile_id: int, start: int, size: int, what: str
) -> Handle:
    """Create a GPU instance at an explicit place."""
    placement = pynvml.c_nvmlGpuInstancePlacement_t(start=start, size=size)
    return call(
        "nvmlDeviceCreateGpuInstanceWithPlacement", device, profile_id, ctypes.byref(placement),
        what=what,
    )  # fmt: skip


def create_compute_instance(
    gpu_instance: Handle, profile_id: int, start: int, size: int, what: str
) -> Handle:
    """Create a compute instance at an explicit place."""
    placement = pynvml.c_nvmlComputeInstancePlacement_t(start=start, size=size)
    return call(
        "nvmlGpuInstanceCreateComputeInstanceWithPlacement", gpu_instance, profile_id,
        ctypes.byref(placement), what=what,
    )  # fmt: skip


def set_mig_mode(device: Handle, enabled: bool) -> int:
    """Ask for a MIG mode; the activation status is returned, not raised."""
    what = f"set MIG mode {'on' if enabled else 'off'}"
    return int(call("nvmlDeviceSetMigMode", device, int(enabled), what=what))


def running_processes(device: Handle) -> list[tuple[int, int, int, int]]:
    """List (pid, GPU instance, compute instance, bytes) of the compute processes of a GPU.

    Bytes are -1 where the driver does not say.
    """
    rows = call("nvmlDeviceGetComputeRunningProcesses_v3", device)
    return [
        (
            p.pid,
            getattr(p, "gpuInstanceId", 0xFFFFFFFF),
            getattr(p, "computeInstanceId", 0xFFFFFFFF),
            -1 if p.usedGpuMemory is None else int(p.usedGpuMemory),
        )
        for p in rows
    ]
