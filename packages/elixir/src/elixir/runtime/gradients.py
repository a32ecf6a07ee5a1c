"""Gradients on their way from autograd to the tier of their chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elixir.memory.chunk import Chunk, Slot
from elixir.runtime.reduction import Reduction

if TYPE_CHECKING:
    from elixir.runtime.engine import Engine


class Gradients:
    """Takes each gradient as it is accumulated; parameters are never overwritten.

    Over several ranks a divided chunk's gradients are summed by :class:`Reduction`, and its buffer
    holds this rank's part alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.synchronize = True
        self.on_complete: Callable[[Chunk], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_late: Callable[[Chunk], None] | None = None
        self.accumulate_dtype: torch.dtype | None = None
        self.through_host = False
        self.direct: Callable[[Chunk, Slot, Tensor], None] | None = None
        self.held: dict[str, Tensor] = {}
        self.reduction = Reduction(self) if engine.world > 1 else None
        self._complete: set[int] = set()
        self._flight: list[Any] = []
        self._flight_bytes = 0
        self._limit = engine.plan.gradient_bytes // 2

    def on_device(self, chunk: Chunk) -> bool:
        """Return whether a chunk's gradients stay on the device."""
        return chunk.plan.tier == "device" and self.engine.world == 1 and not self.through_host

    @property
    def dtype(self) -> torch.dtype:
        """Type in which gradients are kept on the host."""
        return self.accumulate_dtype or self.engine.dtype

    def buffer(self, chunk: Chunk) -> Tensor:
        """Return (making it) the flat gradient of a chunk, or this rank's part of it."""
        if chunk.gradient is None:
            engine = self.engine
            if self.on_device(chunk):
                chunk.gradient = engine.arena.flat(chunk.gradient_offset, chunk.numel, engine.dtype)
            else:
                pin = engine.device.type == "cuda"
                n = chunk.shard[1] - chunk.shard[0]
                chunk.gradient = torch.zeros(n, dtype=self.dtype, pin_memory=pin)
        return chunk.gradient

    def own(self, chunk: Chunk, slot: Slot, low: int, high: int) -> Tensor:
        """Return elements of a parameter's gradient, wherever it is, that this rank holds."""
        held = self.held.get(slot.name)
        if held is not None:
            return held[low:high]
        begin = slot.offset // chunk.dtype.itemsize - chunk.shard[0]
        return self.buffer(chunk)[begin + low : begin + high]

    def held_range(self, chunk: Chunk, slot: Slot) -> tuple[int, int]:
        """Return which elements of a parameter's gradient this rank holds."""
        begin = slot.offset // chunk.dtype.itemsize
        low = min(max(chunk.shard[0] - begin, 0), slot.numel)
        return low, max(min(chunk.shard[1] - begin, slot.numel), low)

    def _hold(self, chunk: Chunk, slot: Slot, flat: Tensor) -> None:
        """Keep a gradient on the device, in the bytes that the plan sets aside for it.

        On the emulated device autograd's tensor is kept as it is, which costs no copy; on CUDA
        the arena has a place for it, so that the allocator's blocks cannot fragment.
        """
        if chunk.gradient_offset >= 0:
            target = chunk.flat(slot, self.buffer(chunk))
            target.add_(flat) if slot.has_gradient else target.copy_(flat)
        elif slot.has_gradient:
            self.held[slot.name].add_(flat)
        else:  # a part of a larger tensor would keep all of it
            whole = flat.untyped_storage().nbytes() <= flat.nbytes
            self.held[slot.name] = flat if whole else flat.clone()

    def forget(self) -> None:
        """Forget all gradients."""
        self.held.clear()
        if self.reduction is not None:
            self.reduction.forget()
        for chunk in self.engine.chunks:
            self.wait(chunk)
            chunk.reduced = False
            for slot in chunk.slots:
                slot.has_gradient = False

    def hook(self, chunk: Chunk, slot: Slot) -> Callable[[Tensor], None]:
        """Return the hook that takes a parameter's gradient."""

        def take(parameter: Tensor) -> None:
            self.engine.begin_backward()
            gradient = parameter.grad
            parameter.grad = None
            if gradient is None:
                return
            if gradient.layout != torch.strided:
                gradient = gradient.to_dense()
            self._take(chunk, slot, gradient)
            slot.arrived += 1
            if all(s.arrived >= s.expected for s in chunk.slots if s.trainable):
                self._arrived(chunk)

        return take

    def _take(self, chunk: Chunk, slot: Slot, gradient: Tensor) -> None:
        flat = _as_flat(gradient, slot)
        if self.direct is not None and self.on_device(chunk):
            self.direct(chunk, slot, flat)
            return
        if self.on_late is not None:
            self.on_late(chunk)
        if self.on_device(chunk):
            self._hold(chunk, slot, flat)
            slot.has_gradient = True
            return
        if chunk.replicated:
            if chunk.reduced and self.reduction is not None:
                self.reduction.again(chunk)
            target, more = chunk.flat(slot, self.buffer(chunk)), slot.has_gradient
        else:
            assert self.reduction is not None
            target = chunk.flat(slot, self.reduction.open(chunk))
            more = slot.name in chunk.filled
            chunk.filled.add(slot.name)
        if more:
            self.wait(chunk)
            target.add_(flat.to(device=target.device, dtype=target.dtype))
        elif flat.dtype != target.dtype:
            target.copy_(flat)
        else:
            handle = self.engine.mover.d2h(target, flat)
            chunk.copies.append(handle)
            self._throttle(handle, flat.nbytes)
        slot.has_gradient = True

    def _throttle(self, handle: Any, size: int) -> None:
        """Keep the gradients that wait for their copy within the planned bytes."""
        self._flight.append((handle, size))
        self._flight_bytes += size
        while self._flight_bytes > self._limit and self._flight:
            first, old = self._flight.pop(0)
            first.wait()
            self._flight_bytes -= old

    def wait(self, chunk: Chunk) -> None:
        """Return when a chunk's gradients are in its buffer."""
        for handle in chunk.copies:
            handle.wait()
        chunk.copies.clear()

    def _arrived(self, chunk: Chunk) -> None:
        self.engine.release_late(chunk)
        if chunk.index in self._complete:
            return
        self._complete.add(chunk.index)
        if self.reduction is not None:
            self.reduction.arrived(chunk)
        elif self.on_complete is not None and self.synchronize:
            self.on_complete(chunk)

    def ready(self, chunk: Chunk) -> None:
        """Return when what this rank holds of a chunk's gradients is complete."""
        self.wait(chunk)
        if self.reduction is not None:
            self.reduction.finish(chunk)

    def end_backward(self) -> None:
        """Run at the end of every backward pass."""
        for chunk in self.engine.chunks:
            for slot in chunk.slots:
                slot.arrived = 0
        self._flight.clear()
        self._flight_bytes = 0
        self._complete.clear()
        if self.reduction is not None:
            self.reduction.end()
        if self.on_end is not None:
            self.on_end()

    def abort_backward(self) -> None:
        """Forget a backward pass that was cut short by an exception, gradients included."""
        self.forget()
        for chunk in self.engine.chunks:
            for slot in chunk.slots:
                slot.arrived = 0
        self._complete.clear()
        self._flight.clear()
        self._flight_bytes = 0

    def close(self) -> None:
        """Drop the buffers."""
        self.forget()
        if self.reduction is not None:
            self.reduction.close()
        for chunk in self.engine.chunks:
            chunk.gradient = None


def _as_flat(gradient: Tensor, slot: Slot) -> Tensor:
    """Return a gradient's elements in the order of the parameter's memory."""
    if gradient.stride() == slot.stride and gradient.numel() == slot.numel:
        return gradient.as_strided((slot.numel,), (1,))
    arranged = torch.empty_strided(
        slot.size, slot.stride, dtype=gradient.dtype, device=gradient.device
    )
    return arranged.copy_(gradient).as_strided((slot.numel,), (1,))
