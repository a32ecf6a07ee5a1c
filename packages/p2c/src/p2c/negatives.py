"""Captions that almost fit: one word swapped for another of its kind, so that a judge sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import require
from .vocabulary import Vocabulary


class WordSwaps:
    """Makes hard negatives for an image-text model by swapping words of a caption.

    In-batch contrast teaches a judge the objects and little else, for objects alone tell the images
    of a batch apart; a judge that must tell a caption from the same caption with another verb
    learns the verbs too (Yuksekgonul et al., ICLR 2023, for word order).

    Parameters
    ----------
    vocabulary : Vocabulary
        Of the captions.
    kinds : sequence of sequences of sequences of str
        For each kind of word (nouns, verbs, places) its classes; the words of one class mean the
        same, and a word is never swapped for one of its own class.
    keep : collection of str
        Words that are not swapped away, since any other word of their kind might be true.

    Examples
    --------
    >>> v = Vocabulary(["a", "zebra", "sits", "hides"])
    >>> swaps = WordSwaps(v, [[["sits"], ["hides"]]])
    >>> made = swaps(v.encode_all(["a zebra sits"], 4), torch.Generator().manual_seed(0))
    >>> v.decode_all(made[:, 0])
    ['a zebra hides']
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        kinds: Sequence[Sequence[Sequence[str]]],
        keep: Sequence[str] = (),
    ) -> None:
        require(len(kinds) >= 1, "kinds", list(kinds), "at least one kind of word")
        words = len(vocabulary)
        self.member = torch.zeros(len(kinds), words, dtype=torch.bool)
        self.others: list[dict[int, Tensor]] = []
        for place, classes in enumerate(kinds):
            numbers = [[vocabulary.index[w] for w in group] for group in classes]
            every = [n for group in numbers for n in group]
            require(len(numbers) >= 2, "kinds", list(classes), "at least two classes in each kind")
            self.others.append({})
            for group in numbers:
                rest = torch.tensor([n for n in every if n not in group])
                for number in group:
                    if vocabulary.words[number] not in keep:
                        self.member[place, number] = True
                        self.others[place][number] = rest

    def __call__(
        self, ids: Int[Tensor, "batch length"], generator: torch.Generator
    ) -> Int[Tensor, "batch kinds length"]:
        """Return, for each kind, the captions with one word of it swapped; zeros without one."""
        made = torch.zeros(len(ids), len(self.others), ids.shape[1], dtype=ids.dtype)
        for kind, others in enumerate(self.others):
            there = self.member[kind][ids]
            rows = there.any(1).nonzero()[:, 0]
            if not len(rows):
                continue
            places = torch.multinomial(there[rows].double(), 1, generator=generator)[:, 0]
            draws = torch.rand(len(rows), generator=generator)
            made[rows, kind] = ids[rows]
            for row, place, draw in zip(rows.tolist(), places.tolist(), draws.tolist()):
                choice = others[int(ids[row, place])]
                made[row, kind, place] = choice[int(draw * len(choice))]
        return made
