"""What a scorer is: one method that turns batches of token ids into logits at chosen places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Request:
    """One conditional to be read: a pattern (ids with masks), a position, candidates.

    Parameters
    ----------
    ids : tuple of int
        The whole input, special tokens and masks included.
    position : int
        Where the distribution is read.
    candidates : tuple of int
        Token ids whose log-probabilities are wanted; empty for the `top` most probable ones.
    top : int
        Number of most probable tokens wanted when there are no candidates.
    """

    ids: tuple[int, ...]
    position: int
    candidates: tuple[int, ...] = ()
    top: int = 0


@dataclass(frozen=True)
class Scores:
    """Answer to a `Request`.

    Parameters
    ----------
    ids : int [n]
    log_p : float [n]
        Log-probabilities over the whole vocabulary, in the order of `ids`, nats.
    log_z : float
        Log-normaliser of the raw logits.
    """

    ids: Int[np.ndarray, " n"]
    log_p: Float[np.ndarray, " n"]
    log_z: float


@runtime_checkable
class Scorer(Protocol):
    """Anything that gives logits for masked inputs.

    Attributes
    ----------
    mask_id : int
    vocab_size : int
    max_length : int
        Longest input in tokens.
    pad_id : int or None
        None: only inputs of equal length share a batch.
    fingerprint : str
        Changes whenever the scores may change; part of the cache's keys.
    """

    mask_id: int
    vocab_size: int
    max_length: int
    fingerprint: str

    def logits(
        self,
        ids: Int[np.ndarray, "batch length"],
        rows: Int[np.ndarray, " n"],
        positions: Int[np.ndarray, " n"],
    ) -> Any:
        """Logits [n, vocab] at (row, position) of a batch without padding, as a torch tensor."""

    def bytes_per_sequence(self, length: int) -> int:
        """Estimate of the activations' bytes of one input of this length."""
