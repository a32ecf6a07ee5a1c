"""What ViTCoD is compared with: dense, Sanger, SpAtten-like, and a roofline of a processor.

Sanger and SpAtten are re-simulated with the same 512 MACs, 500 MHz and 76.8 GB/s, as the paper did.
The papers' own machines are larger; these are cost models, not their simulators.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from vitcod.sim.arch import Architecture

if TYPE_CHECKING:
    from vitcod.plan import LayerPlan


def dense_cycles(plan: LayerPlan, dim: int, arch: Architecture) -> int:
    """Dense attention on the same MACs, softmax overlapped, outputs stored."""
    heads, queries, keys = plan.shape
    compute = 2 * ceil(heads * queries * keys * dim / arch.macs)
    softmax = ceil(heads * queries * keys / (2 * arch.softmax_lanes))
    traffic = (2 * queries + 2 * keys) * heads * dim
    return max(max(compute, softmax), ceil(traffic / arch.bytes_per_cycle))


def sanger_load_balance(keep: np.ndarray, segment: int = 64, width: int = 16) -> float:
    """Share of useful slots after packing each 64-wide row segment into rows of 16 PEs.

    Examples
    --------
    >>> import numpy as np
    >>> sanger_load_balance(np.ones((1, 1, 64), bool))
    1.0
    """
    keys = keep.shape[-1]
    used = slots = 0
    for start in range(0, keys, segment):
        counts = keep[..., start : start + segment].sum(-1)
        used += int(counts.sum())
        slots += int((-(-counts // width)).sum()) * width
    return used / max(slots, 1)


def sanger_cycles(plan: LayerPlan, dim: int, arch: Architecture) -> int:
    """Sanger: a 4-bit prediction of all scores, then the kept ones at its load balance."""
    heads, queries, keys = plan.shape
    # Four 4-bit products take the place of one of 8 bits.
    predict = ceil(heads * queries * keys * dim / (4 * arch.macs))
    balance = sanger_load_balance(plan.keep)
    work = ceil(2 * int(plan.nnz.sum()) * dim / (arch.macs * max(balance, 1e-9)))
    # Q and K are read twice: quantised for the prediction (half a byte) and in full.
    traffic = int((2.5 * queries + 2.5 * keys) * heads * dim)
    return int(max(predict + work, ceil(traffic / arch.bytes_per_cycle)))


def spatten_cycles(plan: LayerPlan, dim: int, arch: Architecture) -> int:
    """SpAtten-like: dense attention on sqrt(density) N tokens, with accumulation and top-k.

    How the paper set SpAtten's pruning ratio is not published; equal numbers of scores are our
    choice.
    """
    heads, queries, keys = plan.shape
    root = float(np.sqrt(plan.density))
    q, k = ceil(root * queries), ceil(root * keys)
    compute = 2 * ceil(heads * q * k * dim / arch.macs)
    accumulate = ceil(heads * q * k / (2 * arch.softmax_lanes))
    top_k = ceil(keys * ceil(np.log2(max(keys, 2))) / 16)
    traffic = int((q + k) * heads * dim * 2)
    return int(max(compute, accumulate, ceil(traffic / arch.bytes_per_cycle)) + top_k)


def roofline_seconds(
    plan: LayerPlan, dim: int, flops: float, bandwidth: float, bytes_per_value: int = 4
) -> float:
    """Least seconds of dense attention on a processor of given peak and bandwidth."""
    heads, queries, keys = plan.shape
    work = 4 * heads * queries * keys * dim
    traffic = (2 * queries + 2 * keys) * heads * dim * bytes_per_value
    return max(work / flops, traffic / bandwidth)
