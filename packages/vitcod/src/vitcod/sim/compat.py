"""The authors' cycle script, count for count, with what is wrong in it kept.

It reads head 0 of every layer only, uses 64 x 64 MACs for attention and 64 x 8 for the rest, and
lets softmax, index and stores cost nothing. `vitcod.simulate` without ``compat`` mends that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from vitcod.errors import InputError
from vitcod.polarize import global_tokens

if TYPE_CHECKING:
    from vitcod.plan import SparsityPlan

_BYTES_PER_CYCLE = 76.8 * 2**30 / 5e8
DEFECTS = (
    ("attention counts 64 x 64 MACs, not the stated 64 x 8", "attention compute 8x too fast"),
    ("only head 0 of each layer is read", "heads with other densities are not counted"),
    ("softmax costs nothing", "see softmax in the consistent model"),
    ("the CSC index is never loaded", "see traffic in the consistent model"),
    ("outputs are never stored", "see traffic in the consistent model"),
    ("FFN weights load in 0 cycles: N // (64 x 8) is 0", "FFN traffic is not counted"),
    ("a head without global tokens gives the denser engine no line", "division by zero there"),
)


@dataclass(frozen=True)
class OfficialLayer:
    """Counts of one layer as the authors' log prints them."""

    num_global: int
    loads: int
    decode: int
    sddmm_dense: int
    sddmm_sparse: int
    spmm_dense: int
    spmm_sparse: int


@dataclass(frozen=True)
class OfficialCycles:
    """Totals as the authors' logs print them, in cycles."""

    layers: tuple[OfficialLayer, ...]
    loads: int
    decode: int
    compute: int
    attention: int
    linear: int
    ffn: int
    total: int

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def _load(size: float) -> int:
    return ceil(size / _BYTES_PER_CYCLE)


def official_cycles(
    plan: SparsityPlan,
    dim: int = 64,
    ratio: float = 0.667,
    width: int = 64,
    height: int = 8,
    dense_threshold: float = 50,
) -> OfficialCycles:
    """Repeat ``ViTCoD.py`` and ``ViT_FFN.py``.

    Parameters
    ----------
    plan : masks; all layers square and of one size
    dim : channels of a head
    ratio : auto-encoder ratio of the script's command line
    width, height : PE array
    dense_threshold : theta_d as a count

    Raises
    ------
    InputError
        Layers that are not square.
    """
    layers = []
    for i, layer in enumerate(plan):
        heads, n, keys = layer.keep.shape
        if n != keys:
            raise InputError(f"layer {i} is {n}x{keys}: compat='official' needs square masks")
        keep = layer.keep[0]
        chosen = global_tokens(keep, dense_threshold)
        g = len(chosen)
        sparse_mask = np.delete(keep, chosen, 1)
        s = int(sparse_mask.sum())
        share = width / heads
        vector = _load(heads * ratio * dim)
        loads = g * vector + n * vector + 2 + (n - g) * vector + 1 + n * _load(heads * dim)
        decode = 2 * n * ceil(heads * ratio * dim / (width * width / heads))
        dense_lines = int(width * g * n / (s + g * n))
        if dense_lines == 0:
            raise InputError(
                f"layer {i} head 0 has no token with more than {dense_threshold:g} kept entries:"
                " the official script divides by zero there; use the consistent model"
            )
        sparse_lines = width - dense_lines
        depth = ceil(dim / share - 1e-9)
        sddmm_dense = g * ceil(n / dense_lines) * depth
        spmm_dense = ceil(n * dim * g / int(dense_lines * share))
        sddmm_sparse = ceil(s / sparse_lines) * depth if s else 0
        spmm_sparse = ceil(s * dim / int(sparse_lines * share)) if s else 0
        layers.append(
            OfficialLayer(g, loads, decode, sddmm_dense, sddmm_sparse, spmm_dense, spmm_sparse)
        )
    loads = sum(x.loads for x in layers)
    decode = sum(x.decode for x in layers)
    compute = sum(
        max(x.sddmm_dense, x.sddmm_sparse) + max(x.spmm_dense, x.spmm_sparse) for x in layers
    )
    first = plan.layer(0)
    heads, n = first.heads, first.queries
    embed, lanes = heads * dim, int(width * height / heads)
    per_head = embed * dim // lanes
    linear = len(plan) * (3 * n * per_head + n * embed * dim // lanes)
    ffn = len(plan) * (2 * n * embed * 4 * embed // (width * height))
    attention = max(loads, decode + compute)
    return OfficialCycles(
        tuple(layers), loads, decode, compute, attention, linear, ffn, linear + ffn
    )
