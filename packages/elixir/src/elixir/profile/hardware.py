"""Rates of a machine, measured: copies, host memory stream, AdamW, matrix products, disk."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from elixir._files import write_text
from elixir.optim.kernels import adamw_, copy_
from elixir.profile.interference import measure_interference

MAY_BE_ZERO = ("latency", "copy_call", "wake", "copy_beside", "copy_disturbs", "adam_disturbs")


@dataclass(frozen=True)
class Hardware:
    """Rates that the event simulator uses.

    Attributes
    ----------
    h2d, d2h
        Bytes per second between host and device.
    latency
        Seconds per copy.
    host_stream
        Bytes per second of a read-modify-write pass over host memory.
    adam_host, adam_device
        Updated elements per second (fp32 master and moments).
    flops
        Achieved floating-point operations per second of the device.
    device_stream
        Bytes per second of the device's memory.
    disk_read, disk_write
        Bytes per second.
    collective
        Bytes per second and rank of a reduction between ranks.
    copy_call
        Seconds of the computing thread per copy.
    wake
        Seconds from the end of a copy until compute that waited for it goes on.
    copy_beside, copy_disturbs, adam_disturbs
        Seconds that compute loses per copy, per byte copied and per element updated beside it.
    adam_beside
        Time of an update beside compute over its time alone.
    """

    h2d: float = 12e9
    d2h: float = 12e9
    latency: float = 20e-6
    host_stream: float = 20e9
    adam_host: float = 1e9
    adam_device: float = 5e10
    flops: float = 1e13
    device_stream: float = 1e12
    disk_read: float = 1e9
    disk_write: float = 1e9
    collective: float = 1e10
    copy_call: float = 0.0
    wake: float = 0.0
    copy_beside: float = 0.0
    copy_disturbs: float = 0.0
    adam_disturbs: float = 0.0
    adam_beside: float = 1.0
    name: str = "assumed"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "name":
                continue
            if not isinstance(value, int | float) or not (
                value > 0 or (value == 0 and field.name in MAY_BE_ZERO)
            ):
                raise ValueError(f"{field.name}={value!r}: must be a positive rate")

    @classmethod
    def measure(cls, device: str | torch.device = "cpu", *, disk: str | None = None) -> Hardware:
        """Measure this machine in a few seconds (medians of a few repeats).

        Parameters
        ----------
        device
            ``"cpu"`` (the emulated device) or a CUDA device.
        disk
            Folder for the disk measurement; None leaves the assumed rates.
        """
        target = torch.device(device)
        n = 1 << (26 if target.type == "cuda" else 23)  # a GPU's host has large caches
        p, m, v, g = (torch.zeros(n) for _ in range(4))
        adam = _seconds(lambda: adamw_(p, m, v, g, lr=1e-3, step=1))
        stream = _seconds(lambda: p.add_(1.0))
        rates = {"adam_host": n / adam, "host_stream": 8 * n / stream}
        if target.type == "cuda":
            rates |= _measure_cuda(target, p.pin_memory())
        else:
            other = torch.empty_like(p)
            copy = _seconds(lambda: copy_(other, p))
            a = torch.ones(512, 512)
            product = _seconds(lambda: a @ a)
            rates |= {
                "h2d": 4 * n / copy,
                "d2h": 4 * n / copy,
                "adam_device": n / adam,
                "flops": 2 * 512**3 / product,
                "device_stream": 8 * n / stream,
                "collective": 4 * n / copy / 2,
                **measure_interference(),
            }
        if disk is not None:
            rates |= _measure_disk(disk)
        return cls(**rates, name=f"measured on {target.type}")

    def emulating(self, *, h2d: float, d2h: float | None = None) -> Hardware:
        """Return these rates with copies throttled, as the emulated tiers would be."""
        return replace(self, h2d=h2d, d2h=d2h or h2d, name=f"{self.name}, throttled")

    def save(self, path: str | Path) -> None:
        """Write the rates as JSON, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Hardware:
        """Read rates written by :meth:`save`."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a hardware profile ({error})") from None


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _measure_cuda(device: torch.device, pinned: torch.Tensor) -> dict[str, float]:
    there = torch.empty(pinned.numel(), device=device)
    a = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    moments = [torch.zeros_like(there) for _ in range(3)]

    def run(work: Callable[[], object]) -> float:
        def whole() -> None:
            work()
            torch.cuda.synchronize(device)

        return _seconds(whole)

    def adam() -> None:
        moments[0].lerp_(there, 0.1)
        moments[1].mul_(0.99).addcmul_(there, there)
        moments[2].addcdiv_(moments[0], moments[1].sqrt().add_(1e-8))

    size = pinned.nbytes
    up = run(lambda: there.copy_(pinned, non_blocking=True))
    down = run(lambda: pinned.copy_(there, non_blocking=True))
    return {
        "h2d": size / up,
        "d2h": size / down,
        "flops": 2 * 4096**3 / run(lambda: a @ a),
        "device_stream": 2 * size / run(lambda: there.add_(1.0)),
        "adam_device": pinned.numel() / run(adam),
    }


def _measure_disk(folder: str) -> dict[str, float]:
    data = os.urandom(1 << 24)
    with tempfile.TemporaryFile(dir=folder) as file:

        def write() -> None:
            os.pwrite(file.fileno(), data, 0)
            os.fsync(file.fileno())

        written = _seconds(write, 3)
        read = _seconds(lambda: os.pread(file.fileno(), len(data), 0), 3)
    return {"disk_read": len(data) / read, "disk_write": len(data) / written}
