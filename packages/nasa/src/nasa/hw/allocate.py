"""How many PEs each chunk gets: Eq. 8, and a search that knows the mapping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasa.hw.accelerator import Accelerator
from nasa.hw.layer import OPERATOR_TYPES, OperatorType, Workload
from nasa.hw.tables import InfeasibleMappingError, Objective

if TYPE_CHECKING:
    from nasa.hw.mapper import MappingResult


def allocate(workload: Workload, accelerator: Accelerator) -> dict[OperatorType, int]:
    """Divide the area in proportion to the operations of each type (Eq. 8 of the paper).

    As published, the multiplication chunk rounds down and the others round up, so that the area may
    be exceeded by less than two shift or adder PEs.

    Raises
    ------
    ValueError
        If the area does not give every chunk in use at least two PEs (tilings use fewer than all).

    Examples
    --------
    >>> from nasa.hw import Layer
    >>> work = Workload("w", [Layer.conv("a", "conv", 8, 8, 8), Layer.conv("b", "shift", 8, 8, 8)])
    >>> allocate(work, Accelerator("a", area=100.0))
    {'conv': 65, 'shift': 66, 'adder': 0}
    """
    operations = workload.macs()
    unit = accelerator.area / sum(operations[t] * accelerator.pe_area[t] for t in OPERATOR_TYPES)
    # a quotient that is whole in exact arithmetic must not be rounded up past itself
    shares = {t: round(unit * operations[t], 9) for t in OPERATOR_TYPES}
    pes = {t: math.floor(v) if t == "conv" else math.ceil(v) for t, v in shares.items()}
    short = [t for t in OPERATOR_TYPES if operations[t] and pes[t] < 2]
    if short:
        least = max(2 / shares[t] for t in short) * accelerator.area
        raise ValueError(
            f"area={accelerator.area:g} MAC PEs is too small: the {short[0]} chunk would get "
            f"{pes[short[0]]} PE; at least {math.ceil(least)} is needed for this workload"
        )
    return pes


def area_of(pes: Mapping[OperatorType, int], accelerator: Accelerator) -> float:
    """Return the area of a split, in MAC PEs."""
    return sum(n * accelerator.pe_area[t] for t, n in pes.items())


@dataclass(frozen=True)
class AllocationResult:
    """Outcome of :func:`search_allocation`: the best mapping, Eq. 8's, and how many were tried."""

    best: MappingResult
    proportional: MappingResult | None
    tried: int
    buffer_split: dict[OperatorType, float] | None

    @property
    def saving(self) -> float:
        """Fraction of Eq. 8's EDP that the search saves (NaN where Eq. 8 cannot be mapped)."""
        return 1 - self.best.edp / self.proportional.edp if self.proportional else math.nan


def search_allocation(
    workload: Workload,
    accelerator: Accelerator,
    objective: Objective = "edp",
    *,
    budget: int = 60,
    split_buffer: bool = True,
) -> AllocationResult:
    """Search the PE split, and the split of the buffer, by mapping each candidate.

    Starts at Eq. 8, moves the boundary between two chunks by halving steps, keeps what improves,
    and then tries buffers that the chunks own instead of sharing. Never worse than Eq. 8, and never
    takes more area than the larger of the budget and Eq. 8's rounding.

    Parameters
    ----------
    workload, accelerator, objective
        As in :func:`nasa.hw.map`.
    budget : int
        Mappings to try at most.
    split_buffer : bool
        Also try owned buffers.
    """
    from nasa.hw.mapper import map_workload

    start = allocate(workload, accelerator)
    limit = max(accelerator.area, area_of(start, accelerator))
    value = {"edp": "edp", "energy": "energy_mj", "latency": "interval_ms"}[objective]
    seen: dict[tuple[int, ...], MappingResult | None] = {}

    def evaluate(pes: dict[OperatorType, int]) -> MappingResult | None:
        key = tuple(pes[t] for t in OPERATOR_TYPES)
        if key not in seen:
            try:
                seen[key] = map_workload(workload, accelerator, objective, processing_elements=pes)
            except InfeasibleMappingError:
                seen[key] = None
        return seen[key]

    proportional = best = evaluate(start)
    here, step = start, max(1, max(start.values()) // 4)
    while step >= 1 and len(seen) < budget:
        improved = False
        for candidate in _neighbours(here, step, accelerator, limit, workload):
            if len(seen) >= budget:
                break
            found = evaluate(candidate)
            if found and (best is None or getattr(found, value) < getattr(best, value)):
                best, here, improved = found, candidate, True
        if not improved:
            step //= 2
    if best is None:
        best = map_workload(workload, accelerator, objective, processing_elements=start)
    owned: dict[OperatorType, float] | None = None
    tried = len(seen)
    if split_buffer and len(best.dataflows) > 1:
        for split in _buffer_splits(list(best.dataflows)):
            tried += 1
            try:
                found = map_workload(
                    workload,
                    accelerator,
                    objective,
                    processing_elements=best.processing_elements,
                    buffer_split=split,
                )
            except InfeasibleMappingError:
                continue
            if getattr(found, value) < getattr(best, value):
                best, owned = found, split
    return AllocationResult(best, proportional, tried, owned)


def _neighbours(
    pes: dict[OperatorType, int],
    step: int,
    accelerator: Accelerator,
    limit: float,
    workload: Workload,
) -> Iterator[dict[OperatorType, int]]:
    """Yield splits in which one chunk gave ``step`` PEs to another, filling the area."""
    used = [t for t in OPERATOR_TYPES if any(layer.operator == t for layer in workload)]
    for giver in used:
        for taker in used:
            if giver == taker or pes[giver] - step < 2:
                continue
            moved = dict(pes)
            moved[giver] -= step
            free = limit - area_of(moved, accelerator) + 1e-9
            moved[taker] += int(free / accelerator.pe_area[taker])
            if moved != pes:
                yield moved


def _buffer_splits(used: list[OperatorType]) -> Iterator[dict[OperatorType, float]]:
    """Yield divisions of the buffer in eighths."""
    if len(used) == 2:
        for a in range(1, 8):
            yield {used[0]: a / 8, used[1]: 1 - a / 8}
    else:
        for a in range(1, 7):
            for b in range(1, 8 - a):
                yield {used[0]: a / 8, used[1]: b / 8, used[2]: (8 - a - b) / 8}
