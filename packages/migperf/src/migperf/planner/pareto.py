"""What a latency bound costs, and what one workload costs another: sweeps and Pareto fronts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from ..boards import Board
from ..errors import Infeasible
from ..layout import Layout, PlacedLayout
from ..measurements import Measurement, MeasurementTable
from .exact import solve_exact
from .model import Demand, Problem, build_problem

__all__ = [
    "BatchPoint",
    "SweepPoint",
    "TradeOff",
    "batch_points",
    "energy_per_sample",
    "nondominated",
    "slo_sweep",
    "trade_off",
]


def nondominated(values: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, " n"]:
    """Rows that no other row beats: none is at least as large everywhere and larger somewhere.

    Examples
    --------
    >>> nondominated(np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0], [3.0, 1.0]])).tolist()
    [True, True, False, True]
    """
    at_least = (values[:, None, :] >= values[None, :, :]).all(axis=2)
    larger = (values[:, None, :] > values[None, :, :]).any(axis=2)
    return np.asarray(~(at_least & larger).any(axis=0))


def energy_per_sample(row: Measurement, board: Board | None) -> float:
    """Energy of one sample in joules, measured, or estimated from the activity.

    The estimate is that of `migperf.energy.attribute_energy`: idle power by memory slices, dynamic
    power by activity times multiprocessors. NaN where neither is known.

    Parameters
    ----------
    row : Measurement
        The point.
    board : Board or None
        Geometry and power; None where the partition is not one of a GPU.
    """
    if not math.isnan(row.joules) or board is None or math.isnan(row.activity):
        return row.joules
    profile = board.profile(row.profile)
    largest = max(p.multiprocessors for p in board.gpu_profiles)
    idle = board.idle_power_watts * profile.size / board.memory_slices
    dynamic = board.power_limit_watts - board.idle_power_watts
    return (idle + dynamic * row.activity * profile.multiprocessors / largest) / row.rate


@dataclass(frozen=True)
class BatchPoint:
    """A partition with a batch size: what a request waits, what the device serves.

    Parameters
    ----------
    profile : str
        Partition.
    batch : int
        Batch size.
    latency_ms : float
        Time of a batch, ms.
    rate : float
        Samples per second of as many such partitions as fit, each with its own batches.
    on_front : bool
        No other point is both faster to answer and faster to serve.
    """

    profile: str
    batch: int
    latency_ms: float
    rate: float
    on_front: bool


def batch_points(
    table: MeasurementTable, workload: str, mode: str, copies: dict[str, int]
) -> list[BatchPoint]:
    """All measured points of a workload with their front of latency against throughput.

    Parameters
    ----------
    table : MeasurementTable
        Measured points.
    workload, mode : str
        Which workload.
    copies : dict of str to int
        How many partitions of each profile one device holds.
    """
    rows = [
        r for r in table.select(workload, mode) if r.status == "ok" and copies.get(r.profile, 0)
    ]
    if not rows:
        return []
    rates = [copies[r.profile] * r.rate for r in rows]
    front = nondominated(np.array([[-r.latency_ms, v] for r, v in zip(rows, rates, strict=True)]))
    return [
        BatchPoint(r.profile, r.batch, r.latency_ms, v, bool(f))
        for r, v, f in zip(rows, rates, front, strict=True)
    ]


@dataclass(frozen=True)
class SweepPoint:
    """What the demands cost when every bound is scaled.

    Parameters
    ----------
    factor : float
        Scale of the latency bounds.
    gpus : int or None
        Fewest GPUs, proven; None where the bounds cannot be met.
    """

    factor: float
    gpus: int | None


def slo_sweep(
    table: MeasurementTable, demands: Sequence[Demand], board: Board, factors: Sequence[float]
) -> list[SweepPoint]:
    """Fewest GPUs against the latency bound.

    Parameters
    ----------
    table : MeasurementTable
        Measured points.
    demands : sequence of Demand
        What is wanted; bounds are multiplied, demands without one are not.
    board : Board
        Geometry.
    factors : sequence of float
        Scales to try.
    """
    points = []
    for factor in factors:
        scaled = [replace(d, slo_ms=d.slo_ms * factor) for d in demands]
        try:
            answer = solve_exact(build_problem(table, scaled, board))
        except Infeasible:
            points.append(SweepPoint(factor, None))
            continue
        points.append(SweepPoint(factor, int(answer.value) if answer.proven else None))
    return points


@dataclass(frozen=True)
class TradeOff:
    """One GPU, cut and dealt to two demands.

    Parameters
    ----------
    layout : PlacedLayout
        How it is cut.
    owners : tuple of int
        Per instance 0 for the first demand and 1 for the second.
    first, second : float
        Samples per second of each within its latency bound.
    watts : float
        Estimated power at full load; NaN without activities.
    on_front : bool
        No other deal serves both better.
    """

    layout: PlacedLayout
    owners: tuple[int, ...]
    first: float
    second: float
    watts: float
    on_front: bool


def trade_off(problem: Problem, first: int = 0, second: int = 1) -> list[TradeOff]:
    """Every way to deal the instances of one GPU to two demands, with the Pareto front marked.

    Training beside serving is the case the paper has in view. Throughput does not depend on the
    places, so one placement stands for all of a multiset; maximal multisets are enough, as another
    instance takes nothing from those that are there.

    Parameters
    ----------
    problem : Problem
        Offers of both demands, from `build_problem`.
    first, second : int
        Indices of the demands.
    """
    found: dict[tuple[float, float], TradeOff] = {}
    for pattern in problem.patterns:
        counts = Counter(pattern)
        layout = Layout.of(pattern).solve(problem.board)
        for given in itertools.product(*(range(n + 1) for n in counts.values())):
            left = dict(zip(counts, given, strict=True))
            owners, rates, watts = [], [0.0, 0.0], problem.board.idle_power_watts
            for entry in layout.entries:
                owner = 0 if left[entry.profile] > 0 else 1
                left[entry.profile] -= 1
                owners.append(owner)
                offer = problem.best((first, second)[owner], entry.profile)
                if offer is not None:
                    rates[owner] += offer.rate
                    watts += offer.joules * offer.rate
            key = (rates[0], rates[1])
            found.setdefault(key, TradeOff(layout, tuple(owners), *key, watts, False))
    ordered = sorted(found.values(), key=lambda t: (t.first, t.second))
    front = nondominated(np.array([[t.first, t.second] for t in ordered]))
    return [replace(t, on_front=bool(f)) for t, f in zip(ordered, front, strict=True)]
