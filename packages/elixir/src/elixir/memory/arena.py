"""The device's memory as one preallocated tensor; nothing else may hold parameters there."""

from __future__ import annotations

import torch
from torch import Tensor

from elixir.errors import BudgetExceededError
from elixir.planner.packing import aligned


class Arena:
    """``size`` bytes on a device: a static part that grows from the front, then the cache.

    Parameters
    ----------
    size
        Bytes; the hard limit.
    device
        Where.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.buffer = torch.zeros(max(aligned(size), 64), dtype=torch.uint8, device=device)
        self.address = self.buffer.untyped_storage().data_ptr()
        # torch aligns its allocations to 64 bytes or more
        self.used = 0
        self._typed: dict[torch.dtype, Tensor] = {}

    def carve(self, size: int) -> int:
        """Take bytes for good; return their offset.

        Raises
        ------
        BudgetExceededError
            If they do not fit.
        """
        offset = self.used
        if offset + aligned(size) > self.buffer.numel():
            raise BudgetExceededError(
                f"arena: {size} bytes asked for, {self.size - offset} of {self.size} are free"
            )
        self.used += aligned(size)
        return offset

    def typed(self, dtype: torch.dtype) -> Tensor:
        """Return the whole arena as elements of a type."""
        if dtype not in self._typed:
            self._typed[dtype] = self.buffer.view(dtype)
        return self._typed[dtype]

    def view(
        self, offset: int, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """Return a tensor at a byte offset."""
        return self.typed(dtype).as_strided(size, stride, offset // dtype.itemsize)

    def flat(self, offset: int, numel: int, dtype: torch.dtype) -> Tensor:
        """Return ``numel`` elements at a byte offset."""
        return self.view(offset, (numel,), (1,), dtype)

    def poison(self, offset: int, size: int) -> None:
        """Fill bytes so that every float type reads NaN."""
        self.buffer[offset : offset + size].fill_(0xFF)
