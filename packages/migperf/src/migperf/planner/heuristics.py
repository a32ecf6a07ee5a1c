"""Plans without proof, for comparison: whole GPUs, homogeneous cuts, three packing rules."""

from __future__ import annotations

import functools
import heapq
import math

from ..boards import Board
from ..errors import Infeasible
from ..placement import fragmentation, solve
from .model import Problem

__all__ = ["HEURISTICS", "best_fit", "compare", "first_fit", "greedy", "homogeneous", "whole"]


def _full_profile(problem: Problem) -> str:
    return max(problem.board.gpu_profiles, key=lambda p: (p.compute_slices, p.size)).name


def whole(problem: Problem) -> int:
    """GPUs when every workload gets whole GPUs.

    Raises
    ------
    Infeasible
        A demand was not measured on the whole GPU, or misses its bound there.
    """
    return _homogeneous_with(problem, _full_profile(problem), shared=False)


def _homogeneous_with(problem: Problem, profile: str, *, shared: bool) -> int:
    total = 0
    for index, demand in enumerate(problem.demands):
        offer = problem.best(index, profile)
        if offer is None:
            raise Infeasible(f"{demand.workload}: {profile} does not serve it within its bound")
        total += math.ceil(demand.rate / offer.rate - 1e-9)
    return total if not shared else -(-total // problem.board.profile(profile).count)


def homogeneous(problem: Problem) -> int:
    """GPUs with the best single profile below the whole GPU, the same on all GPUs."""
    full = _full_profile(problem)
    counts = []
    for name in {o.profile for o in problem.offers} - {full}:
        try:
            counts.append(_homogeneous_with(problem, name, shared=True))
        except Infeasible:
            continue
    if not counts:
        raise Infeasible("no single profile serves all demands")
    return min(counts)


def _efficient_instances(problem: Problem) -> list[str]:
    """Instances of the profile with the highest rate per memory slice, demand by demand."""
    out = []
    for index, demand in enumerate(problem.demands):
        offers = [o for o in problem.offers if o.demand == index]
        left = demand.rate
        best = max(offers, key=lambda o: o.rate / problem.board.profile(o.profile).size)
        number = int(left / best.rate + 1e-9)
        out += [best.profile] * number
        left -= number * best.rate
        if left > 1e-9 * demand.rate:
            enough = [o for o in offers if o.rate >= left - 1e-9]
            last = min(enough, key=lambda o: problem.board.profile(o.profile).size, default=best)
            out.append(last.profile)
    return out


@functools.lru_cache(maxsize=4096)
def _left_fragmented(board: Board, names: tuple[str, ...]) -> float | None:
    """Fragmentation of a GPU that holds these instances; None where they do not fit."""
    try:
        return fragmentation(board, solve(board, tuple((n, None) for n in names)))
    except Infeasible:
        return None


def _pack(problem: Problem, *, fragmentation_aware: bool) -> int:
    board = problem.board
    names = sorted(_efficient_instances(problem), key=lambda n: (-board.profile(n).size, n))
    # GPUs that hold the same instances are alike: only one of each kind needs to be tried.
    kinds: dict[tuple[str, ...], list[int]] = {}
    count = 0
    for name in names:
        candidates = []
        for held, numbers in kinds.items():
            left = _left_fragmented(board, tuple(sorted((*held, name)))) if numbers else None
            if left is not None:
                candidates.append((left if fragmentation_aware else 0.0, numbers[0], held))
        if candidates:
            _, number, held = min(candidates)
            heapq.heappop(kinds[held])
        else:
            number, held = count, ()
            count += 1
        heapq.heappush(kinds.setdefault(tuple(sorted((*held, name))), []), number)
    return count


def first_fit(problem: Problem) -> int:
    """First fit decreasing over the most efficient instances."""
    return _pack(problem, fragmentation_aware=False)


def best_fit(problem: Problem) -> int:
    """Best fit decreasing: the GPU that is left least fragmented takes the instance."""
    return _pack(problem, fragmentation_aware=True)


def greedy(problem: Problem) -> int:
    """One GPU after the other, each cut so that it serves the largest share of what is left.

    The rule of MIG-serving's fast algorithm (arXiv 2109.11067, section 5), with instances given
    one by one to the demand of which they serve the largest missing share.
    """
    left = {i: d.rate for i, d in enumerate(problem.demands)}
    rates = {(o.demand, o.profile): o.rate for o in problem.offers}
    gpus = 0
    while any(v > 1e-9 for v in left.values()):
        best: tuple[float, dict[int, float]] | None = None
        for pattern in problem.patterns:
            trial, gain = dict(left), 0.0
            for name in pattern:
                shares = [
                    (min(trial[i], rates[i, name]) / problem.demands[i].rate, -i)
                    for i in trial
                    if (i, name) in rates and trial[i] > 1e-9
                ]
                if not shares:
                    continue
                share, minus = max(shares)
                trial[-minus] = max(0.0, trial[-minus] - rates[-minus, name])
                gain += share
            if best is None or gain > best[0]:
                best = (gain, trial)
        if best is None or best[0] <= 0:
            raise Infeasible("greedy: no pattern serves what is left")
        # Repeat the same cut as long as it stays fully used: large demands take many GPUs.
        served = {i: left[i] - best[1][i] for i in left}
        times = min((int(left[i] / served[i]) for i in left if served[i] > 1e-9), default=1)
        times = max(1, times - 1)
        left = {i: max(0.0, left[i] - times * served[i]) for i in left}
        gpus += times
    return gpus


HEURISTICS = {
    "whole": whole,
    "homogeneous": homogeneous,
    "first_fit": first_fit,
    "best_fit": best_fit,
    "greedy": greedy,
}


def compare(problem: Problem) -> dict[str, int | None]:
    """GPUs that each heuristic needs; None where it finds no plan."""
    out: dict[str, int | None] = {}
    for name, heuristic in HEURISTICS.items():
        try:
            out[name] = heuristic(problem)
        except Infeasible:
            out[name] = None
    return out
