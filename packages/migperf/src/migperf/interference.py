"""Summaries of windows: throughput, percentiles, slowdown, isolation, fairness, STP and ANTT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .cases import Case
from .errors import InputError
from .stats import bootstrap_mean, isolation_index, jain_fairness, percentile
from .tenants import Window

__all__ = [
    "InterferenceTable",
    "antt",
    "fairness",
    "interference_matrix",
    "interference_tables",
    "isolation",
    "slowdown",
    "stp",
    "summarise",
]


def summarise(label: str, windows: Sequence[Window]) -> list[dict[str, Any]]:
    """One row per tenant of a case.

    Throughput is a mean over repeats with its 95 % bootstrap interval. Percentiles are taken over
    the pooled raw samples, never averaged over tenants; those for which there are too few samples
    are NaN.

    Parameters
    ----------
    label : str
        Name of the case.
    windows : sequence of Window
        Repeats.
    """
    rows = []
    names = list(dict.fromkeys(r.tenant for w in windows for r in w.results))
    for name in names:
        results = [r for w in windows for r in w.results if r.tenant == name]
        alive = [r for r in results if r.status == "ok"]
        base: dict[str, Any] = {"case": label, "tenant": name, "partition": results[0].partition}
        if not alive:
            rows.append({**base, "status": results[0].status, "detail": results[0].detail,
                         "throughput_half_width": math.inf})  # fmt: skip
            continue
        interval = bootstrap_mean([r.throughput for r in alive])
        pooled = np.concatenate([r.latency_ms for r in alive])
        rows.append(
            {
                **base,
                "status": "ok" if len(alive) == len(results) else "partial",
                "throughput": interval.mean,
                "throughput_low": interval.low,
                "throughput_high": interval.high,
                "throughput_half_width": interval.half_width,
                "throughput_text": str(interval),
                "repeats": interval.n,
                "samples": int(pooled.size),
                "mean_ms": float(pooled.mean()) if pooled.size else math.nan,
                "std_ms": float(pooled.std()) if pooled.size else math.nan,
                "p50_ms": percentile(pooled, 0.5),
                "p95_ms": percentile(pooled, 0.95),
                "p99_ms": percentile(pooled, 0.99),
                "joules_per_sample": float(np.mean([r.joules_per_sample for r in alive])),
                "involuntary_switches": sum(r.involuntary_switches for r in alive),
                "peak_memory_mib": max(r.peak_memory_mib for r in alive),
            }
        )
    return rows


def _quantiles(windows: Sequence[Window], q: float, tenant: str | None) -> list[float]:
    values = []
    for window in windows:
        found = [r for r in window.results if r.status == "ok" and tenant in (None, r.tenant)]
        samples = np.concatenate([r.latency_ms for r in found]) if found else np.empty(0)
        if samples.size:
            values.append(float(np.quantile(samples, q)))
    return values


def slowdown(
    alone: Sequence[Window], together: Sequence[Window], tenant: str | None = None
) -> float:
    """Median latency together over median latency alone, on the same grant.

    Parameters
    ----------
    alone, together : sequence of Window
        Repeats.
    tenant : str, optional
        Only this tenant.
    """
    before, after = _quantiles(alone, 0.5, tenant), _quantiles(together, 0.5, tenant)
    if not before or not after:
        raise InputError.of("windows", "no samples", "windows in which the tenant ran")
    return float(np.median(after) / np.median(before))


def isolation(
    alone: Sequence[Window], together: Sequence[Window], tenant: str | None = None
) -> float:
    """Isolation index: p99 alone over p99 together, medians over repeats."""
    before, after = _quantiles(alone, 0.99, tenant), _quantiles(together, 0.99, tenant)
    if not before or not after:
        raise InputError.of("windows", "no samples", "windows in which the tenant ran")
    return isolation_index(float(np.median(before)), float(np.median(after)))


def interference_matrix(
    alone: Sequence[float], together: Float[np.ndarray, "n n"]
) -> Float[np.ndarray, "n n"]:
    """Slowdown minus one of each workload beside each other.

    Parameters
    ----------
    alone : sequence of float, length n
        Median latency of each workload alone.
    together : array, shape (n, n)
        Entry (i, j): median latency of workload i beside workload j.

    Examples
    --------
    >>> interference_matrix([10.0, 20.0], np.array([[11.0, 15.0], [20.0, 30.0]])).tolist()
    [[0.10000000000000009, 0.5], [0.0, 0.5]]
    """
    base = np.asarray(alone, dtype=float)
    if together.shape != (base.size, base.size):
        raise InputError.of("together", together.shape, f"shape ({base.size}, {base.size})")
    matrix: NDArray[np.float64] = together / base[:, None] - 1.0
    return matrix


@dataclass(frozen=True)
class InterferenceTable:
    """What tenants do to each other on one partitioning.

    Parameters
    ----------
    backend, layout : str
        The partitioning; the tenant of the row is in its first partition.
    names : tuple of str, length n
        Tenants.
    matrix : array, shape (n, n)
        Entry (i, j): slowdown of i beside j, minus one, by median latency; NaN where the pair
        did not run.
    isolation : array, shape (n, n)
        Entry (i, j): p99 of i alone over p99 of i beside j.
    """

    backend: str
    layout: str
    names: tuple[str, ...]
    matrix: Float[np.ndarray, "n n"]
    isolation: Float[np.ndarray, "n n"]

    def to_json(self) -> dict[str, Any]:
        """Plain form for ``summary.json``."""

        def plain(values: NDArray[np.float64]) -> list[list[float | None]]:
            return [[None if v != v else v for v in row] for row in values.tolist()]

        return {"backend": self.backend, "layout": self.layout, "names": list(self.names),
                "matrix": plain(self.matrix), "isolation": plain(self.isolation)}  # fmt: skip


def interference_tables(
    cases: Sequence[Case], windows: Mapping[str, Sequence[Window]]
) -> list[InterferenceTable]:
    """Collect the pairs of a study, one table per partitioning.

    Parameters
    ----------
    cases : sequence of Case
        Those of the study; `migperf.cases.read_study` makes the pairs.
    windows : mapping of str to sequence of Window
        Repeats by case label.
    """
    places = dict.fromkeys((c.backend, c.layout, c.batch) for c in cases if c.is_pair)
    tables = []
    for place in places:
        here = {
            c.tenants: windows[c.label] for c in cases if (c.backend, c.layout, c.batch) == place
        }
        names = tuple(k[0] for k in here if isinstance(k, tuple) and len(k) == 1)
        shape = (len(names), len(names))
        medians, tails, alone = np.full(shape, np.nan), np.full(shape, np.nan), []
        for i, one in enumerate(names):
            before = _quantiles(here[one,], 0.5, one)
            alone.append(float(np.median(before)) if before else math.nan)
            for j, two in enumerate(names):
                beside = here.get((one, f"{two}-2" if one == two else two), ())
                both = [w for w in beside if all(r.status == "ok" for r in w.results)]
                if before and both:
                    medians[i, j] = float(np.median(_quantiles(both, 0.5, one)))
                    tails[i, j] = isolation(here[one,], both, one)
        matrix = interference_matrix(alone, medians)
        tables.append(InterferenceTable(place[0], place[1], names, matrix, tails))
    return tables


def stp(throughputs: Sequence[float], whole: Sequence[float]) -> float:
    """System throughput: sum of the tenants' progress relative to having the machine alone.

    References
    ----------
    Eyerman and Eeckhout (2008), "System-level performance metrics for multiprogram workloads".

    Examples
    --------
    >>> stp([50.0, 60.0], [100.0, 100.0])
    1.1
    """
    return math.fsum(t / w for t, w in zip(throughputs, whole, strict=True))


def antt(throughputs: Sequence[float], whole: Sequence[float]) -> float:
    """Average normalised turnaround time: mean of the inverse progress; see `stp`.

    Examples
    --------
    >>> antt([50.0, 100.0], [100.0, 100.0])
    1.5
    """
    terms = [w / t for t, w in zip(throughputs, whole, strict=True)]
    return math.fsum(terms) / len(terms)


def fairness(throughputs: Sequence[float], whole: Sequence[float]) -> float:
    """Jain's index of the tenants' progress; see `migperf.stats.jain_fairness`."""
    return jain_fairness([t / w for t, w in zip(throughputs, whole, strict=True)])
