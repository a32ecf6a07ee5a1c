"""Parameters of which a rank has a part: where it lies in the whole one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
