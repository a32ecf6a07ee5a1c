"""What the planner is asked and what it answers."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..boards import Board, load_board
from ..errors import Infeasible, InputError
from ..layout import Layout, PlacedLayout, enumerate_layouts, resolve_board
from ..measurements import MeasurementTable
from ..queueing import rate_within_slo

__all__ = ["Demand", "GpuPlan", "Offer", "Plan", "Problem", "build_problem", "load_demands"]

_FIELDS = ("workload", "rate", "slo_ms", "mode", "batches", "poisson", "weight")


@dataclass(frozen=True)
class Demand:
    """A workload and how much of it is wanted.

    Parameters
    ----------
    workload : str
        Name in the measurements.
    rate : float
        Samples per second wanted.
    slo_ms : float
        Latency bound in milliseconds; infinite where there is none.
    mode : str
        ``infer`` or ``train``.
    batches : tuple of int
        Batch sizes that may be used; empty means all that were measured.
    poisson : bool
        False: the bound holds for the time of a batch, an instance is loaded to 100 %.
        True: requests arrive as a Poisson stream, the bound holds for the 99th percentile of
        waiting plus service.
    weight : float
        Value of one sample for the objective ``max_throughput``.
    """

    workload: str
    rate: float
    slo_ms: float = math.inf
    mode: str = "infer"
    batches: tuple[int, ...] = ()
    poisson: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rate", "slo_ms", "weight"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            if not good or (name != "slo_ms" and math.isinf(value)):
                raise InputError.of(f"{name} of demand {self.workload!r}", value, "a number > 0")
        if self.mode not in ("infer", "train"):
            raise InputError.of(f"mode of demand {self.workload!r}", self.mode, "infer, train")
        if any(not isinstance(b, int) or b < 1 for b in self.batches):
            raise InputError.of(
                f"batches of demand {self.workload!r}", self.batches, "integers >= 1"
            )


def load_demands(path: str | Path) -> tuple[Board, list[Demand]]:
    """Read a demands file.

    The file is YAML: ``board: a100-80gb`` and a list ``demands`` whose entries have the fields of
    `Demand`.

    Raises
    ------
    InputError
        The file cannot be read or a field is not what it must be.
    """
    place = Path(path)
    try:
        data = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"demands: {str(path)!r} cannot be read ({error})") from None
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise InputError(f"demands: {str(path)!r} is not YAML ({line})") from None
    if not isinstance(data, dict) or not isinstance(data.get("demands"), list):
        raise InputError(f"demands: {str(path)!r} needs 'board: NAME' and a list 'demands:'")
    demands = []
    for number, row in enumerate(data["demands"]):
        where = f"demands[{number}]"
        if not isinstance(row, dict):
            raise InputError.of(where, row, f"a mapping with {', '.join(_FIELDS)}")
        unknown = set(row) - set(_FIELDS)
        if unknown or "workload" not in row or "rate" not in row:
            raise InputError.of(
                where,
                sorted(map(str, row)),
                f"workload, rate and optionally {', '.join(_FIELDS[2:])}",
            )
        batches = row.get("batches", ())
        if not isinstance(batches, list | tuple):
            raise InputError.of(f"{where}.batches", batches, "a list of integers >= 1")
        if not isinstance(row.get("poisson", False), bool):
            raise InputError.of(f"{where}.poisson", row["poisson"], "true, false")
        demands.append(
            Demand(**{**row, "workload": str(row["workload"]), "batches": tuple(batches)})
        )
    if not demands:
        raise InputError.of("demands", [], "at least one entry")
    return load_board(str(data.get("board", "a100-80gb"))), demands


@dataclass(frozen=True)
class Offer:
    """What one instance of a profile can do for a demand.

    Parameters
    ----------
    demand : int
        Index of the demand.
    profile : str
        Profile name.
    batch : int
        Batch size used (the largest, where requests are batched as they come).
    rate : float
        Samples per second within the latency bound.
    joules : float
        Dynamic energy per sample, J; NaN where no activity was measured.
    """

    demand: int
    profile: str
    batch: int
    rate: float
    joules: float = math.nan


@dataclass(frozen=True)
class Problem:
    """A planning problem in numbers.

    Parameters
    ----------
    board : Board
        Geometry.
    demands : tuple of Demand
        What is wanted.
    patterns : tuple of tuple of str
        Maximal multisets of profiles that a GPU can be cut into.
    offers : tuple of Offer
        Best offer of each profile for each demand.
    table : MeasurementTable
        Where the offers come from.
    """

    board: Board
    demands: tuple[Demand, ...]
    patterns: tuple[tuple[str, ...], ...]
    offers: tuple[Offer, ...]
    table: MeasurementTable = field(repr=False, compare=False)

    def best(self, demand: int, profile: str) -> Offer | None:
        """Offer of a profile for a demand, or None where it cannot serve it."""
        for offer in self.offers:
            if (offer.demand, offer.profile) == (demand, profile):
                return offer
        return None


@functools.lru_cache(maxsize=256)
def _rate_within(services: tuple[float, ...], slo: float) -> float:
    return rate_within_slo(services, slo)


def service_times(
    table: MeasurementTable, demand: Demand, profile: str, largest: int
) -> tuple[float, ...]:
    """Service time in seconds of every batch up to `largest`; gaps take the next larger point."""
    points = {
        r.batch: r.latency_ms / 1000
        for r in table.select(demand.workload, demand.mode, profile)
        if r.status == "ok"
        and r.batch <= largest
        and (not demand.batches or r.batch in demand.batches)
    }
    sizes = sorted(points)
    return tuple(points[next(s for s in sizes if s >= n)] for n in range(1, largest + 1))


def _offer(
    table: MeasurementTable, board: Board, index: int, demand: Demand, profile: str
) -> Offer | None:
    best: Offer | None = None
    memory = board.profile(profile).memory_mib
    for row in table.select(demand.workload, demand.mode, profile):
        if row.status != "ok" or row.latency_ms > demand.slo_ms or row.memory_mib > memory:
            continue
        if demand.batches and row.batch not in demand.batches:
            continue
        rate = row.rate
        if demand.poisson and math.isfinite(demand.slo_ms):
            services = service_times(table, demand, profile, row.batch)
            rate = _rate_within(services, demand.slo_ms / 1000)
        watts = (
            (board.power_limit_watts - board.idle_power_watts)
            * row.activity
            * board.profile(profile).multiprocessors
            / max(p.multiprocessors for p in board.gpu_profiles)
        )
        if rate > 0 and (best is None or rate > best.rate):
            best = Offer(index, profile, row.batch, rate, watts / row.rate)
    return best


def build_problem(
    table: MeasurementTable, demands: Iterable[Demand], board: Board | str = "a100-80gb"
) -> Problem:
    """Turn measurements and demands into patterns and offers.

    Parameters
    ----------
    table : MeasurementTable
        Measured points.
    demands : iterable of Demand
        What is wanted.
    board : Board or str
        Geometry. Only profiles that were measured are used.

    Raises
    ------
    Infeasible
        A demand cannot be served by any profile within its latency bound.
    """
    target = resolve_board(board)
    wanted = tuple(demands)
    if not wanted:
        raise InputError.of("demands", [], "at least one")
    measured = {r.profile for d in wanted for r in table.select(d.workload, d.mode)}
    names = [p.name for p in target.gpu_profiles if p.name in measured]
    if not names:
        raise InputError.of(
            "profiles", sorted(measured), f"profiles of {target.name}: "
            + ", ".join(p.name for p in target.gpu_profiles),
        )  # fmt: skip
    offers = []
    for index, demand in enumerate(wanted):
        found = [o for n in names if (o := _offer(table, target, index, demand, n)) is not None]
        if not found:
            raise Infeasible(
                f"demand {demand.workload!r} ({demand.mode}): no measured profile and batch meets "
                f"slo_ms={demand.slo_ms}; the fastest point is "
                f"{_fastest(table, demand)}; relax the bound or measure smaller batches"
            )
        offers += found
    return Problem(target, wanted, maximal_patterns(target, tuple(names)), tuple(offers), table)


def _fastest(table: MeasurementTable, demand: Demand) -> str:
    alive = [r for r in table.select(demand.workload, demand.mode) if r.status == "ok"]
    if not alive:
        return "none, all ran out of memory"
    row = min(alive, key=lambda r: r.latency_ms)
    return f"{row.latency_ms} ms ({row.profile}, batch {row.batch})"


@functools.lru_cache(maxsize=64)
def maximal_patterns(board: Board, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Multisets over the given profiles that are not contained in another feasible one.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> board = load_board("a100-80gb")
    >>> len(maximal_patterns(board, ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb")))
    9
    """
    allowed = set(names)
    multisets = {
        layout.multiset
        for layout in enumerate_layouts(board, placed=False, double_memory=True, media=True)
        if allowed.issuperset(layout.multiset)
    }
    counted = [(m, Counter(m)) for m in sorted(multisets)]
    return tuple(
        m for m, c in counted if not any(c != other and c <= other for _, other in counted)
    )


