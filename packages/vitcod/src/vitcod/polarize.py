"""Polarize: gather the global tokens at the front (the second half of the paper's Algorithm 1).

Token j is global where its column keeps more than theta_d entries. Columns before N_gt form the
denser block, the rest the sparser block. On a CPU the permutation is an accelerator's matter; the
row order is what the kernels use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from vitcod.errors import InputError
from vitcod.plan import LayerPlan, SparsityPlan
from vitcod.pruning import row_order

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

Order = Literal["zorder", "greedy", "raster"]


def global_tokens(
    keep: Bool[np.ndarray, "queries keys"], dense_threshold: float = 0.25
) -> Int[np.ndarray, " globals"]:
    """Return the tokens whose columns keep more than theta_d entries (section 1.3 of Algorithm 1).

    Parameters
    ----------
    keep : mask of one head
    dense_threshold : theta_d as a share of the queries if below 1, else a count of entries

    Examples
    --------
    >>> import numpy as np
    >>> keep = np.eye(4, dtype=bool); keep[:, 2] = True
    >>> global_tokens(keep, 2).tolist()
    [2]
    """
    if not dense_threshold > 0:
        raise InputError(f"dense_threshold={dense_threshold} is not allowed: above 0")
    limit = dense_threshold * len(keep) if dense_threshold < 1 else dense_threshold
    return np.flatnonzero(keep.sum(0) > limit)


def permutation_of(
    keep: Bool[np.ndarray, "queries keys"],
    dense_threshold: float = 0.25,
    official_swap: bool = False,
) -> tuple[Int[np.ndarray, " keys"], int]:
    """Order with the global tokens first, and their number N_gt.

    The default is a stable partition; `official_swap` swaps each global token to the front as
    ``reorder.py`` does, which scatters the tokens it displaces.
    """
    found = global_tokens(keep, dense_threshold)
    tokens = keep.shape[1]
    if official_swap:
        order = np.arange(tokens)
        for place, token in enumerate(found):
            order[[place, token]] = order[[token, place]]
        return order, len(found)
    is_global = np.zeros(tokens, bool)
    is_global[found] = True
    return np.concatenate([found, np.flatnonzero(~is_global)]), len(found)


def greedy_order(
    keep: Bool[np.ndarray, "queries keys"], group: int = 32
) -> Int[np.ndarray, " queries"]:
    """Group rows that share keys: each group grows by the row that adds the fewest new keys."""
    rows = len(keep)
    left = np.ones(rows, bool)
    order = []
    sizes = keep.sum(1)
    while left.any():
        first = int(np.flatnonzero(left)[0])
        union, members = keep[first].copy(), [first]
        left[first] = False
        while len(members) < group and left.any():
            added = np.where(left, sizes - (keep & union).sum(1), keep.shape[1] + 1)
            best = int(added.argmin())
            members.append(best)
            left[best] = False
            union |= keep[best]
        order += members
    return np.array(order)


def polarize(
    plan: SparsityPlan,
    dense_threshold: float = 0.25,
    order: Order = "zorder",
    official_swap: bool = False,
) -> SparsityPlan:
    """Find the global tokens of every head and order its rows; the masks stay as they are.

    Parameters
    ----------
    plan : masks
    dense_threshold : theta_d, as a share of the queries (below 1) or a count; the authors' 50 of
        197 is 0.254
    order : rows in Z-order of the patches, grouped greedily by shared keys, or as they are
    official_swap : the authors' sequential swap instead of a stable partition

    Returns
    -------
    SparsityPlan with ``permutation``, ``num_global`` and ``order`` of every layer

    Raises
    ------
    InputError
        An unknown order, or a threshold that is not positive.

    Examples
    --------
    >>> import numpy as np, vitcod
    >>> keep = np.eye(5, dtype=bool)[None]; keep[0, :, 3] = True
    >>> plan = vitcod.polarize(vitcod.SparsityPlan.from_masks([keep]))
    >>> plan.layers[0].permutation.tolist(), plan.layers[0].num_global.tolist()
    ([[3, 0, 1, 2, 4]], [1])
    """
    if order not in get_args(Order):
        raise InputError(f"order={order!r} is not allowed: one of {', '.join(get_args(Order))}")
    layers = []
    for layer in plan:
        found = [permutation_of(keep, dense_threshold, official_swap) for keep in layer.keep]
        if order == "greedy":
            rows = np.stack([greedy_order(keep) for keep in layer.keep])
        elif order == "zorder":
            one = row_order(layer.queries, plan.grid, plan.special_tokens)
            rows = np.tile(one, (layer.heads, 1))
        else:
            rows = np.tile(np.arange(layer.queries), (layer.heads, 1))
        layers.append(
            LayerPlan(
                layer.keep,
                rows.astype(np.int32),
                np.stack([p for p, _ in found]).astype(np.int32),
                np.array([n for _, n in found], np.int64),
            )
        )
    info = {**plan.info, "dense_threshold": dense_threshold, "order": order}
    return replace(plan, layers=tuple(layers), info=info)


def csc(keep: Bool[np.ndarray, "queries keys"]) -> tuple[np.ndarray, np.ndarray]:
    """Column pointers and row indices of a mask: the sparser engine's format (section IV)."""
    ptr = np.concatenate([[0], np.cumsum(keep.sum(0))]).astype(np.int64)
    return ptr, np.nonzero(keep.T)[1].astype(np.int32)
