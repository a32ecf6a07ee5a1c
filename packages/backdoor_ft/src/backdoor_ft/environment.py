"""Where a figure was measured: machine, threads, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """Model name of the processor, or the architecture where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def describe(
    threads: int, packages: tuple[str, ...] = ("torch", "numpy", "scikit-learn")
) -> dict[str, Any]:
    """Describe the environment in the form that result.json takes.

    Parameters
    ----------
    threads : threads that the measurement used
    packages : distributions whose versions matter

    Returns
    -------
    dict with python, platform, cpu, threads, versions
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "threads": threads,
        "versions": versions,
    }


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
