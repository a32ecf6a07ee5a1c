"""CUDA forward pass in Triton: a tile of rows in planned order over the keys that it needs.

Block-skipping kernels gain nothing on these masks (most 64 x 64 blocks hold a kept score), but the
keys that a tile of rows needs are few: they are gathered, and a bit per score masks the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

if TYPE_CHECKING:
    from jaxtyping import Float

    from vitcod.plan import LayerPlan

if triton is not None:

    @triton.jit
    def _tile_gather(  # type: ignore[no-untyped-def]
        q, k, v, out, tile_ptr, keys, words, rows,
        heads, tiles, scale,
        qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
        D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ):  # fmt: skip
        tile = tl.program_id(0)
        b = tl.program_id(1) // heads
        h = tl.program_id(1) % heads
        lane = tl.arange(0, BM)
        channel = tl.arange(0, D)
        row = tl.load(rows + (h * tiles + tile) * BM + lane)
        valid = row >= 0
        at = tl.where(valid, row, 0)
        qt = tl.load(q + b * qb + h * qh + at[:, None] * qn + channel[None, :])
        first = tl.load(tile_ptr + h * tiles + tile)
        last = tl.load(tile_ptr + h * tiles + tile + 1)
        most = tl.full([BM], float("-inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, D], tl.float32)
        for start in range(first, last, BN):
            here = start + tl.arange(0, BN)
            key = tl.load(keys + here)
            word = tl.load(words + here)
            kt = tl.load(k + b * kb + h * kh + key[:, None] * kn + channel[None, :])
            vt = tl.load(v + b * vb + h * vh + key[:, None] * vn + channel[None, :])
            s = tl.dot(qt, tl.trans(kt)) * scale
            keep = ((word[None, :] >> lane[:, None].to(tl.int64)) & 1) != 0
            s = tl.where(keep, s, float("-inf"))
            now = tl.maximum(most, tl.max(s, 1))
            base = tl.where(now == float("-inf"), 0.0, now)
            factor = tl.exp2(most - base)
            p = tl.exp2(s - base[:, None])
            total = total * factor + tl.sum(p, 1)
            acc = tl.dot(p.to(vt.dtype), vt, acc * factor[:, None])
            most = now
        acc = acc / total[:, None]
        to = out + b * ob + h * oh + at[:, None] * on + channel[None, :]
        tl.store(to, acc.to(out.dtype.element_ty), mask=valid[:, None])


def gather_layout(
    plan: LayerPlan, rows_per_tile: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tiles of a layer: pointers, keys, one mask word per key, and rows.

    Parameters
    ----------
    plan : masks and row orders
    rows_per_tile : at most 64, the bits of a word
    step : keys are padded to a multiple of this, with words of zero

    Returns
    -------
    tile_ptr (heads * tiles + 1), keys, words (both per gathered key), rows (heads, tiles * rows);
    rows past the end are -1
    """
    heads, queries, _ = plan.keep.shape
    tiles = -(-queries // rows_per_tile)
    ptr, keys, words = [0], [], []
    rows = np.full((heads, tiles * rows_per_tile), -1, np.int32)
    for h in range(heads):
        rows[h, :queries] = plan.order[h]
        for t in range(tiles):
            members = plan.order[h][t * rows_per_tile : (t + 1) * rows_per_tile]
            part = plan.keep[h][members]
            found = np.flatnonzero(part.any(0))
            bits = np.uint64(1) << np.arange(len(members), dtype=np.uint64)
            word = (part[:, found].astype(np.uint64) * bits[:, None]).sum(0, dtype=np.uint64)
            pad = -len(found) % step
            keys.append(np.concatenate([found, np.zeros(pad, np.int64)]))
            words.append(np.concatenate([word, np.zeros(pad, np.uint64)]))
            ptr.append(ptr[-1] + len(found) + pad)
    return (
        np.array(ptr, np.int32),
        np.concatenate(keys).astype(np.int32),
        np.concatenate(words).view(np.int64),
        rows,
    )


def cuda_available(q: Tensor, v: Tensor) -> bool:
    """Whether the Triton kernel takes these tensors: half precision, 16 to 128 channels, 2^n."""
    return (
        triton is not None
        and q.device.type == "cuda"
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] == v.shape[-1]
        and q.shape[-1] in (16, 32, 64, 128)
    )


def cuda_attention(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    plan: LayerPlan,
    scale: float,
    rows_per_tile: int = 64,
    step: int = 32,
    warps: int = 4,
) -> Float[Tensor, "batch heads queries dim"]:
    """Run the Triton kernel; capturable in a CUDA graph after the first call."""
    key = ("cuda", q.device, rows_per_tile, step)
    if key not in plan._cache:
        arrays = gather_layout(plan, rows_per_tile, step)
        plan._cache[key] = tuple(torch.from_numpy(a).to(q.device) for a in arrays)
    ptr, keys, words, rows = plan._cache[key]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, queries, dim = q.shape
    out = torch.empty((batch, queries, heads, dim), dtype=q.dtype, device=q.device).transpose(1, 2)
    if batch == 0:
        return out
    tiles = rows.shape[1] // rows_per_tile
    launch: Any = _tile_gather[(tiles, batch * heads)]
    launch(
        q, k, v, out, ptr, keys, words, rows,
        heads, tiles, scale * 1.4426950408889634,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        D=dim, BM=rows_per_tile, BN=step, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return out
