"""Masks that look like those of a pruned vision transformer, for benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitcod.plan import SparsityPlan
from vitcod.polarize import polarize

if TYPE_CHECKING:
    from jaxtyping import Bool


def vit_like_mask(
    heads: int, tokens: int, sparsity: float, seed: int = 0
) -> Bool[np.ndarray, "heads tokens tokens"]:
    """Global columns, a 2-D neighbourhood and noise, with class row and column kept.

    Parameters
    ----------
    heads : number of masks
    tokens : 1 + a square number
    sparsity : share of dropped entries; hit to one entry

    Returns
    -------
    bool, True = kept
    """
    rng = np.random.default_rng(seed)
    patches = tokens - 1
    side = int(patches**0.5)
    y, x = np.divmod(np.arange(patches), side)
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    mask = np.zeros((heads, tokens, tokens), bool)
    mask[:, 0] = mask[:, :, 0] = True
    np.einsum("hii->hi", mask)[...] = True
    wanted = round((1 - sparsity) * tokens * tokens) - int(mask[0].sum())
    for h in range(heads):
        score = np.exp(-distance / (2 * (0.12 * side) ** 2)) + 0.25 * rng.random(distance.shape)
        score += 0.5 * (rng.random(patches) < 0.15 * (1 - sparsity))
        np.fill_diagonal(score, -np.inf)
        best = np.argpartition(-score.ravel(), max(wanted, 1) - 1)[: max(wanted, 0)]
        block = mask[h, 1:, 1:].ravel()
        block[best] = True
        mask[h, 1:, 1:] = block.reshape(patches, patches)
    return mask


def vit_like_plan(
    layers: int, heads: int, tokens: int, sparsity: float, seed: int = 0
) -> SparsityPlan:
    """Return a polarized plan of such masks."""
    masks = [vit_like_mask(heads, tokens, sparsity, seed + i) for i in range(layers)]
    return polarize(SparsityPlan.from_masks(masks))
