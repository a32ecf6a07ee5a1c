"""Gradients on their way from autograd to the tier of their chunk, and between ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from elixir.memory.chunk import Chunk, Slot

if TYPE_CHECKING:
    from elixir.runtime.engine import Engine


class Gradients:
    """Takes each gradient as it is accumulated; parameters are never overwritten.

    Reductions between ranks are started in one fixed order, last chunk first, whatever order the
    gradients arrive in; a chunk without gradients takes part with zeros. Ranks that route
    differently therefore never wait for each other's next operation.
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
        self.reduced = 0
        self._next = len(engine.chunks) - 1
        self._complete: set[int] = set()
        self._flight: list[Any] = []
        self._flight_bytes = 0
        self._limit = engine.plan.gradient_bytes // 2

    def on_device(self, chunk: Chunk) -> bool:
        """Return whether a chunk's gradients stay on the device."""
        return chunk.plan.tier == "device" and self.engine.world == 1 and not self.through_host

    def buffer(self, chunk: Chunk) -> Tensor:
        """Return (making it) the flat gradient of a chunk."""
        if chunk.gradient is None:
            engine = self.engine
            dtype = self.accumulate_dtype or engine.dtype
            if self.on_device(chunk):
                chunk.gradient = engine.arena.flat(chunk.gradient_offset, chunk.numel, engine.dtype)
            else:
                pin = engine.device.type == "cuda"
                chunk.gradient = torch.zeros(chunk.host.numel(), dtype=dtype, pin_memory=pin)
        return chunk.gradient

    def flat(self, chunk: Chunk, slot: Slot) -> Tensor:
        """Return a parameter's gradient as flat elements, wherever it is."""
        held = self.held.get(slot.name)
        return chunk.flat(slot, self.buffer(chunk)) if held is None else held

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
        if chunk.reduced:
            self._again(chunk)
        target = chunk.flat(slot, self.buffer(chunk))
        if slot.has_gradient:
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
        if self.engine.world > 1:
            self._reduce_ready()
        elif self.on_complete is not None and self.synchronize:
            self.on_complete(chunk)

    # -- between ranks -----------------------------------------------------------------------

    def _reduce_ready(self, flush: bool = False) -> None:
        if not self.synchronize:
            return
        chunks = self.engine.chunks
        while self._next >= 0:
            chunk = chunks[self._next]
            if not flush and chunk.plan.trainable and chunk.index not in self._complete:
                return
            self._next -= 1
            if chunk.plan.trainable:
                self._reduce(chunk)

    def _again(self, chunk: Chunk) -> None:
        """Before a chunk is reduced a second time: each sum so far stays on one rank only."""
        self.finish_reduction(chunk)
        buffer, (low, high) = self.buffer(chunk), chunk.shard
        if not chunk.replicated:
            buffer[:low].zero_()
            buffer[high:].zero_()
        elif self.engine.rank:
            buffer.zero_()
        chunk.reduced = False

    def _reduce(self, chunk: Chunk) -> None:
        engine = self.engine
        if chunk.reduced:
            self._again(chunk)
        chunk.reduced = True
        buffer = self.buffer(chunk)
        self.wait(chunk)
        for slot in chunk.slots:
            if slot.trainable and not slot.has_gradient:
                chunk.flat(slot, buffer).zero_()
        device = engine.device
        work = buffer.to(device, non_blocking=True) if device.type == "cuda" else buffer
        low, high = chunk.shard
        # gloo's reduce-scatter is an all-reduce of a copy: in place it costs no copy
        if chunk.replicated or dist.get_backend(engine.group) == "gloo":
            handle = dist.all_reduce(work, group=engine.group, async_op=True)
            target = None if work is buffer else buffer
            chunk.reducing = (handle, work, target)
        else:
            part = torch.empty(high - low, dtype=work.dtype, device=work.device)
            handle = dist.reduce_scatter_tensor(part, work, group=engine.group, async_op=True)
            chunk.reducing = (handle, part, buffer[low:high])
        self.reduced += 1

    def finish_reduction(self, chunk: Chunk) -> None:
        """Wait for a chunk's reduction; the rank's part then lies in its buffer."""
        if chunk.reducing is None:
            return
        handle, result, target = chunk.reducing
        handle.wait()
        if target is not None:
            target.copy_(result)
        chunk.reducing = None

    def end_backward(self) -> None:
        """Run at the end of every backward pass."""
        engine = self.engine
        for chunk in engine.chunks:
            for slot in chunk.slots:
                slot.arrived = 0
        self._flight.clear()
        self._flight_bytes = 0
        if engine.world > 1 and self.synchronize:
            self._reduce_ready(flush=True)
            self._agree_on_use()
            self._next = len(engine.chunks) - 1
        self._complete.clear()
        if self.on_end is not None:
            self.on_end()

    def _agree_on_use(self) -> None:
        """Update a parameter on all ranks if any rank used it."""
        engine = self.engine
        slots = [s for c in engine.chunks for s in c.slots]
        used = torch.tensor(
            [s.has_gradient for s in slots], dtype=torch.uint8, device=engine.device
        )
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=engine.group)
        for slot, flag in zip(slots, used.tolist(), strict=True):
            slot.has_gradient = bool(flag)

    def abort_backward(self) -> None:
        """Forget a backward pass that was cut short by an exception, gradients included."""
        self.forget()
        for chunk in self.engine.chunks:
            for slot in chunk.slots:
                slot.arrived = 0
        self._complete.clear()
        self._flight.clear()
        self._flight_bytes = 0
        self._next = len(self.engine.chunks) - 1

    def close(self) -> None:
        """Drop the buffers."""
        self.forget()
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
