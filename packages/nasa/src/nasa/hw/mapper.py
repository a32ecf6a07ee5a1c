"""The auto-mapper: every combination of dataflows, chunks sharing the global buffer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nasa.hw.accelerator import Accelerator
from nasa.hw.allocate import allocate
from nasa.hw.dataflows import DATAFLOWS, LEVELS, Dataflow
from nasa.hw.layer import OPERATOR_TYPES, Layer, OperatorType, Workload
from nasa.hw.tables import (
    InfeasibleMappingError,
    LayerTable,
    Objective,
    Point,
    chunk_pes,
    explain_infeasible,
    layer_table,
)


@dataclass(frozen=True)
class MappedLayer:
    """A layer, its dataflow, its tiling, and when its chunk runs it (milliseconds)."""

    layer: Layer
    dataflow: Dataflow
    point: Point
    start_ms: float
    latency_ms: float

    @property
    def energy_mj(self) -> float:
        """Energy of the layer, millijoules."""
        return self.point.total_pj / 1e9


@dataclass(frozen=True)
class MappingResult:
    """A mapped workload.

    Attributes
    ----------
    energy_mj : float
        Energy of one input, millijoules.
    interval_ms : float
        Time between two results: the slowest chunk, since chunks work on independent inputs.
    latency_ms : float
        Time from an input to its result: one interval for every change of chunk along the network.
    edp : float
        ``energy_mj * interval_ms``, in microjoule seconds (1e-6 J s), the paper's figure.
    dataflows, processing_elements, chunk_latency_ms : dict
        Per operator type.
    layers : tuple of MappedLayer
        In the order of the workload.
    combinations, feasible : int
        Combinations of dataflows that were tried, and that fit: the optimum over all of them.
    lower_bound : float
        No mapping with these PEs has a smaller EDP, whatever the sharing of the buffer.
    """

    workload: str
    accelerator: str
    objective: Objective
    energy_mj: float
    interval_ms: float
    latency_ms: float
    edp: float
    dataflows: dict[OperatorType, Dataflow]
    processing_elements: dict[OperatorType, int]
    chunk_latency_ms: dict[OperatorType, float]
    layers: tuple[MappedLayer, ...]
    combinations: int
    feasible: int
    lower_bound: float

    def __repr__(self) -> str:
        flows = ", ".join(
            f"{t} {self.dataflows[t]} on {self.processing_elements[t]} PEs" for t in self.dataflows
        )
        return (
            f"MappingResult({self.workload!r}: EDP {self.edp:.4g} uJ s, {self.energy_mj:.4g} mJ, "
            f"interval {self.interval_ms:.4g} ms; {flows}; {self.feasible} of "
            f"{self.combinations} combinations fit)"
        )

    def energy_by(self) -> dict[OperatorType, dict[str, float]]:
        """Return millijoules per operator type and level."""
        table = {t: dict.fromkeys(("operation", *LEVELS), 0.0) for t in self.dataflows}
        for mapped in self.layers:
            for level, picojoules in mapped.point.energy_pj.items():
                table[mapped.layer.operator][level] += picojoules / 1e9
        return table

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        skip = ("layers",)
        data = {k: v for k, v in self.__dict__.items() if k not in skip}
        rows = [
            {
                **m.layer.to_json(),
                "dataflow": m.dataflow,
                "tiling": m.point.tiling,
                "energy_pj": m.point.energy_pj,
                "cycles": m.point.cycles,
                "buffer": m.point.buffer,
                "start_ms": m.start_ms,
                "latency_ms": m.latency_ms,
            }
            for m in self.layers
        ]
        return {"schema_version": 1, **data, "layers": rows}

    def save(self, path: str) -> None:
        """Write :meth:`to_json` to a file, whole or not at all."""
        from nasa._files import write_text

        write_text(path, json.dumps(self.to_json(), indent=1))


@dataclass(frozen=True)
class _Schedule:
    """One combination: the rows chosen, in the order of the workload."""

    combination: dict[OperatorType, Dataflow]
    rows: list[int]
    starts: list[int]
    energy_pj: float
    cycles: dict[OperatorType, int]


def map_workload(
    workload: Workload,
    accelerator: Accelerator,
    objective: Objective = "edp",
    *,
    processing_elements: Mapping[OperatorType, int] | None = None,
    dataflows: Mapping[OperatorType, Dataflow] | None = None,
    buffer_split: Mapping[OperatorType, float] | None = None,
) -> MappingResult:
    """Map a workload: the best combination of dataflows, each layer with its best tiling.

    The chunks share the global buffer. They are scheduled as the published simulator does it: the
    chunk with the least accumulated time takes its next layer, with the tiling that is best in the
    buffer which the other chunks' current layers leave free (section 4.2 of the paper). A chunk
    that takes too much can leave another stuck; each combination is therefore replayed a second
    time with enough kept back for every chunk's largest layer, and the better one counts (not under
    ``compat="nasa-f"``).

    Parameters
    ----------
    workload : Workload
    accelerator : Accelerator
    objective : {"edp", "energy", "latency"}
        What a tiling, and a combination, is judged by.
    processing_elements : mapping, optional
        PEs per chunk; by default Eq. 8 divides the area.
    dataflows : mapping, optional
        Fixes the dataflow of some chunks.
    buffer_split : mapping, optional
        Fraction of the global buffer that each chunk owns; the default shares it dynamically.

    Returns
    -------
    MappingResult

    Raises
    ------
    InfeasibleMappingError
        If no combination fits; names a layer, the limiting memory and the least increase.

    Examples
    --------
    >>> from nasa.hw import Accelerator, Layer, Workload, map
    >>> first = Layer.conv("a", "conv", 16, 32, 16)
    >>> work = Workload("w", [first, Layer.conv("b", "adder", 32, 16, 16)])
    >>> result = map(work, Accelerator.from_yaml("nasa_45nm"))
    >>> result.combinations
    16
    """
    present = [t for t in OPERATOR_TYPES if any(layer.operator == t for layer in workload)]
    pes = dict(processing_elements or allocate(workload, accelerator))
    fixed = dict(dataflows or {})
    for operator, flow in fixed.items():
        if operator not in OPERATOR_TYPES or flow not in DATAFLOWS:
            raise ValueError(
                f"dataflows={{{operator!r}: {flow!r}}}: operators are {', '.join(OPERATOR_TYPES)}, "
                f"dataflows {', '.join(DATAFLOWS)}"
            )
    if buffer_split is not None and (
        set(buffer_split) < set(present) or sum(buffer_split[t] for t in present) > 1 + 1e-9
    ):
        raise ValueError(
            f"buffer_split={dict(buffer_split)}: one fraction per chunk, at most 1 in sum"
        )
    options = [[fixed[t]] if t in fixed else list(DATAFLOWS) for t in present]
    largest = max(chunk_pes(pes, t) for t in present)
    bound = 1 << (largest - 1).bit_length()
    tables = {
        flow: [
            layer_table(layer, flow, accelerator, bound, objective)
            if flow in options[present.index(layer.operator)]
            else None
            for layer in workload
        ]
        for flow in DATAFLOWS
    }
    best: _Schedule | None = None
    feasible = 0
    for flows in itertools.product(*options):
        combination = dict(zip(present, flows, strict=True))
        schedules = [_schedule(workload, accelerator, pes, combination, tables, buffer_split)]
        if accelerator.compat is None and buffer_split is None and len(present) > 1:
            reserve = _reserves(workload, pes, combination, tables)
            schedules.append(
                _schedule(workload, accelerator, pes, combination, tables, None, reserve)
            )
        found = [schedule for schedule in schedules if schedule is not None]
        feasible += bool(found)
        for schedule in found:
            if best is None or _value(schedule, objective) < _value(best, objective):
                best = schedule
    if best is None:
        raise _reason(workload, accelerator, pes, options, present, tables)
    return _result(
        workload, accelerator, objective, pes, best, tables, len(list(itertools.product(*options))),
        feasible, _lower_bound(workload, accelerator, pes, present, options, tables),
    )  # fmt: skip


def _value(schedule: _Schedule, objective: Objective) -> float:
    interval = max(schedule.cycles.values())
    if objective == "energy":
        return schedule.energy_pj
    return interval if objective == "latency" else schedule.energy_pj * interval


def _schedule(
    workload: Workload,
    accelerator: Accelerator,
    pes: Mapping[OperatorType, int],
    combination: dict[OperatorType, Dataflow],
    tables: Mapping[Dataflow, list[LayerTable | None]],
    split: Mapping[OperatorType, float] | None,
    reserve: Mapping[OperatorType, int] | None = None,
) -> _Schedule | None:
    """Replay the chunks' queues; None where a layer does not fit.

    With ``reserve`` a chunk leaves the others at least that much, so that none gets stuck.
    """
    queues = {
        t: [i for i, layer in enumerate(workload) if layer.operator == t] for t in combination
    }
    position = dict.fromkeys(combination, 0)
    time = dict.fromkeys(combination, 0)
    held = dict.fromkeys(combination, 0)
    rows, starts = [0] * len(workload), [0] * len(workload)
    energy = 0.0
    total = accelerator.global_buffer_words
    while True:
        ready = [t for t in combination if position[t] < len(queues[t])]
        if not ready:
            break
        chunk = min(ready, key=lambda t: time[t])
        index = queues[chunk][position[chunk]]
        table = tables[combination[chunk]][index]
        assert table is not None
        kept = held if reserve is None else {t: max(held[t], reserve[t]) for t in held}
        others = sum(words for t, words in kept.items() if t != chunk)
        capacity = total - others if split is None else total * split[chunk]
        row = table.best(pes[chunk], capacity)
        if row is None:
            return None
        rows[index], starts[index] = row, time[chunk]
        energy += float(table.energy[row])
        time[chunk] += int(table.cycles[row])
        held[chunk] = int(table.buffer[row])
        position[chunk] += 1
    return _Schedule(combination, rows, starts, energy, time)


def _reserves(
    workload: Workload,
    pes: Mapping[OperatorType, int],
    combination: dict[OperatorType, Dataflow],
    tables: Mapping[Dataflow, list[LayerTable | None]],
) -> dict[OperatorType, int]:
    """Return, per chunk, a capacity in which each of its layers fits."""
    reserve = dict.fromkeys(combination, 0)
    for index, layer in enumerate(workload):
        table = tables[combination[layer.operator]][index]
        assert table is not None
        buffers, _ = table.frontier(pes[layer.operator])
        if buffers:
            reserve[layer.operator] = max(reserve[layer.operator], buffers[0] + 1)
    return reserve


def _lower_bound(
    workload: Workload,
    accelerator: Accelerator,
    pes: Mapping[OperatorType, int],
    present: list[OperatorType],
    options: list[list[Dataflow]],
    tables: Mapping[Dataflow, list[LayerTable | None]],
) -> float:
    """EDP that no mapping beats: least energy of every layer times the least interval."""
    energy = 0.0
    cycles = dict.fromkeys(present, 0.0)
    for index, layer in enumerate(workload):
        reachable = []
        for flow in options[present.index(layer.operator)]:
            table = tables[flow][index]
            if table is not None:
                rows = table.frontier(pes[layer.operator])[1]
                reachable += [(float(table.energy[r]), int(table.cycles[r])) for r in rows]
        energy += min(e for e, _ in reachable)
        cycles[layer.operator] += min(c for _, c in reachable)
    return energy / 1e9 * max(cycles.values()) / accelerator.clock_hz * 1e3


def _reason(
    workload: Workload,
    accelerator: Accelerator,
    pes: Mapping[OperatorType, int],
    options: list[list[Dataflow]],
    present: list[OperatorType],
    tables: Mapping[Dataflow, list[LayerTable | None]],
) -> InfeasibleMappingError:
    """Explain why no combination fits."""
    total = accelerator.global_buffer_words
    for index, layer in enumerate(workload):
        flows = options[present.index(layer.operator)]
        chunk = pes[layer.operator]
        found = [tables[flow][index] for flow in flows]
        if not any(table is not None and table.best(chunk, total) is not None for table in found):
            return explain_infeasible(layer, flows[0], accelerator, chunk, total)
    for operator, flows in zip(present, options, strict=True):
        rows = [i for i, layer in enumerate(workload) if layer.operator == operator]
        failing = []
        for flow in flows:
            fits = [
                table is not None and table.best(pes[operator], total) is not None
                for table in (tables[flow][i] for i in rows)
            ]
            if all(fits):
                break
            failing.append((sum(fits), flow, rows[fits.index(False)]))
        else:
            _, flow, index = max(failing)
            layer = workload.layers[index]
            reason = explain_infeasible(layer, flow, accelerator, pes[operator], total)
            return InfeasibleMappingError(
                f"no single dataflow fits all {operator} layers; closest is {flow}: {reason}"
            )
    names = ", ".join(layer.name for layer in workload)
    return InfeasibleMappingError(
        f"each layer fits alone, but no combination of dataflows shares the {total} words of the "
        f"global buffer among the chunks (layers {names[:80]}): enlarge global_buffer_words or "
        f"give "
        "buffer_split"
    )


def _result(
    workload: Workload,
    accelerator: Accelerator,
    objective: Objective,
    pes: Mapping[OperatorType, int],
    best: _Schedule,
    tables: Mapping[Dataflow, list[LayerTable | None]],
    combinations: int,
    feasible: int,
    lower_bound: float,
) -> MappingResult:
    to_ms = 1e3 / accelerator.clock_hz
    mapped = []
    for index, layer in enumerate(workload):
        flow = best.combination[layer.operator]
        table = tables[flow][index]
        assert table is not None
        point = table.point(best.rows[index])
        start, length = best.starts[index] * to_ms, point.cycles * to_ms
        mapped.append(MappedLayer(layer, flow, point, start, length))
    interval = max(best.cycles.values()) * to_ms
    types = [layer.operator for layer in workload]
    switches = 1 + sum(a != b for a, b in itertools.pairwise(types))
    energy = sum(m.energy_mj for m in mapped)
    return MappingResult(
        workload.name,
        accelerator.name,
        objective,
        energy,
        interval,
        interval * switches,
        energy * interval,
        best.combination,
        {t: pes[t] for t in best.combination},
        {t: c * to_ms for t, c in best.cycles.items()},
        tuple(mapped),
        combinations,
        feasible,
        lower_bound,
    )
