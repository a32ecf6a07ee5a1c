"""What each candidate costs on the accelerator: a differentiable table, and the mapper's truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from nasa.arch import Architecture, cell_layers
from nasa.hw.accelerator import Accelerator
from nasa.hw.dataflows import DATAFLOWS
from nasa.hw.layer import OPERATOR_TYPES, Layer, OperatorType
from nasa.hw.mapper import MappingResult, map_workload
from nasa.hw.tables import InfeasibleMappingError, explain_infeasible, layer_table
from nasa.space import SearchSpace

Metric = Literal["edp", "energy", "latency", "flops"]
FLOPS_DIVISOR: dict[OperatorType, int] = {"conv": 1, "shift": 8, "adder": 5}
"""The paper's proxy: a shift counts as 1/8 multiplication, an addition as 1/5."""


@dataclass(frozen=True)
class CostTable:
    """Cost of every candidate of every cell, and of the parts that are always there.

    Attributes
    ----------
    metric : {"edp", "energy", "latency", "flops"}
    energy : list of (candidates,) tensors
        Millijoules (``flops``: millions of weighted operations).
    latency : list of (candidates, 3) tensors
        Milliseconds on the conv, shift and adder chunk.
    fixed_energy : float
    fixed_latency : (3,) tensor
    processing_elements : dict
    """

    metric: Metric
    energy: list[Float[Tensor, " candidates"]]
    latency: list[Float[Tensor, "candidates 3"]]
    fixed_energy: float
    fixed_latency: Float[Tensor, " 3"]
    processing_elements: dict[OperatorType, int]

    @classmethod
    def build(
        cls,
        space: SearchSpace,
        accelerator: Accelerator,
        metric: Metric = "edp",
        processing_elements: Mapping[OperatorType, int] | None = None,
    ) -> CostTable:
        """Compute the table: each layer with its best dataflow and tiling on its chunk.

        The PEs default to equal areas for the space's operator types. A chunk may use its share of
        the global buffer (one part per type).
        """
        if metric not in get_args(Metric):
            raise ValueError(f"metric={metric!r}: allowed are {', '.join(get_args(Metric))}")
        if processing_elements is None:
            share = accelerator.area / len(space.operators)
            pes = {
                t: int(share / accelerator.pe_area[t]) if t in space.operators else 0
                for t in OPERATOR_TYPES
            }
        else:
            pes = dict(processing_elements)
        capacity = accelerator.global_buffer_words / len(space.operators)

        def cost(layers: Sequence[Layer]) -> tuple[float, list[float]]:
            energy, latency = 0.0, [0.0, 0.0, 0.0]
            for layer in layers:
                if metric == "flops":
                    energy += layer.macs / FLOPS_DIVISOR[layer.operator] / 1e6
                    continue
                mj, ms = _best(layer, accelerator, pes, capacity)
                energy += mj
                latency[OPERATOR_TYPES.index(layer.operator)] += ms
            return energy, latency

        rows = [[cost(cell_layers(cell, c)) for c in cell.candidates] for cell in space.cells]
        whole = Architecture(space, tuple(len(c.candidates) - 1 for c in space.cells)).workload()
        inside = {layer.name for layer in whole if layer.name.startswith("cell")}
        fixed = cost([layer for layer in whole if layer.name not in inside])
        return cls(
            metric,
            [torch.tensor([e for e, _ in row]) for row in rows],
            [torch.tensor([la for _, la in row]) for row in rows],
            fixed[0],
            torch.tensor(fixed[1]),
            pes,
        )

    def expected(self, probabilities: Sequence[Float[Tensor, " candidates"]]) -> Float[Tensor, ""]:
        """Return the expected cost under independent choices, differentiable.

        ``edp`` is the expected energy times the slowest chunk's expected latency.
        """
        energy = torch.as_tensor(self.fixed_energy) + sum(
            (p * e).sum() for p, e in zip(probabilities, self.energy, strict=True)
        )
        if self.metric in ("energy", "flops"):
            return energy
        latency = self.fixed_latency + sum(
            (p[:, None] * la).sum(0) for p, la in zip(probabilities, self.latency, strict=True)
        )
        interval = latency.max()
        return interval if self.metric == "latency" else energy * interval

    def of(self, architecture: Architecture) -> float:
        """Return the table's cost of an architecture."""
        return float(self.expected(one_hot(architecture)))


def _best(
    layer: Layer, accelerator: Accelerator, pes: Mapping[OperatorType, int], capacity: float
) -> tuple[float, float]:
    chunk = pes[layer.operator]
    best: tuple[float, float] | None = None
    for flow in DATAFLOWS:
        table = layer_table(layer, flow, accelerator, 1 << (max(chunk, 2) - 1).bit_length(), "edp")
        row = table.best(chunk, capacity)
        if row is None:
            continue
        found = float(table.energy[row]) / 1e9, int(table.cycles[row]) * 1e3 / accelerator.clock_hz
        if best is None or found[0] * found[1] < best[0] * best[1]:
            best = found
    if best is None:
        raise explain_infeasible(layer, "rs", accelerator, chunk, capacity)
    return best


def one_hot(architecture: Architecture) -> list[Tensor]:
    """Return certain choices as probabilities."""
    return [
        torch.nn.functional.one_hot(torch.tensor(choice), len(cell.candidates)).float()
        for cell, choice in zip(architecture.space.cells, architecture.choices, strict=True)
    ]


def true_cost(
    architecture: Architecture, accelerator: Accelerator
) -> tuple[float, MappingResult | None]:
    """Return the mapped EDP (1e-6 J s), infinite where the accelerator cannot run the network."""
    try:
        result = map_workload(architecture.workload(), accelerator)
    except (InfeasibleMappingError, ValueError):
        return float("inf"), None
    return result.edp, result
