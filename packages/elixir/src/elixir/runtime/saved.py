"""Saved tensors of autograd: weights are kept as places in chunks, not as memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elixir.memory.chunk import Chunk

if TYPE_CHECKING:
    from elixir.runtime.engine import Engine

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


class _Saved:
    """A saved weight: where it lies in its chunk, not where the chunk lies."""

    __slots__ = ("chunk", "dtype", "offset", "size", "stride", "version")

    def __init__(self, chunk: Chunk, offset: int, tensor: Tensor) -> None:
        self.chunk, self.offset, self.version = chunk, offset, chunk.version
        self.size, self.stride, self.dtype = tensor.size(), tensor.stride(), tensor.dtype


class SavedWeights:
    """Packs weights on saving and fetches them, into any block, when their node runs.

    Parameters
    ----------
    engine
        Holds the chunks.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._node: Any = None
        self._pins: list[Chunk] = []

    def hooks(self) -> Hooks:
        """Return the pair for ``torch.autograd.graph.saved_tensors_hooks``."""
        return self.pack, self.unpack

    def pack(self, tensor: Tensor) -> Any:
        """Return the place of a travelling weight; anything else as it is."""
        if tensor.layout != torch.strided:
            return tensor
        engine = self.engine
        offset = tensor.data_ptr() - engine.arena.address
        if not engine.base <= offset < engine.arena.size:  # most tensors: keep this cheap
            return tensor
        index = engine.cache.at(offset - engine.base)
        if index is None:
            raise RuntimeError("a saved tensor lies in a block that no chunk holds")
        chunk = engine.chunks[index]
        return _Saved(chunk, offset - chunk.offset, tensor)

    def unpack(self, saved: Any) -> Tensor:
        """Fetch what :meth:`pack` returned and pin it while its node runs.

        Raises
        ------
        RuntimeError
            If the weight was changed after it was saved.
        """
        if not isinstance(saved, _Saved):
            return saved  # type: ignore[no-any-return]
        engine, chunk = self.engine, saved.chunk
        if saved.version != chunk.version:
            raise RuntimeError(
                f"one of the parameters {', '.join(chunk.plan.parameters[:3])} needed for the "
                "gradient was changed (optimizer step or edit) after the forward pass"
            )
        engine.begin_backward()
        node = torch._C._current_autograd_node()
        if node is not self._node:
            self.release()
            self._node = node
        engine.fetch(chunk)
        engine.cache.pins[chunk.index] += 1
        self._pins.append(chunk)
        engine.prefetch()
        return engine.arena.view(chunk.offset + saved.offset, saved.size, saved.stride, saved.dtype)

    def release(self) -> None:
        """Unpin the weights of the node that ran last."""
        for chunk in self._pins:
            self.engine.cache.pins[chunk.index] -= 1
            chunk.last_use = self.engine.mover.mark()
        self._pins.clear()
        self._node = None

    def forget(self) -> None:
        """Drop the pins' record without touching the counts (they are reset elsewhere)."""
        self._pins.clear()
        self._node = None