@dataclass(frozen=True)
class GpuPlan:
    """One GPU of a plan.

    Parameters
    ----------
    layout : PlacedLayout
        How it is cut.
    workloads : tuple of str or None
        Demand that each instance serves, in the order of the layout; None is spare.
    batches : tuple of int
        Batch size on each instance; 0 on a spare one.
    """

    layout: PlacedLayout
    workloads: tuple[str | None, ...]
    batches: tuple[int, ...]

    def __str__(self) -> str:
        parts = [
            f"{e.profile}@{e.start}={w or 'spare'}"
            for e, w in zip(self.layout.entries, self.workloads, strict=True)
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """An answer of the planner.

    Parameters
    ----------
    objective : str
        What was optimised.
    value : float
        Value of the objective: GPUs, weighted samples per second, or watts.
    bound : float
        Proven bound on the optimum.
    proven : bool
        Whether `value` is proven optimal.
    gpus : tuple of GpuPlan
        The GPUs.
    capacity : dict of str to float
        Samples per second that the plan can serve, by demand.
    seconds : float
        Time the solver took.
    explanation : tuple of str
        Binding constraints and shadow prices, in words.
    """

    objective: str
    value: float
    bound: float
    proven: bool
    gpus: tuple[GpuPlan, ...]
    capacity: dict[str, float]
    seconds: float
    explanation: tuple[str, ...] = ()

    def __repr__(self) -> str:
        word = "proven optimal" if self.proven else f"bound {self.bound:g}"
        lines = [f"Plan({self.objective} = {self.value:g}, {word})"]
        shown = Counter(map(str, self.gpus))
        lines += [f"  {n} x [{text}]" for text, n in shown.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain form for JSON output."""
        return {
            "schema_version": 1,
            "objective": self.objective,
            "value": self.value,
            "bound": self.bound,
            "proven": self.proven,
            "seconds": self.seconds,
            "capacity": self.capacity,
            "gpus": [
                {
                    "layout": str(g.layout),
                    "workloads": list(g.workloads),
                    "batches": list(g.batches),
                }
                for g in self.gpus
            ],
            "explanation": list(self.explanation),
        }


def assemble(problem: Problem, patterns: dict[tuple[str, ...], int],
             instances: dict[tuple[int, str], int]) -> tuple[GpuPlan, ...]:  # fmt: skip
    """Cut GPUs as the pattern counts say and deal the instances to the demands.

    Parameters
    ----------
    problem : Problem
        The problem.
    patterns : dict of multiset to int
        How many GPUs have each pattern.
    instances : dict of (demand, profile) to int
        How many instances of each profile each demand gets.
    """
    left = {key: n for key, n in instances.items() if n}
    out = []
    for pattern, number in sorted(patterns.items(), key=lambda item: item[0]):
        placed = Layout.of(pattern).solve(problem.board)
        for _ in range(number):
            names: list[str | None] = []
            batches: list[int] = []
            for entry in placed.entries:
                key = next((k for k in sorted(left) if k[1] == entry.profile and left[k]), None)
                if key is None:
                    names.append(None)
                    batches.append(0)
                    continue
                left[key] -= 1
                offer = problem.best(*key)
                assert offer is not None
                names.append(demand_name(problem.demands, key[0]))
                batches.append(offer.batch)
            out.append(GpuPlan(placed, tuple(names), tuple(batches)))
    if any(left.values()):
        raise AssertionError(f"instances without a place: {left}")
    return tuple(out)


def demand_name(demands: Sequence[Demand], index: int) -> str:
    """Name of a demand, made unique where a workload is asked for twice."""
    demand = demands[index]
    same = [
        i for i, d in enumerate(demands) if (d.workload, d.mode) == (demand.workload, demand.mode)
    ]
    name = f"{demand.workload}/{demand.mode}"
    return name if len(same) == 1 else f"{name}#{same.index(index) + 1}"
