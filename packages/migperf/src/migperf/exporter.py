"""A Prometheus exporter with the metric names and labels of NVIDIA's dcgm-exporter."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from .errors import InputError
from .node import Gpu, Node
from .nvml import abi
from .telemetry.nvml import GpmSampler, GpuReading, InstanceReading, read_gpu

__all__ = ["Exporter", "serve"]

_RATIOS = {
    "gr_engine_active": (
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        "Ratio of time the graphics engine is active.",
    ),
    "sm_active": (
        "DCGM_FI_PROF_SM_ACTIVE",
        "Ratio of cycles an SM has at least one warp assigned.",
    ),
    "sm_occupancy": ("DCGM_FI_PROF_SM_OCCUPANCY", "Ratio of warps resident on an SM."),
    "tensor_active": (
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "Ratio of cycles the tensor pipe is active.",
    ),
    "dram_active": ("DCGM_FI_PROF_DRAM_ACTIVE", "Ratio of cycles the memory interface is active."),
}

_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
_FAMILIES = (
    (_ENERGY, "Total energy consumption since boot (in mJ).", "counter"),
    ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", "gauge"),
    ("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", "gauge"),
    ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", "gauge"),
    ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", "gauge"),
    ("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", "gauge"),
    *((name, text, "gauge") for name, text in _RATIOS.values()),
)


class Exporter:
    """A collector for `prometheus_client`.

    Parameters
    ----------
    node : Node
        The machine.
    hostname : str, optional
        Value of the label; default this host's name.
    """

    def __init__(self, node: Node, hostname: str | None = None) -> None:
        self._node = node
        self._host = hostname or socket.gethostname()
        self._samplers: dict[tuple[int, str], GpmSampler] = {}
        self._gpm = {gpu.index: GpmSampler.supported(gpu) for gpu in node.gpus}
        self._bus = {
            gpu.index: abi.text(abi.call("nvmlDeviceGetPciInfo", gpu.handle).busId)
            for gpu in node.gpus
        }
        self._lock = threading.Lock()

    def close(self) -> None:
        """Free the samples that are held between scrapes."""
        for sampler in self._samplers.values():
            sampler.__exit__()
        self._samplers.clear()

    def _labels(self, gpu: Gpu, instance: InstanceReading | None) -> dict[str, str]:
        """Labels of dcgm-exporter; those of the instance stand on instances only."""
        labels = {
            "gpu": str(gpu.index),
            "UUID": gpu.uuid,
            "pci_bus_id": self._bus[gpu.index],
            "device": f"nvidia{gpu.index}",
            "modelName": gpu.name,
            "hostname": self._host,
        }
        if instance is not None:
            labels["GPU_I_PROFILE"] = instance.profile
            labels["GPU_I_ID"] = str(instance.gpu_instance_id)
        return labels

    def _ratios(self, gpu: Gpu, instance: InstanceReading) -> dict[str, float | None]:
        """Activity since the last scrape; nothing on the first one and without GPM."""
        if not self._gpm[gpu.index] or instance.uuid is None:
            return {}
        key = (gpu.index, instance.uuid)
        sampler = self._samplers.get(key)
        if sampler is None:
            sampler = GpmSampler(gpu, instance.gpu_instance_id)
            sampler.__enter__()
            self._samplers[key] = sampler
            return {}
        return sampler.read()

    def collect(self) -> Iterable[Metric]:
        """Read everything once; values that the driver does not give are left out."""
        with self._lock:
            readings = [(gpu, read_gpu(gpu)) for gpu in self._node.gpus]
            alive = {(g.index, i.uuid) for g, r in readings for i in r.instances}
            for key in [k for k in self._samplers if k not in alive]:
                self._samplers.pop(key).__exit__()
            ratios = {
                (gpu.index, i.gpu_instance_id): self._ratios(gpu, i)
                for gpu, reading in readings
                for i in reading.instances
            }
            return self._families(readings, ratios)

    def _families(
        self,
        readings: list[tuple[Gpu, GpuReading]],
        ratios: dict[tuple[int, int], dict[str, float | None]],
    ) -> list[Metric]:
        families = {name: Metric(name, text, kind) for name, text, kind in _FAMILIES}

        def put(name: str, labels: dict[str, str], value: float | None) -> None:
            if value is not None:
                families[name].add_sample(name, labels, value)

        for gpu, reading in readings:
            whole = self._labels(gpu, None)
            joules = reading.energy_joules
            put(_ENERGY, whole, None if joules is None else joules * 1000)
            put("DCGM_FI_DEV_POWER_USAGE", whole, reading.power_watts)
            put("DCGM_FI_DEV_GPU_TEMP", whole, reading.temperature)
            put("DCGM_FI_DEV_GPU_UTIL", whole, reading.utilization)
            parts: list[tuple[dict[str, str], float | None, float | None]]
            inner = {i.gpu_instance_id: self._labels(gpu, i) for i in reading.instances}
            if reading.instances:
                parts = [(inner[i.gpu_instance_id], i.memory_used_mib, i.memory_total_mib)
                         for i in reading.instances]  # fmt: skip
            else:
                parts = [(whole, reading.memory_used_mib, reading.memory_total_mib)]
            for labels, used, total in parts:
                put("DCGM_FI_DEV_FB_USED", labels, used)
                if used is not None and total is not None:
                    put("DCGM_FI_DEV_FB_FREE", labels, total - used)
            for instance in reading.instances:
                found = ratios.get((gpu.index, instance.gpu_instance_id), {})
                for field, (name, _) in _RATIOS.items():
                    put(name, inner[instance.gpu_instance_id], found.get(field))
        return [m for m in families.values() if m.samples]

    def page(self) -> bytes:
        """Return the text page of one scrape."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        # The Python client adds a suffix to counters that dcgm-exporter's names do not have.
        return generate_latest(registry).replace(f"{_ENERGY}_total".encode(), _ENERGY.encode())

    def describe(self) -> list[Metric]:
        """Tell the registry nothing in advance, so that registering does not scrape."""
        return []


def serve(exporter: Exporter, port: int, address: str = "") -> ThreadingHTTPServer:
    """Make an HTTP server for ``/metrics``; call its ``serve_forever``.

    Raises
    ------
    InputError
        The port is taken or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in ("/metrics", "/"):
                self.send_error(404)
                return
            body = exporter.page()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            del arguments

    try:
        return ThreadingHTTPServer((address, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"port: {port} cannot be used ({error}); allowed: a free port") from None
