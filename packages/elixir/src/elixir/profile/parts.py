"""Parameters that are parts of larger ones, and the names and shapes of the whole model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """The ``index``-th of ``count`` equal parts of a dimension; ``shape`` is the whole one's."""

    shape: tuple[int, ...]
    dim: int
    index: int
    count: int

    def cut(self, whole: Tensor) -> Tensor:
        """Return this part of a whole tensor, as a view."""
        size = self.shape[self.dim] // self.count
        return whole.narrow(self.dim, self.index * size, size)


def part_of(parameter: Tensor) -> Part | None:
    """Return which part of a divided parameter this is; None for a whole one."""
    return getattr(parameter, "_elixir_part", None)


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape that a parameter has in the undivided model."""
    part = part_of(parameter)
    return tuple(parameter.shape) if part is None else part.shape


@dataclass(frozen=True)
class Origin:
    """The weight that a tile was cut from: its name and shape, and the tile's first element."""

    name: str
    shape: tuple[int, ...]
    first: int


def origin_of(parameter: Tensor) -> Origin | None:
    """Return what a tile was cut from; None for other parameters."""
    return getattr(parameter, "_elixir_origin", None)


def fingerprint(model: nn.Module) -> str:
    """Return the hash of a model's names and whole shapes that plans and checkpoints carry."""
    rows = []
    for name, p in model.named_parameters(remove_duplicate=True):
        origin = origin_of(p)
        if origin is None:
            rows.append(f"{name}:{whole_shape(p)}:{p.requires_grad}")
        elif origin.first == 0:
            rows.append(f"{origin.name}:{origin.shape}:{p.requires_grad}")
    return hashlib.sha256(";".join(rows).encode()).hexdigest()[:16]
