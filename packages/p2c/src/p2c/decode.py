"""Beam search, and beam search under constraints by a finite state machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import require
from .vocabulary import SEP

Step = Callable[[Int[Tensor, "beams prefix"]], Float[Tensor, "beams words"]]


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption: its tokens (end token included), score, and the constraints it meets."""

    ids: tuple[int, ...]
    score: float
    met: frozenset[int]


def constrained_beam(
    step: Step,
    beam: int,
    max_length: int,
    constraints: Sequence[Sequence[int]] = (),
    required: int | None = None,
) -> list[Hypothesis]:
    """Return the best captions that meet the constraints (Anderson et al., 2017).

    Every subset of met constraints is a state of the machine and keeps a beam of its own. With a
    beam of at least ``words ** max_length`` the search is exhaustive.

    Parameters
    ----------
    step : callable
        Prefixes (beams, t) to log-probabilities (beams, words) of the next word.
    beam : int
        Hypotheses per state.
    max_length : int
        Longest caption, end token included; a cut caption counts as finished.
    constraints : sequence of sequences of int
        Each is met by any of its words (an object and its synonyms).
    required : int, optional
        How many constraints must be met; all by default.

    Returns
    -------
    list of Hypothesis
        Up to ``beam``, best first; empty when no caption can meet the constraints.
    """
    require(beam >= 1, "beam", beam, "at least 1")
    require(max_length >= 1, "max_length", max_length, "at least 1")
    require(len(constraints) <= 6, "constraints", len(constraints), "at most 6")
    need = len(constraints) if required is None else required
    require(0 <= need <= len(constraints), "required", need, f"0 to {len(constraints)}")
    states = 1 << len(constraints)
    owner: dict[int, int] = {}
    for bit, words in enumerate(constraints):
        for word in words:
            owner[word] = owner.get(word, 0) | 1 << bit
    live: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    finished: list[Hypothesis] = []
    for t in range(max_length):
        prefixes = torch.tensor([ids for _, _, ids in live], dtype=torch.long)
        logs = step(prefixes.view(len(live), t))
        total = logs + torch.tensor([s for _, s, _ in live], dtype=logs.dtype)[:, None]
        moves = torch.tensor([owner.get(w, 0) for w in range(logs.shape[1])])
        source = torch.tensor([state for state, _, _ in live])
        target = source[:, None] | moves[None]
        ends = torch.zeros(logs.shape[1], dtype=torch.bool)
        ends[SEP] = True
        following: list[tuple[int, float, tuple[int, ...]]] = []
        for state in range(states):
            here = total.masked_fill(target != state, -torch.inf)
            enough = state.bit_count() >= need
            for final in (True, False):
                last = t == max_length - 1
                if (final and not enough) or (last and not final):
                    continue
                part = here if last else here.masked_fill(ends != final, -torch.inf)
                best, place = part.flatten().topk(min(beam, part.numel()))
                for value, where in zip(best.tolist(), place.tolist()):
                    if value == -torch.inf:
                        break
                    row, word = divmod(where, logs.shape[1])
                    ids = (*live[row][2], word)
                    if final:
                        met = frozenset(b for b in range(len(constraints)) if state >> b & 1)
                        finished.append(Hypothesis(ids, value, met))
                    else:
                        following.append((state, value, ids))
        finished = sorted(finished, key=lambda h: -h.score)[:beam]
        live = following
        if not live or (len(finished) == beam and finished[-1].score >= max(s for _, s, _ in live)):
            break
    return finished


def beam_search(step: Step, beam: int, max_length: int) -> list[Hypothesis]:
    """Return the best captions of a plain beam search, best first."""
    return constrained_beam(step, beam, max_length)
