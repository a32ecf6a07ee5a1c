"""Gradients between ranks: summed chunk by chunk in one order, each rank keeps its own part.

A chunk's gradients gather in a transit buffer, are reduced from there, and the rank's part is added
to what it holds; the buffer then serves another chunk. So a rank's host holds its part of all
gradients and the whole of two neighbouring chunks, whatever the model's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from elixir.memory.chunk import Chunk
from elixir.planner.packing import transit_elements

if TYPE_CHECKING:
    from elixir.runtime.gradients import Gradients


class Reduction:
    """Starts every chunk's reduction once per backward pass, last chunk first.

    The order is the same on all ranks, whatever order their gradients arrive in; a chunk without
    gradients takes part with zeros. Gradients that come after their chunk's turn are reduced in a
    second round that all ranks agree on, so ranks that route differently never wait for each
    other's next operation.

    Parameters
    ----------
    gradients
        Takes the gradients from autograd; several ranks.

    Attributes
    ----------
    started
        Number of reductions.
    beyond
        Largest bytes that transit took beyond its buffer: where gradients arrive in another order
        than the plan's trace.
    """

    def __init__(self, gradients: Gradients) -> None:
        self.gradients, self.engine = gradients, gradients.engine
        engine = self.engine
        self.started = 0
        self.beyond = 0
        self._order = [c for c in reversed(engine.chunks) if c.plan.trainable]
        self._next = 0
        self._complete: set[int] = set()
        self._flight: list[Chunk] = []
        self._size = transit_elements(engine.plan.chunks, engine.dtype.itemsize, engine.world)
        self._buffer: Tensor | None = None
        self._taken: dict[int, tuple[int, int]] = {}

    # -- transit -----------------------------------------------------------------------------

    def open(self, chunk: Chunk) -> Tensor:
        """Return a divided chunk's transit buffer, in which gradients may be written."""
        if chunk.reducing is not None:
            self.finish(chunk)
        if chunk.transit is None:
            n = chunk.host.numel()
            while (begin := self._free_place(n)) < 0 and self._make_room(chunk):
                pass
            if begin >= 0:
                self._taken[chunk.index] = (begin, begin + n)
                chunk.transit = self._whole()[begin : begin + n]
            else:
                chunk.transit = torch.empty(n, dtype=self.gradients.dtype)
                self.beyond = max(self.beyond, chunk.transit.nbytes)
        return chunk.transit

    def _whole(self) -> Tensor:
        if self._buffer is None:
            pin = self.engine.device.type == "cuda"
            self._buffer = torch.zeros(self._size, dtype=self.gradients.dtype, pin_memory=pin)
        return self._buffer

    def _free_place(self, n: int) -> int:
        """Return where ``n`` elements are free in the buffer, or -1."""
        begin = 0
        for low, high in sorted(self._taken.values()):
            if low - begin >= n:
                return begin
            begin = high
        return begin if begin + n <= self._size else -1

    def _make_room(self, chunk: Chunk) -> bool:
        """Finish or start a reduction, as the order allows; return False where it cannot help."""
        if self._flight:
            self.finish(self._flight[0])
            return True
        if self._next < len(self._order) and self._order[self._next].index > chunk.index:
            self._start_next()  # its missing gradients do not come, or come late
            return True
        return False

    def _close(self, chunk: Chunk) -> None:
        chunk.transit = None
        chunk.filled.clear()
        self._taken.pop(chunk.index, None)

    # -- one backward pass -------------------------------------------------------------------

    def arrived(self, chunk: Chunk) -> None:
        """Note that a chunk's gradients are in; start what has its turn."""
        self._complete.add(chunk.index)
        while self._next < len(self._order) and self._order[self._next].index in self._complete:
            self._start_next()

    def end(self) -> None:
        """Start what is left; agree on late gradients and on the parameters that any rank used."""
        engine = self.engine
        while self._next < len(self._order):
            self._start_next()
        self._next = 0
        self._complete.clear()
        chunks = [c for c in self._order if self._takes_part(c)]
        slots = [s for c in chunks for s in c.slots]
        late = [self._late(c) for c in chunks]
        flags = torch.tensor(
            [*(s.has_gradient for s in slots), *late], dtype=torch.uint8, device=engine.device
        )
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=engine.group)
        values = flags.tolist()
        for slot, flag in zip(slots, values, strict=False):
            slot.has_gradient = bool(flag)
        for chunk, flag in zip(chunks, values[len(slots) :], strict=True):
            if flag:
                self._start(chunk)

    def _late(self, chunk: Chunk) -> bool:
        """Whether a gradient came after the chunk's turn."""
        if chunk.replicated:
            return not chunk.reduced
        return chunk.transit is not None and chunk.reducing is None

    def _takes_part(self, chunk: Chunk) -> bool:
        """Whole gradients wait for the last pass; of divided ones only the parts have room."""
        return self.gradients.synchronize or not chunk.replicated

    def _start_next(self) -> None:
        chunk = self._order[self._next]
        self._next += 1
        if self._takes_part(chunk):
            self._start(chunk)

    def _start(self, chunk: Chunk) -> None:
        engine = self.engine
        if chunk.replicated:
            if chunk.reduced:
                self.again(chunk)
            chunk.reduced = True
            whole = self.gradients.buffer(chunk)
            missing = [s for s in chunk.slots if not s.has_gradient]
        else:
            whole = self.open(chunk)
            missing = [s for s in chunk.slots if s.name not in chunk.filled]
        self.gradients.wait(chunk)
        for slot in missing:
            if slot.trainable:
                chunk.flat(slot, whole).zero_()
        on_device = engine.device.type == "cuda"
        work = whole.to(engine.device, non_blocking=True) if on_device else whole
        # gloo's reduce-scatter is an all-reduce of a copy: in place it costs no copy
        if chunk.replicated or dist.get_backend(engine.group) == "gloo":
            handle = dist.all_reduce(work, group=engine.group, async_op=True)
        else:
            low, high = chunk.shard
            part = torch.empty(high - low, dtype=work.dtype, device=work.device)
            handle = dist.reduce_scatter_tensor(part, work, group=engine.group, async_op=True)
            work = part
        chunk.reducing = (handle, work)
        self._flight.append(chunk)
        self.started += 1

    def again(self, chunk: Chunk) -> None:
        """Before whole gradients are reduced a second time: the sum so far stays on one rank."""
        self.finish(chunk)
        if self.engine.rank:
            self.gradients.buffer(chunk).zero_()
        chunk.reduced = False

    def finish(self, chunk: Chunk) -> None:
        """Wait for a chunk's reduction; the rank's part then lies in its buffer."""
        if chunk.reducing is None:
            return
        handle, result = chunk.reducing
        handle.wait()
        chunk.reducing = None
        self._flight.remove(chunk)
        own = self.gradients.buffer(chunk)
        if chunk.replicated:
            if result is not own:
                own.copy_(result)
            return
        low, high = chunk.shard
        part = result if result.numel() == high - low else result[low:high]
        if chunk.reduced:
            own.add_(part.to(own.device))
        else:
            own.copy_(part)
        chunk.reduced = True
        self._close(chunk)

    def forget(self) -> None:
        """Forget what is in transit."""
        while self._flight:
            self.finish(self._flight[0])
        for chunk in self._order:
            self._close(chunk)
        self._next = 0
        self._complete.clear()

    def close(self) -> None:
        """Drop the buffer."""
        self.forget()
        self._buffer = None
