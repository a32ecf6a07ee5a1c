"""Cycles, bytes and energy of one layer's attention on the two-pronged accelerator.

Every head brings its own mask. Unlike the authors' script this counts 512 MACs everywhere, the
softmax, the index, the output's store, and the encoder.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from vitcod.sim.arch import Architecture

if TYPE_CHECKING:
    from jaxtyping import Bool

    from vitcod.plan import LayerPlan


@dataclass(frozen=True)
class LayerCycles:
    """Counts of one layer.

    Parameters
    ----------
    sddmm, spmm : cycles of the slowest head
    softmax : cycles of the softmax that its overlap with the engines does not hide
    coder : cycles of decoding; overlapped with the loads
    memory : cycles of all DRAM traffic
    total : cycles of the layer
    macs : multiply-accumulates of the scores and outputs that are computed
    traffic : DRAM bytes
    energy : pJ
    utilisation : share of the MAC slots of SDDMM and SpMM that did work
    """

    sddmm: int
    spmm: int
    softmax: int
    coder: int
    memory: int
    total: int
    macs: int
    traffic: int
    energy: float
    utilisation: float


def compressed_heads(ratio: float, heads: int) -> int:
    """H' of a ratio: rounded up, where 0.667 of 3 heads is 2."""
    return max(1, ceil(ratio * heads - 0.01))


def longest_line(costs: np.ndarray, lines: int) -> int:
    """Makespan of longest-processing-time assignment of columns to lines.

    Examples
    --------
    >>> import numpy as np
    >>> longest_line(np.array([5, 4, 3, 3, 3]), 2)
    10
    """
    heap = [0] * lines
    for cost in sorted((int(c) for c in costs if c), reverse=True):
        heapq.heapreplace(heap, heap[0] + cost)
    return max(heap)


def head_lines(work: list[int], lines: int) -> list[int]:
    """Lines of each head, in proportion to its work, which a fixed mask makes known beforehand.

    Every head has at least one; with more heads than lines each has one and they run in turns.

    Examples
    --------
    >>> head_lines([30, 10], 8)
    [6, 2]
    """
    if len(work) > lines:
        return [1] * len(work)
    share = [max(1, int(lines * w / max(sum(work), 1))) for w in work]
    while sum(share) > lines:
        share[share.index(max(share))] -= 1
    while sum(share) < lines:  # to the head that would finish last
        late = max(range(len(work)), key=lambda h: work[h] / share[h])
        share[late] += 1
    return share


def head_cycles(
    keep: Bool[np.ndarray, "queries keys"],
    global_mask: Bool[np.ndarray, " keys"],
    lines: int,
    dim: int,
    arch: Architecture,
) -> tuple[int, int, int]:
    """SDDMM and SpMM cycles of one head, and the entries that its engines compute.

    The lines go to the denser and the sparser engine in proportion to their work, at least one
    each where there is work. A (key, query) pair takes ceil(dim / 8) cycles on a line; the sparser
    engine takes one more per column for the switch.
    """
    queries = keep.shape[0]
    pair = ceil(dim / arch.macs_per_line)
    dense = int(global_mask.sum()) * queries
    sparse_keep = keep[:, ~global_mask]
    columns = sparse_keep.sum(0)
    sparse = int(columns.sum())
    if not dense:
        split = 0
    elif not sparse:
        split = lines
    else:
        split = min(max(round(lines * dense / (dense + sparse)), 1), lines - 1)
    if lines == 1 and dense and sparse:  # one line does both in turn
        work = (dense + sparse) * pair
        return work + int((columns > 0).sum()), work, dense + sparse
    sddmm = spmm = 0
    if dense:
        sddmm = spmm = ceil(dense / split) * pair
    if sparse:
        rest = lines - split
        column_costs = np.where(columns > 0, columns * pair + 1, 0)
        sddmm = max(sddmm, _spread(column_costs, rest))
        spmm = max(spmm, _spread(sparse_keep.sum(1) * pair, rest))
    return sddmm, spmm, dense + sparse


