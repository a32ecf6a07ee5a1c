"""Which frameworks run here, by running them: inference and training, in a process each."""

from __future__ import annotations

from dataclasses import dataclass

from .partitions.cpu import Whole
from .tenants import Tenant, run_window
from .workloads.base import FRAMEWORKS, WorkloadSpec

__all__ = ["CompatRow", "check_frameworks"]


@dataclass(frozen=True)
class CompatRow:
    """One cell of the matrix.

    Parameters
    ----------
    framework, mode : str
        What was tried.
    status : str
        ``ok``, or why not: ``missing``, ``refused``, ``oom``, ``crash``.
    throughput : float
        Samples per second; NaN unless ok.
    detail : str
        What went wrong.
    """

    framework: str
    mode: str
    status: str
    throughput: float
    detail: str


def check_frameworks(
    frameworks: tuple[str, ...] = tuple(FRAMEWORKS), *, duration: float = 0.5, batch: int = 8
) -> list[CompatRow]:
    """Run the perceptron in every framework, for inference and training.

    Parameters
    ----------
    frameworks : tuple of str
        Which ones.
    duration : float
        Seconds per run.
    batch : int
        Batch size.
    """
    rows = []
    for framework in frameworks:
        for mode in ("infer", "train"):
            spec = WorkloadSpec(framework, "mlp", mode, batch, width=256)
            with Whole().open("1c") as grants:
                window = run_window(
                    [(Tenant("probe", spec), grants[0])], duration=duration, warmup=0.1
                )
            result = window.results[0]
            rows.append(CompatRow(framework, mode, result.status, result.throughput, result.detail))
    return rows
