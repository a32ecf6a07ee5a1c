"""Which kernel walks which head: a cost model in nanoseconds, measured on this machine.

The model has three figures: per kept entry and per row of the `csr` kernel, and per slot of the
`lanes` kernel (16 rows over the union of their keys). `calibrate` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcod import native

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from vitcod.plan import LayerPlan

LANES = 16
KINDS = ("csr", "lanes")


@dataclass(frozen=True)
class CostModel:
    """Nanoseconds of one thread at 64 channels.

    The defaults were measured by ``vitcod bench calibrate`` on the machine of the committed
    results; `calibrate` measures them on another.
    """

    entry: float = 2.6
    row: float = 20.0
    slot: float = 1.75
    block: int = 512

    def csr(self, entries: int, rows: int) -> float:
        """Cost of a head in the csr kernel."""
        return self.entry * entries + self.row * rows

    def lanes(self, slots: int) -> float:
        """Cost of a head in the lanes kernel."""
        return self.slot * slots


def tile_slots(keep: Bool[np.ndarray, "queries keys"], order: Int[np.ndarray, " queries"]) -> int:
    """Count the slots that tiles of 16 ordered rows compute: 16 times the union of their keys."""
    ordered = keep[order]
    pad = -len(ordered) % LANES
    if pad:
        ordered = np.concatenate([ordered, np.zeros((pad, keep.shape[1]), bool)])
    return int(ordered.reshape(-1, LANES, keep.shape[1]).any(1).sum()) * LANES


def choose_kinds(plan: LayerPlan, model: CostModel) -> list[str]:
    """Choose the kernel of each head by the cost model."""
    kinds = []
    for head, keep in enumerate(plan.keep):
        rows = len(keep)
        csr = model.csr(int(keep.sum()), rows)
        kinds.append("lanes" if model.lanes(tile_slots(keep, plan.order[head])) < csr else "csr")
    return kinds


def build(plan: LayerPlan, model: CostModel, kinds: list[str] | None = None) -> Any:
    """Build the kernels' form of a layer's plan."""
    kinds = kinds or choose_kinds(plan, model)
    ptr, idx = plan.csr()
    heads, queries, keys = plan.keep.shape
    # Blocks keep the keys in the first cache; they pay off where each row has many in a block.
    dense_enough = plan.density * model.block >= 64
    block = model.block if keys > 2 * model.block and dense_enough else 0
    codes = np.array([KINDS.index(kind) for kind in kinds], np.int32)
    order = np.ascontiguousarray(plan.order, np.int32)
    return native.make_layout(heads, queries, keys, ptr, idx, order, codes, block)
