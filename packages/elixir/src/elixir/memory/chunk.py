"""A chunk: parameters that travel together, and the states it may be in."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from elixir.planner.result import ChunkPlan
from elixir.profile.parts import Origin, Part


class State(Enum):
    """Where a chunk is in its life (the paper's tensor states, kept per chunk)."""

    FREE = "free"
    LOADING = "loading"
    HOLD = "hold"
    COMPUTE = "compute"


LEGAL = {
    (State.FREE, State.LOADING),
    (State.LOADING, State.HOLD),
    (State.HOLD, State.COMPUTE),
    (State.COMPUTE, State.HOLD),
    (State.HOLD, State.FREE),
    (State.LOADING, State.FREE),
}


@dataclass
class Slot:
    """One parameter's place in its chunk."""

    name: str
    parameter: nn.Parameter
    offset: int
    numel: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    trainable: bool
    expected: int
    nan: Tensor
    part: Part | None = None
    origin: Origin | None = None
    arrived: int = 0
    has_gradient: bool = False


@dataclass
class Chunk:
    """A chunk at run time: host copy, gradient slot, place on the device."""

    index: int
    plan: ChunkPlan
    slots: list[Slot]
    dtype: torch.dtype
    host: Tensor
    shard: tuple[int, int]
    state: State = State.FREE
    offset: int = -1
    version: int = 0
    gradient: Tensor | None = None
    handle: Any = None
    last_use: Any = None
    unused_prefetches: int = 0
    untouched: bool = False
    reducing: Any = None
    reduced: bool = False
    transit: Tensor | None = None
    filled: set[str] = field(default_factory=set)
    copies: list[Any] = field(default_factory=list)
    stepping: Any = None
    gradient_offset: int = -1
    state_offsets: list[int] = field(default_factory=list)
    views: dict[int, list[Tensor]] = field(default_factory=dict)

    def to(self, state: State) -> None:
        """Change state; an illegal edge is a fault of the runtime and raises."""
        if (self.state, state) not in LEGAL:
            raise RuntimeError(
                f"chunk {self.index}: {self.state.value} -> {state.value} is illegal"
            )
        self.state = state

    @property
    def replicated(self) -> bool:
        """Whether this rank holds and updates all of it (always so on one rank)."""
        return self.shard[1] - self.shard[0] == self.host.numel()

    @property
    def numel(self) -> int:
        """Elements, padding of tensors included."""
        return self.plan.bytes // self.dtype.itemsize

    def flat(self, slot: Slot, base: Tensor) -> Tensor:
        """Return a slot's elements of a flat tensor laid out as this chunk."""
        begin = slot.offset // self.dtype.itemsize
        return base[begin : begin + slot.numel]
