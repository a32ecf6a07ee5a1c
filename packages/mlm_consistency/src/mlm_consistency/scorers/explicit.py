"""Scorers without a network: explicit joints, and user functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from ..errors import InputError, require
from ..tables import as_log_table


class TableScorer:
    """The exact masked predictor of an explicit joint distribution.

    Inputs are k token ids 0 ... V-1, or `mask_id` (= V); the answer at a position is its exact
    conditional given the visible positions, all masked ones summed out. It is consistent at every
    level, so every metric of this package must be zero on it.

    Parameters
    ----------
    log_joint : float [V, ..., V]
        k axes of equal size.
    """

    def __init__(self, log_joint: Float[np.ndarray, ...]) -> None:
        array = as_log_table("log_joint", log_joint)
        require(array.ndim >= 2 and len(set(array.shape)) == 1, "log_joint", array.shape,
                "k >= 2 axes of one size")  # fmt: skip
        self.log_joint = array - logsumexp(array)
        self.mask_id = array.shape[0]
        self.vocab_size = array.shape[0] + 1
        self.max_length = array.ndim
        self.fingerprint = "table-" + hashlib.sha256(array.tobytes()).hexdigest()[:24]

    def bytes_per_sequence(self, length: int) -> int:
        """Size of one slice of the joint."""
        return int(self.log_joint.nbytes)

    def logits(
        self,
        ids: Int[np.ndarray, "batch length"],
        rows: Int[np.ndarray, " n"],
        positions: Int[np.ndarray, " n"],
    ) -> Any:
        """Exact log-conditionals in float64; the mask itself has probability zero."""
        import torch

        out = np.full((len(rows), self.vocab_size), -np.inf)
        for n, (row, position) in enumerate(zip(rows, positions)):
            visible = ids[row]
            require(len(visible) == self.max_length, "ids", len(visible), f"{self.max_length} ids")
            index = tuple(
                slice(None) if token == self.mask_id or axis == position else int(token)
                for axis, token in enumerate(visible)
            )
            part = self.log_joint[index]
            kept = [a for a, i in enumerate(index) if isinstance(i, slice)]
            others = tuple(i for i, a in enumerate(kept) if a != position)
            values = logsumexp(part, axis=others) if others else part
            out[n, : self.mask_id] = values - logsumexp(values)
        return torch.from_numpy(out)


class FunctionScorer:
    """A user's function as a scorer.

    Parameters
    ----------
    function : callable
        ``function(ids) -> logits``: int array [batch, length] to float array
        [batch, length, vocab_size].
    mask_id, vocab_size, max_length : int
    name : str
        Part of the cache's key; change it when the function changes.
    """

    def __init__(
        self,
        function: Callable[[Int[np.ndarray, "batch length"]], Float[np.ndarray, "batch length v"]],
        mask_id: int,
        vocab_size: int,
        max_length: int = 512,
        name: str = "function",
    ) -> None:
        self.function = function
        self.mask_id = mask_id
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.fingerprint = f"function-{name}-{mask_id}-{vocab_size}"

    def bytes_per_sequence(self, length: int) -> int:
        """Logits at every position."""
        return 8 * length * self.vocab_size

    def logits(
        self,
        ids: Int[np.ndarray, "batch length"],
        rows: Int[np.ndarray, " n"],
        positions: Int[np.ndarray, " n"],
    ) -> Any:
        """Logits of the function at the wanted places."""
        import torch

        out = np.asarray(self.function(np.asarray(ids)))
        wanted = (*np.shape(ids), self.vocab_size)
        if out.shape != wanted:
            raise InputError(f"function returned shape {out.shape}: allowed is {wanted}")
        return torch.from_numpy(np.ascontiguousarray(out[np.asarray(rows), np.asarray(positions)]))
