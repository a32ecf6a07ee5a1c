"""The accelerator simulator: attention alone and end to end, always side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcod.errors import InputError
from vitcod.polarize import global_tokens
from vitcod.sim.arch import ARCHITECTURES, Architecture, architecture
from vitcod.sim.baselines import (
    dense_cycles,
    roofline_seconds,
    sanger_cycles,
    spatten_cycles,
)
from vitcod.sim.compat import DEFECTS, OfficialCycles, official_cycles
from vitcod.sim.engine import LayerCycles, layer_cycles, linear_cycles

if TYPE_CHECKING:
    from vitcod.plan import SparsityPlan

BASELINES = ("dense", "sanger", "spatten", "cpu", "gpu")
# Peak FLOP/s and bytes/s of the paper's general platforms: Xeon Gold 6230R, RTX 2080 Ti, fp32.
PLATFORMS = {"cpu": (1.74e12, 140.8e9), "gpu": (13.45e12, 616e9)}


@dataclass(frozen=True)
class SimulationReport:
    """What the simulator counted.

    Parameters
    ----------
    layers : per layer, in cycles, bytes and pJ
    linear, ffn : cycles of the projections and of the FFN, all layers
    baselines : attention cycles (at the same clock) of each baseline
    official : the authors' counts, with ``compat="official"``
    lower_bound : attention cycles that no schedule of this machine can beat
    energy : pJ of the attention
    """

    arch: Architecture
    layers: tuple[LayerCycles, ...]
    linear: int
    ffn: int
    baselines: dict[str, int]
    lower_bound: int
    energy: float
    sparsity: float
    official: OfficialCycles | None = None
    defects: tuple[tuple[str, str], ...] = field(default=DEFECTS)

    @property
    def attention(self) -> int:
        """Cycles of the attention of all layers."""
        return sum(x.total for x in self.layers)

    @property
    def end_to_end(self) -> int:
        """Cycles of attention, projections and FFN."""
        return self.attention + self.linear + self.ffn

    def speedup(self, baseline: str) -> tuple[float, float]:
        """How many times faster than a baseline: attention alone, and end to end."""
        if baseline not in self.baselines:
            raise InputError(
                f"baseline={baseline!r} was not simulated: one of {', '.join(self.baselines)}"
            )
        other = self.baselines[baseline]
        rest = self.linear + self.ffn
        return other / self.attention, (other + rest) / self.end_to_end

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "arch": asdict(self.arch),
            "layers": [asdict(x) for x in self.layers],
            "attention_cycles": self.attention,
            "linear_cycles": self.linear,
            "ffn_cycles": self.ffn,
            "end_to_end_cycles": self.end_to_end,
            "lower_bound_cycles": self.lower_bound,
            "attention_energy_pJ": self.energy,
            "sparsity": self.sparsity,
            "baselines": self.baselines,
            "speedups": {name: self.speedup(name) for name in self.baselines},
            "official": None if self.official is None else self.official.to_json(),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.arch.name}: {self.arch.macs} MACs at {self.arch.frequency / 1e6:.0f} MHz,"
            f" sparsity {100 * self.sparsity:.2f} %",
            f"  attention {self.attention:,} cycles (bound {self.lower_bound:,}),"
            f" {self.energy / 1e6:.2f} uJ",
            f"  linear {self.linear:,}, FFN {self.ffn:,}; end to end {self.end_to_end:,} cycles",
        ]
        for name in self.baselines:
            alone, whole = self.speedup(name)
            lines.append(
                f"  vs {name:8} {self.baselines[name]:>12,} cycles: attention {alone:.2f}x,"
                f" end to end {whole:.2f}x"
            )
        if self.official is not None:
            o = self.official
            lines.append(
                f"  official script: loads {o.loads:,}, decode {o.decode:,}, compute"
                f" {o.compute:,}, attention {o.attention:,}; linear {o.linear:,}, FFN {o.ffn:,},"
                f" total {o.total:,}"
            )
        return "\n".join(lines)


def simulate(
    plan: SparsityPlan,
    arch: str | Architecture = "vitcod-28nm",
    baselines: tuple[str, ...] = ("dense", "sanger", "spatten"),
    head_dim: int = 64,
    mlp_ratio: float = 4.0,
    ae_ratio: float = 1.0,
    dense_threshold: float = 0.25,
    compat: str | None = None,
) -> SimulationReport:
    """Count cycles, bytes and energy of a plan on the accelerator.

    Parameters
    ----------
    plan : masks; polarized or not (global tokens are found with `dense_threshold` if not)
    arch : name or constants
    baselines : of "dense", "sanger", "spatten" (same MACs), "cpu", "gpu" (rooflines of the paper's
        Xeon and 2080 Ti: what they cannot beat, not what a framework reaches)
    head_dim, mlp_ratio : of the model
    ae_ratio : H'/H of the auto-encoder; 1 has none
    compat : "official" adds the authors' own counts

    Returns
    -------
    SimulationReport

    Raises
    ------
    InputError
        An unknown architecture, baseline or compat mode.

    Examples
    --------
    >>> import numpy as np, vitcod
    >>> plan = vitcod.SparsityPlan.from_masks([np.eye(17, dtype=bool)[None]])
    >>> report = vitcod.simulate(plan)
    >>> report.attention >= report.lower_bound
    True
    """
    machine = architecture(arch)
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"baseline={name!r} is not allowed: one of {', '.join(BASELINES)}")
    if compat not in (None, "official"):
        raise InputError(f"compat={compat!r} is not allowed: 'official' or None")
    if head_dim < 1 or not 0 < ae_ratio <= 1 or mlp_ratio <= 0:
        raise InputError(
            f"head_dim={head_dim}, ae_ratio={ae_ratio}, mlp_ratio={mlp_ratio} is not allowed:"
            " positive, ae_ratio at most 1"
        )
    layers, linear, ffn, bound = [], 0, 0, 0
    for layer in plan:
        chosen = []
        for h, keep in enumerate(layer.keep):
            flags = np.zeros(layer.keys, bool)
            if layer.permutation is not None and layer.num_global is not None:
                flags[layer.permutation[h][: layer.num_global[h]]] = True
            else:
                flags[global_tokens(keep, dense_threshold)] = True
            chosen.append(flags)
        cycles = layer_cycles(layer, chosen, head_dim, ae_ratio, machine)
        layers.append(cycles)
        lin, mlp, _, _ = linear_cycles(layer.queries, layer.heads * head_dim, mlp_ratio, machine)
        linear, ffn = linear + lin, ffn + mlp
        bound += max(
            ceil(2 * int(layer.nnz.sum()) * head_dim / machine.macs),
            ceil(cycles.traffic / machine.bytes_per_cycle),
        )
    counted: dict[str, int] = {}
    same_macs = {"dense": dense_cycles, "sanger": sanger_cycles, "spatten": spatten_cycles}
    for name in baselines:
        if name in same_macs:
            counted[name] = sum(same_macs[name](p, head_dim, machine) for p in plan)
        else:
            seconds = sum(roofline_seconds(p, head_dim, *PLATFORMS[name]) for p in plan)
            counted[name] = ceil(seconds * machine.frequency)
    official = official_cycles(plan, head_dim) if compat == "official" else None
    return SimulationReport(
        machine,
        tuple(layers),
        linear,
        ffn,
        counted,
        bound,
        sum(x.energy for x in layers),
        plan.sparsity,
        official,
    )


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "LayerCycles",
    "OfficialCycles",
    "SimulationReport",
    "official_cycles",
    "simulate",
]
