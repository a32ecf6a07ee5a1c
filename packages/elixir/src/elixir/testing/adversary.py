"""A mover that completes copies as late, and in as odd an order, as its contract allows."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from elixir.memory.mover import HostMover


class _Deferred:
    def __init__(self, owner: AdversarialMover, target: Tensor, source: Tensor) -> None:
        self.owner, self.target, self.source, self.done = owner, target, source, False

    def run(self) -> None:
        if not self.done:
            with torch.no_grad():
                self.target.copy_(self.source)
            self.done = True
            self.target = self.source = None  # type: ignore[assignment]

    def wait(self) -> None:
        pending = self.owner.pending
        self.owner.random.shuffle(pending)
        # others may complete first, or stay pending; this one is complete on return
        for other in pending[: self.owner.random.randint(0, len(pending))]:
            other.run()
        self.run()
        self.owner.pending = [p for p in self.owner.pending if not p.done]


class AdversarialMover(HostMover):
    """Copies nothing before somebody waits; then a random part of what is pending.

    Parameters
    ----------
    seed
        Source of the order.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.pending: list[Any] = []

    def _go(self, direction: str, target: Tensor, source: Tensor) -> Any:
        self.moved[direction] += target.nbytes
        self.copies[direction] += 1
        if direction == "h2d":
            # whoever reads before waiting reads this: NaN in every float type
            target.view(torch.uint8).fill_(0xFF)
        ticket = _Deferred(self, target, source)
        self.pending.append(ticket)
        return ticket
