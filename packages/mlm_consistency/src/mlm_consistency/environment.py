"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe(
    threads: int, packages: tuple[str, ...] = ("torch", "transformers", "numpy", "scipy")
) -> dict[str, Any]:
    """Python, platform, processor, threads and versions.

    Examples
    --------
    >>> sorted(describe(1))
    ['cpu', 'platform', 'python', 'threads', 'versions']
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": threads,
        "versions": versions,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
