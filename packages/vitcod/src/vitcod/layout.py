"""Which kernel walks which head: a cost model in nanoseconds, measured on this machine.

The model has three figures: per kept entry and per row of the `csr` kernel, and per slot of the
`lanes` kernel (32 rows over the union of their keys). `calibrate` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcod import native

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from vitcod.plan import LayerPlan

LANES = 32
KINDS = ("csr", "lanes")


@dataclass(frozen=True)
class CostModel:
    """Nanoseconds of one thread at 64 channels.

    The defaults lie between what an Intel Xeon with AVX-512 needs at 197 and at 1,025 tokens;
    `calibrate` (``vitcod bench calibrate``) measures another machine at 512.
    """

    entry: float = 4.2
    row: float = 36.0
    slot: float = 2.02
    block: int = 512

    def csr(self, entries: int, rows: int) -> float:
        """Cost of a head in the csr kernel."""
        return self.entry * entries + self.row * rows

    def lanes(self, slots: int) -> float:
        """Cost of a head in the lanes kernel."""
        return self.slot * slots


def tile_slots(keep: Bool[np.ndarray, "queries keys"], order: Int[np.ndarray, " queries"]) -> int:
    """Count the slots that tiles of 32 ordered rows compute: 32 times the union of their keys."""
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


def calibrate(dim: int = 64, seed: int = 0) -> CostModel:
    """Measure the cost model on this machine, in one thread; about a second.

    Returns
    -------
    CostModel; pass it to ``LayerPlan.native_layout(model)``

    Raises
    ------
    InputError
        There is no compiled part to measure.
    """
    import time

    import torch

    from vitcod.errors import InputError
    from vitcod.plan import LayerPlan

    if native.instruction_set() == "torch":
        raise InputError("calibrate needs the compiled part: install with a C++17 compiler")
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    size = 512  # keys and values lie in the second cache, as those of most models do
    q, k, v = (torch.randn(1, 2, size, dim, generator=generator) for _ in range(3))

    def nanoseconds(keep: np.ndarray, kind: str) -> float:
        plan = LayerPlan.from_mask(keep)
        layout = plan.native_layout(CostModel(), [kind] * plan.heads)
        best = float("inf")
        for _ in range(20):
            start = time.thread_time()
            native.forward(layout, q, k, v, None, 1.0, False)
            best = min(best, time.thread_time() - start)
        return 1e9 * best

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        masks = []
        for density in (0.1, 0.4):
            keep = rng.random((2, size, size)) < density
            keep[:, :, 0] = True
            masks.append(keep)
        few, many = (nanoseconds(m, "csr") for m in masks)
        entries = [int(m.sum()) for m in masks]
        entry = (many - few) / (entries[1] - entries[0])
        row = max((few - entry * entries[0]) / (2 * size), 0.0)
        full = np.ones((2, size, size), bool)
        slot = nanoseconds(full, "lanes") / full.size
    finally:
        torch.set_num_threads(threads)
    return CostModel(round(entry, 3), round(row, 1), round(slot, 3))
