"""What the driver measures, per GPU and per GPU instance; a missing value is None, never zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pynvml

from ..node import Gpu
from ..nvml import abi

__all__ = ["GpmSampler", "GpuReading", "InstanceReading", "read_gpu"]

# GPM metric ids, in percent, and the names of the DCGM fields that they stand for.
GPM_METRICS = {
    1: "gr_engine_active",
    2: "sm_active",
    3: "sm_occupancy",
    5: "tensor_active",
    10: "dram_active",
    11: "fp64_active",
    12: "fp32_active",
    13: "fp16_active",
}


@dataclass(frozen=True)
class InstanceReading:
    """One GPU instance.

    Parameters
    ----------
    gpu_instance_id : int
        Driver's id.
    profile : str
        Profile name.
    uuid : str or None
        UUID of its first MIG device.
    memory_used_mib, memory_total_mib : float or None
        Memory, MiB.
    """

    gpu_instance_id: int
    profile: str
    uuid: str | None
    memory_used_mib: float | None
    memory_total_mib: float | None


@dataclass(frozen=True)
class GpuReading:
    """One GPU.

    Parameters
    ----------
    index : int
        NVML index.
    power_watts, energy_joules, temperature, utilization : float or None
        None where the driver does not say; there is no utilisation in MIG mode.
    memory_used_mib, memory_total_mib : float or None
        Memory, MiB.
    instances : tuple of InstanceReading
        GPU instances that have a MIG device.
    """

    index: int
    power_watts: float | None
    energy_joules: float | None
    temperature: float | None
    utilization: float | None
    memory_used_mib: float | None
    memory_total_mib: float | None
    instances: tuple[InstanceReading, ...]


def _try(function: str, *arguments: Any) -> Any:
    try:
        return abi.call(function, *arguments)
    except (abi.NotSupported, abi.NotFound):
        return None


def _scaled(value: Any, scale: float) -> float | None:
    return None if value is None else float(value) * scale


def read_gpu(gpu: Gpu) -> GpuReading:
    """Read one GPU and its instances."""
    memory = _try("nvmlDeviceGetMemoryInfo", gpu.handle)
    utilization = _try("nvmlDeviceGetUtilizationRates", gpu.handle)
    instances = []
    mode = gpu.mig_mode()
    if mode is not None and mode[0]:
        seen: set[int] = set()
        for index in range(abi.call("nvmlDeviceGetMaxMigDeviceCount", gpu.handle)):
            device = _try("nvmlDeviceGetMigDeviceHandleByIndex", gpu.handle, index)
            if device is None:
                continue
            instance = int(abi.call("nvmlDeviceGetGpuInstanceId", device))
            if instance in seen:
                continue
            seen.add(instance)
            inside = _try("nvmlDeviceGetMemoryInfo", device)
            name = abi.text(abi.call("nvmlDeviceGetName", device)).rsplit("MIG ", 1)[-1]
            instances.append(
                InstanceReading(
                    instance,
                    name.split("c.")[-1],
                    abi.text(abi.call("nvmlDeviceGetUUID", device)),
                    _scaled(inside and inside.used, 2**-20),
                    _scaled(inside and inside.total, 2**-20),
                )
            )
    return GpuReading(
        gpu.index,
        _scaled(_try("nvmlDeviceGetPowerUsage", gpu.handle), 1e-3),
        _scaled(_try("nvmlDeviceGetTotalEnergyConsumption", gpu.handle), 1e-3),
        _scaled(_try("nvmlDeviceGetTemperature", gpu.handle, 0), 1.0),
        None if utilization is None else float(utilization.gpu),
        _scaled(memory and memory.used, 2**-20),
        _scaled(memory and memory.total, 2**-20),
        tuple(sorted(instances, key=lambda i: i.gpu_instance_id)),
    )


class GpmSampler:
    """Activity ratios between two moments, from GPM (Hopper and newer); a context manager.

    Parameters
    ----------
    gpu : Gpu
        The GPU.
    gpu_instance_id : int, optional
        A GPU instance; default the whole GPU.
    """

    def __init__(self, gpu: Gpu, gpu_instance_id: int | None = None) -> None:
        self._gpu = gpu
        self._instance = gpu_instance_id
        self._samples: list[Any] = []

    @staticmethod
    def supported(gpu: Gpu) -> bool:
        """Whether the GPU has GPM; Ampere has not, there only DCGM measures activity."""
        support = _try("nvmlGpmQueryDeviceSupport", gpu.handle)
        return bool(support and support.isSupportedDevice)

    def __enter__(self) -> GpmSampler:
        self._samples = [abi.call("nvmlGpmSampleAlloc") for _ in range(2)]
        self._take(0)
        return self

    def __exit__(self, *exc: object) -> None:
        for sample in self._samples:
            abi.call("nvmlGpmSampleFree", sample)
        self._samples = []

    def _take(self, slot: int) -> None:
        if self._instance is None:
            abi.call("nvmlGpmSampleGet", self._gpu.handle, self._samples[slot])
        else:
            abi.call("nvmlGpmMigSampleGet", self._gpu.handle, self._instance, self._samples[slot])

    def read(self) -> dict[str, float | None]:
        """Ratios (0 to 1) since the last call, by DCGM field name; None where not measured."""
        self._take(1)
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version = 1
        request.numMetrics = len(GPM_METRICS)
        request.sample1, request.sample2 = self._samples
        for slot, metric in enumerate(GPM_METRICS):
            request.metrics[slot].metricId = metric
        abi.call("nvmlGpmMetricsGet", request)
        self._samples.reverse()
        return {
            name: request.metrics[slot].value / 100.0
            if not request.metrics[slot].nvmlReturn
            else None
            for slot, name in enumerate(GPM_METRICS.values())
        }
