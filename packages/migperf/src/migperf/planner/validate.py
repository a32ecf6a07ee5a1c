"""Play a plan: Poisson requests on every instance of it, batched as they wait."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..queueing import batch_queue
from .model import Offer, Plan, Problem, demand_name, service_times

__all__ = ["DemandCheck", "validate_plan"]


@dataclass(frozen=True)
class DemandCheck:
    """What the simulation found for one demand.

    Parameters
    ----------
    demand : str
        Name.
    offered : float
        Load of its instances: rate wanted over capacity.
    p99_ms : tuple of float
        99th percentile of each seed, milliseconds.
    slo_ms : float
        Bound.
    """

    demand: str
    offered: float
    p99_ms: tuple[float, ...]
    slo_ms: float

    @property
    def share_met(self) -> float:
        """Share of the seeds in which the 99th percentile met the bound."""
        return sum(p <= self.slo_ms for p in self.p99_ms) / len(self.p99_ms)


def validate_plan(
    problem: Problem, plan: Plan, *, seeds: int = 20, requests: int = 20000, seed: int = 0
) -> list[DemandCheck]:
    """Simulate every instance of a plan under Poisson arrivals.

    The wanted rate of a demand is split over its instances in proportion to their capacity
    (a Poisson stream split at random stays Poisson). An instance serves all waiting requests at
    once, up to its batch size, with the measured time of the next larger batch. Training demands
    have no requests and are left out.

    Parameters
    ----------
    problem : Problem
        The problem that was solved.
    plan : Plan
        Its answer.
    seeds, requests : int
        Runs, and requests per demand and run.
    seed : int
        First seed.

    Returns
    -------
    list of DemandCheck
        One per inference demand.
    """
    checks = []
    for index, demand in enumerate(problem.demands):
        if demand.mode != "infer":
            continue
        name = demand_name(problem.demands, index)
        counts = Counter(
            entry.profile
            for gpu in plan.gpus
            for entry, workload in zip(gpu.layout.entries, gpu.workloads, strict=True)
            if workload == name
        )
        offers: list[tuple[Offer, int]] = []
        for profile, number in sorted(counts.items()):
            offer = problem.best(index, profile)
            assert offer is not None
            offers.append((offer, number))
        capacity = math.fsum(o.rate * n for o, n in offers)
        load = demand.rate / capacity if capacity else math.inf
        tails = []
        for run in range(seeds):
            generator = np.random.default_rng([seed, run, index])
            pieces = []
            for offer, number in offers:
                services = service_times(problem.table, demand, offer.profile, offer.batch)
                rate = offer.rate * load
                share = offer.rate * number / capacity
                # Instances of one profile are alike: one of them stands for all, with weight.
                size = max(2000, int(requests * share))
                gaps = generator.exponential(1.0 / rate, size=size)
                pieces.append((batch_queue(np.cumsum(gaps), services), share))
            tails.append(1000 * _weighted_quantile(pieces, 0.99))
        checks.append(DemandCheck(name, load, tuple(tails), demand.slo_ms))
    return checks


def _weighted_quantile(pieces: list[tuple[np.ndarray, float]], q: float) -> float:
    """Quantile of a mixture: samples of each piece share its weight."""
    values = np.concatenate([p for p, _ in pieces])
    weights = np.concatenate([np.full(p.size, w / p.size) for p, w in pieces])
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    position = int(np.searchsorted(cumulative, q * cumulative[-1]))
    return float(values[order][min(position, values.size - 1)])
