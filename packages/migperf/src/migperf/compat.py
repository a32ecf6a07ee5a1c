"""Which frameworks run here, by running them: inference and training, in a process each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .partitions.cpu import Whole
from .tenants import Tenant, run_window
from .workloads.base import FRAMEWORKS, WorkloadSpec

__all__ = ["PROBES", "CompatRow", "check_frameworks"]

# What is tried under each name: framework, model and image edge or sequence length.
PROBES = {
    **{name: WorkloadSpec(name, "mlp", width=256) for name in FRAMEWORKS},
    "timm": WorkloadSpec("torch", "resnet18", image=32),
    "transformers": WorkloadSpec("torch", "hf:distilbert", sequence=16),
}


@dataclass(frozen=True)
class CompatRow:
    """One cell of the matrix.

    Parameters
    ----------
    framework, model, mode : str
        What was tried.
    status : str
        ``ok``, or why not: ``missing``, ``refused``, ``oom``, ``crash``.
    throughput : float
        Samples per second; NaN unless ok.
    detail : str
        What went wrong.
    """

    framework: str
    model: str
    mode: str
    status: str
    throughput: float
    detail: str


def check_frameworks(
    frameworks: tuple[str, ...] = tuple(PROBES), *, duration: float = 0.5, batch: int = 8
) -> list[CompatRow]:
    """Run a small model in every framework, for inference and training.

    Parameters
    ----------
    frameworks : tuple of str
        Names of `PROBES`.
    duration : float
        Seconds per run.
    batch : int
        Batch size.
    """
    rows = []
    for framework in frameworks:
        for mode in ("infer", "train"):
            spec = replace(PROBES[framework], mode=mode, batch=batch)
            with Whole().open("1c") as grants:
                window = run_window(
                    [(Tenant("probe", spec), grants[0])], duration=duration, warmup=0.1
                )
            result = window.results[0]
            rate = result.throughput
            if rate == 0:  # slower than the window: not nothing, so count the one step
                rate = batch / float(np.mean(result.times["done"] - result.times["started"]))
            rows.append(CompatRow(framework, spec.model, mode, result.status, rate, result.detail))
    return rows
