"""The best tiling of a layer for any number of PEs and any free buffer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from nasa.hw.accelerator import Accelerator
from nasa.hw.dataflows import FACTORS, LEVELS, Dataflow, Memories, tilings
from nasa.hw.layer import Layer, OperatorType

Objective = Literal["edp", "energy", "latency"]


class InfeasibleMappingError(ValueError):
    """No tiling fits; the message names the layer, the memory and the smallest increase."""


@dataclass(frozen=True)
class Point:
    """One tiling of a whole layer: all its groups, one after the other.

    Attributes
    ----------
    tiling : dict
        Loop bounds M0 ... F3.
    energy_pj : dict
        Picojoules at ``operation`` and at each memory level.
    cycles : int
    buffer : int
        Words held in the global buffer.
    processing_elements : int
        PEs in use.
    """

    tiling: dict[str, int]
    energy_pj: dict[str, float]
    cycles: int
    buffer: int
    processing_elements: int

    @property
    def total_pj(self) -> float:
        """Energy of the layer, picojoules."""
        return sum(self.energy_pj.values())


class LayerTable:
    """The undominated tilings of a layer under one dataflow, for up to a number of PEs."""

    def __init__(
        self,
        layer: Layer,
        dataflow: Dataflow,
        accelerator: Accelerator,
        pes: int,
        objective: Objective,
    ) -> None:
        found = tilings(layer, dataflow, _memories(accelerator, pes))
        repeats = layer.groups
        scale = accelerator.bits[layer.operator] / 16
        operation = layer.macs * accelerator.operation_energy_pj(layer.operator)
        levels = {
            k: found.accesses[k] * (scale * accelerator.access_pj[k] * repeats) for k in LEVELS
        }
        energy = operation + np.sum(list(levels.values()), axis=0)
        value = {"edp": energy * found.cycles, "energy": energy, "latency": found.cycles}[objective]
        # ties: less energy, then less latency, then less buffer
        order = np.lexsort((found.buffer, found.cycles, energy, value))
        order = order[_undominated(found.buffer[order], found.processing_elements[order])]
        self.repeats, self.operation = repeats, operation
        self.cycles = found.cycles[order] * repeats
        self.energy = np.asarray(energy)[order]
        self.buffer = found.buffer[order]
        self.used = found.processing_elements[order]
        self._levels = {k: v[order] for k, v in levels.items()}
        self._factors = {k: v[order] for k, v in found.factors.items()}
        self._frontiers: dict[int, tuple[list[int], list[int]]] = {}

    def frontier(self, pes: int) -> tuple[list[int], list[int]]:
        """Return buffer words, ascending, and for each the best tiling that needs no more."""
        if pes not in self._frontiers:
            fits = np.flatnonzero(self.used < pes)
            lowest = np.minimum.accumulate(self.buffer[fits]) if len(fits) else self.buffer[fits]
            first = np.ones(len(fits), dtype=bool)
            first[1:] = lowest[1:] < lowest[:-1]
            rows = fits[first][::-1]
            self._frontiers[pes] = (self.buffer[rows].tolist(), rows.tolist())
        return self._frontiers[pes]

    def best(self, pes: int, capacity: float) -> int | None:
        """Return the row of the best tiling with fewer than ``pes`` PEs and ``capacity`` words."""
        buffers, rows = self.frontier(pes)
        at = bisect_left(buffers, capacity)
        return rows[at - 1] if at else None

    def point(self, row: int) -> Point:
        """Return a row in full."""
        levels = {k: float(v[row]) for k, v in self._levels.items()}
        return Point(
            {k: int(self._factors[k][row]) for k in FACTORS},
            {"operation": float(self.operation), **levels},
            int(self.cycles[row]),
            int(self.buffer[row]),
            int(self.used[row]),
        )


def _undominated(buffer: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the rows (sorted best first) that no better row beats in both buffer and PEs."""
    keep = []
    for pes in np.unique(used):
        rows = np.flatnonzero(used == pes)
        lowest = np.minimum.accumulate(buffer[rows])
        first = np.ones(len(rows), dtype=bool)
        first[1:] = lowest[1:] < lowest[:-1]
        keep.append(rows[first])
    return np.sort(np.concatenate(keep)) if keep else np.zeros(0, dtype=np.int64)


def _memories(accelerator: Accelerator, pes: int) -> Memories:
    return Memories(
        pes,
        accelerator.global_buffer_words,
        accelerator.input_register_words,
        accelerator.weight_register_words,
        accelerator.largest_filter_tile,
    )


@lru_cache(maxsize=4096)
def _cached(
    layer: Layer, dataflow: Dataflow, key: str, pes: int, objective: Objective
) -> LayerTable:
    return LayerTable(layer, dataflow, _ACCELERATORS[key], pes, objective)


_ACCELERATORS: dict[str, Accelerator] = {}


def layer_table(
    layer: Layer, dataflow: Dataflow, accelerator: Accelerator, pes: int, objective: Objective
) -> LayerTable:
    """Return a layer's table, computed once per shape (names play no part)."""
    if objective not in get_args(Objective):
        raise ValueError(f"objective={objective!r}: allowed are {', '.join(get_args(Objective))}")
    key = repr(replace(accelerator, name="", area=1.0))
    _ACCELERATORS.setdefault(key, accelerator)
    return _cached(replace(layer, name=""), dataflow, key, pes, objective)


def explain_infeasible(
    layer: Layer, dataflow: Dataflow, accelerator: Accelerator, pes: int, capacity: float
) -> InfeasibleMappingError:
    """Find which memory keeps a layer from being mapped, and the least size at which it fits."""
    base = _memories(accelerator, pes)
    now = {
        "processing_elements": pes,
        "global_buffer": int(capacity),
        "input_register": base.input_register,
        "weight_register": base.weight_register,
    }
    names = {
        "processing_elements": "PEs of the chunk",
        "global_buffer": "words of the global buffer",
        "input_register": "words of the input register file",
        "weight_register": "words of the weight register file",
    }
    base = replace(base, global_buffer=int(capacity))
    best: tuple[float, str, int] | None = None
    for name, size in now.items():
        high = size
        while high < size * 4096 and not len(
            tilings(layer, dataflow, replace(base, **{name: high}))
        ):
            high *= 2
        if high >= size * 4096:
            continue
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            fits = len(tilings(layer, dataflow, replace(base, **{name: middle})))
            low, high = (low, middle) if fits else (middle, high)
        if best is None or high / size < best[0]:
            best = (high / size, name, high)
    where = f"layer {layer.name!r} ({layer.operator}) has no {dataflow} tiling"
    if best is None:
        return InfeasibleMappingError(f"{where}; several memories limit it at once")
    _, name, least = best
    return InfeasibleMappingError(
        f"{where}: {now[name]} {names[name]} are too few; the smallest that fits is {least}"
    )


def chunk_pes(pes: Mapping[OperatorType, int], operator: OperatorType) -> int:
    """Return the PEs of a chunk, or raise where it has none."""
    if pes.get(operator, 0) < 1:
        raise InfeasibleMappingError(
            f"the {operator} chunk has no PE, but the workload has {operator} layers"
        )
    return pes[operator]
