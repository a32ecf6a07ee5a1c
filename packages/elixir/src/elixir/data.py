"""Real text that every Python ships: the language reference behind ``help()``."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def corpus() -> Int[Tensor, " bytes"]:
    """Return the bytes of ``pydoc_data.topics`` (about 700 kB of English prose and grammar)."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def batches(
    text: Int[Tensor, " bytes"], batch: int, length: int, seed: int
) -> torch.utils.data.IterableDataset:
    """Return an endless stream of (tokens, targets), each ``[batch, length]``."""
    return _Stream(text, batch, length, seed)


class _Stream(torch.utils.data.IterableDataset):
    def __init__(self, text: Tensor, batch: int, length: int, seed: int) -> None:
        self.text, self.batch, self.length, self.seed = text, batch, length, seed

    def __iter__(self):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            starts = torch.randint(
                0, len(self.text) - self.length - 1, (self.batch,), generator=generator
            )
            rows = torch.stack([self.text[s : s + self.length + 1] for s in starts])
            yield rows[:, :-1], rows[:, 1:]
