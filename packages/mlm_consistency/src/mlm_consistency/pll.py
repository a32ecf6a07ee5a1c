"""Pseudo-log-likelihood of sentences: every token masked in turn (Salazar et al., 2020).

``within_word_l2r`` (Kauf and Ivanova, 2023) also masks the later tokens of the same word. Scores
equal those of minicons; the work differs: one row of the vocabulary head per token, batches of one
length without padding, memory bounded by a budget instead of by the sentence's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .errors import require
from .planner import Planner
from .scorers.base import Request

METRICS = ("original", "within_word_l2r")


@dataclass(frozen=True)
class SentenceScore:
    """Token log-probabilities of one sentence, nats.

    Parameters
    ----------
    text : str
    tokens : tuple of str
    log_p : float [tokens]
    """

    text: str
    tokens: tuple[str, ...]
    log_p: Float[np.ndarray, " tokens"]

    @property
    def total(self) -> float:
        """Pseudo-log-likelihood."""
        return float(self.log_p.sum())

    @property
    def per_token(self) -> float:
        """Mean over the tokens."""
        return float(self.log_p.mean()) if len(self.log_p) else float("nan")

    def __repr__(self) -> str:
        return f"SentenceScore({self.text[:40]!r}, {len(self.tokens)} tokens, {self.total:.4f})"


def pseudo_log_likelihood(
    texts: Sequence[str], planner: Planner, tokenizer: Any, metric: str = "original"
) -> list[SentenceScore]:
    """Score sentences.

    Parameters
    ----------
    texts : sequence of str
    planner : Planner
    tokenizer : Hugging Face fast tokenizer
    metric : "original" or "within_word_l2r"

    Raises
    ------
    ProbeError
        A sentence is longer than the model takes.
    """
    require(metric in METRICS, "pll", metric, " or ".join(map(repr, METRICS)))
    if not texts:
        return []
    mask = planner.scorer.mask_id
    encoded = tokenizer(list(texts), truncation=False, padding=False)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    requests: list[Request] = []
    places: list[list[int]] = []
    for n, ids in enumerate(encoded["input_ids"]):
        words = encoded.word_ids(n) if metric != "original" else None
        kept = [at for at, t in enumerate(ids) if t not in special]
        places.append(kept)
        for at in kept:
            row = list(ids)
            row[at] = mask
            if words is not None:
                later = at + 1
                while later < len(ids) and words[later] == words[at] and words[at] is not None:
                    row[later] = mask
                    later += 1
            requests.append(Request(tuple(row), at, (int(ids[at]),)))
    scores = planner.score(requests)
    out, start = [], 0
    for n, kept in enumerate(places):
        part = scores[start : start + len(kept)]
        start += len(kept)
        ids = encoded["input_ids"][n]
        tokens = tuple(tokenizer.convert_ids_to_tokens([ids[at] for at in kept]))
        values = np.asarray([s.log_p[0] for s in part])
        out.append(SentenceScore(texts[n], tokens, values))
    return out


__all__ = ["METRICS", "SentenceScore", "pseudo_log_likelihood"]
