"""The machine and the versions behind a measured figure."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe(
    threads: int, packages: tuple[str, ...] = ("torch", "numpy", "scipy")
) -> dict[str, Any]:
    """Return interpreter, platform, processor, thread count and versions."""
    versions = {}
    for name in ("p2c", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "threads": threads,
        "versions": versions,
    }