def _spread(costs: np.ndarray, lines: int) -> int:
    """Makespan where a column that outlasts a line's fair share is split, one cycle per piece."""
    fair = max(ceil(int(costs.sum()) / lines), 1)
    pieces: list[int] = []
    for cost in costs[costs > 0]:
        whole, rest = divmod(int(cost), fair)
        pieces += [fair + 1] * whole if whole and rest else [fair] * whole
        if rest:
            pieces.append(rest)
    return longest_line(np.array(pieces, np.int64), lines)


def layer_cycles(
    plan: LayerPlan,
    globals_of: list[np.ndarray],
    dim: int,
    ae_ratio: float,
    arch: Architecture,
) -> LayerCycles:
    """Count one layer.

    Parameters
    ----------
    plan : masks
    globals_of : per head a boolean over keys, True = denser block
    dim : channels of a head
    ae_ratio : H'/H of the auto-encoder; 1 has none
    """
    heads, queries, keys = plan.keep.shape
    small = compressed_heads(ae_ratio, heads)
    work = [int(k[:, g].size + k[:, ~g].sum()) for k, g in zip(plan.keep, globals_of)]
    results = [
        head_cycles(keep, chosen, lines, dim, arch)
        for keep, chosen, lines in zip(plan.keep, globals_of, head_lines(work, arch.lines))
    ]
    turns = ceil(heads / arch.lines)
    sddmm = max(r[0] for r in results) * turns
    spmm = max(r[1] for r in results) * turns
    entries = sum(r[2] for r in results)
    engines = 2 * arch.softmax_lanes
    exponentials = ceil(entries / engines)
    # Probabilities or outputs are normalised, whichever are fewer.
    normalising = ceil(min(entries, queries * dim * heads) / engines)
    # Exponentials follow the scores, normalising the outputs; only what outlasts them is seen.
    softmax = max(0, exponentials - sddmm) + max(0, normalising - spmm)
    # Decoding overlaps the loads; encoding belongs to the projections and costs energy here.
    coder_macs = (queries + keys) * dim * heads * small if small < heads else 0
    coder = ceil(coder_macs / (arch.coder_lines * arch.macs_per_line))
    index = 2 * int(plan.nnz.sum()) + 2 * heads * (keys + 1)
    traffic = (queries + keys) * small * dim + (keys + queries) * heads * dim + index
    memory = ceil(traffic / arch.bytes_per_cycle)
    compute = sddmm + softmax + spmm
    # Double buffered: heads stream in while others compute, if two of them fit.
    fits = 2 * (queries + 2 * keys) * dim <= arch.sram
    loads = max(memory, coder)
    total = max(compute, loads) if fits else compute + loads
    macs = 2 * entries * dim
    on_chip = macs * 2 // arch.macs_per_line + 4 * entries
    energy = (
        (macs + 2 * coder_macs) * arch.mac_energy
        + on_chip * arch.sram_energy
        + traffic * arch.dram_energy
    )
    return LayerCycles(
        sddmm,
        spmm,
        softmax,
        coder,
        memory,
        total,
        macs,
        traffic,
        energy,
        macs / (max(sddmm + spmm, 1) * arch.macs),
    )


def linear_cycles(
    tokens: int, embed: int, mlp_ratio: float, arch: Architecture
) -> tuple[int, int, int, int]:
    """Cycles of the projections and of the FFN of one layer, with weight traffic; MACs; bytes."""

    def one(rows: int, inner: int, columns: int) -> tuple[int, int, int]:
        macs = rows * inner * columns
        traffic = inner * columns + rows * (inner + columns)
        return max(ceil(macs / arch.macs), ceil(traffic / arch.bytes_per_cycle)), macs, traffic

    hidden = int(embed * mlp_ratio)
    qkv, out = one(tokens, embed, 3 * embed), one(tokens, embed, embed)
    up, down = one(tokens, embed, hidden), one(tokens, hidden, embed)
    macs = qkv[1] + out[1] + up[1] + down[1]
    traffic = qkv[2] + out[2] + up[2] + down[2]
    return qkv[0] + out[0], up[0] + down[0], macs, traffic
