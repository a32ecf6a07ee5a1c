"""Reading and writing the authors' mask files: bool ``.npy``, True = pruned."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from vitcod.errors import InputError
from vitcod.files import write_atomically
from vitcod.plan import SparsityPlan


def import_mask(path: Path | str, special_tokens: int = 1) -> SparsityPlan:
    """Read a published mask (layers, heads, queries, keys), True = pruned.

    Parameters
    ----------
    path : ``info_0.95.npy`` and the like; no pickled objects
    special_tokens : tokens before the patches

    Raises
    ------
    InputError
        Not a boolean array of four dimensions, or a row without a key.
    """
    try:
        pruned = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"mask={str(path)!r} cannot be read ({error}): a boolean .npy, True = pruned"
        ) from error
    if not isinstance(pruned, np.ndarray) or pruned.dtype != bool or pruned.ndim != 4:
        raise InputError(
            f"mask={str(path)!r} is not a boolean array (layers, heads, queries, keys)"
        )
    return SparsityPlan.from_masks(~pruned, special_tokens, {"source": Path(path).name})


def export_mask(plan: SparsityPlan, path: Path | str) -> Path:
    """Write a plan in the authors' form; all layers must have one shape."""
    shapes = {p.keep.shape for p in plan}
    if len(shapes) != 1:
        raise InputError(
            f"plan has layers of different shapes {sorted(shapes)}: no .npy holds them"
        )
    buffer = io.BytesIO()
    np.save(buffer, ~np.stack([p.keep for p in plan]), allow_pickle=False)
    return write_atomically(path, buffer.getvalue())
