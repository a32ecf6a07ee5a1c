"""Where chunks are: host copies, the arena, and the traffic between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from elixir.errors import BudgetExceededError, StalePlanError
from elixir.memory.arena import Arena
from elixir.memory.chunk import Chunk, Slot, State
from elixir.memory.mover import CudaMover, HostMover
from elixir.optim.adamw import dense
from elixir.planner.cache import FAR, Cache
from elixir.planner.packing import aligned
from elixir.planner.result import Plan
from elixir.planner.simulate import prefetch_order


class Residency:
    """The chunks of a model and their places; knows nothing of modules' calls or of autograd.

    Parameters
    ----------
    model, plan, mover, poison, disk_folder, process_group
        As for :class:`elixir.runtime.engine.Engine`.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        mover: Any = None,
        poison: bool = False,
        disk_folder: str | Path | None = None,
        process_group: Any = None,
    ) -> None:
        self.model, self.plan, self.poison = model, plan, poison
        self.disk_folder = disk_folder
        self.device = torch.device(plan.device)
        self.dtype: torch.dtype = getattr(torch, plan.dtype)
        self.group = process_group
        distributed = dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size(self.group) if distributed else 1
        self.rank = dist.get_rank(self.group) if distributed else 0
        named = list(model.named_parameters(remove_duplicate=True))
        plan.check_model(_fingerprint(named))
        if any(p.device.type == "meta" for _, p in named):
            raise StalePlanError(
                "model: has parameters on meta; give them values before initialize"
            )
        if hasattr(model, "_elixir_engine"):
            raise ValueError("model: is already initialized")
        self.mover = mover or (
            CudaMover(self.device) if self.device.type == "cuda" else HostMover()
        )
        self.arena = Arena(plan.cache_bytes + plan.resident_bytes, self.device)
        self.chunks: list[Chunk] = []
        self.home: dict[str, Chunk] = {}
        self._by_parameter: dict[int, tuple[Chunk, Slot]] = {}
        self._take(dict(named))
        for _, buffer in model.named_buffers():
            target = self.dtype if buffer.is_floating_point() else buffer.dtype
            buffer.data = buffer.data.to(self.device, target)
        self.base = self.arena.used
        travel = [[c for c in s if self.moves(self.chunks[c])] for s in plan.steps]
        self.steps = travel
        self.cache = Cache([c.plan.bytes for c in self.chunks], plan.cache_bytes, travel)
        self.unplanned_fetches = 0
        self.peak_bytes = 0
        self._freed: list[tuple[int, int, Any]] = []

    # -- construction ------------------------------------------------------------------------

    def moves(self, chunk: Chunk) -> bool:
        """Return whether a chunk visits the device (rather than lives there)."""
        return chunk.plan.tier in ("host", "disk")

    def _take(self, named: dict[str, nn.Parameter]) -> None:
        pin = self.device.type == "cuda"
        for index, planned in enumerate(self.plan.chunks):
            elements = planned.bytes // self.dtype.itemsize
            share = aligned(-(-elements // self.world) * 4) // 4
            host = torch.zeros(share * self.world, dtype=self.dtype, pin_memory=pin)
            slots = []
            counts = planned.gradients or (1,) * len(planned.parameters)
            for name, offset, count in zip(
                planned.parameters, planned.offsets, counts, strict=True
            ):
                p = named[name]
                stride = dense(p)
                begin = offset // self.dtype.itemsize
                with torch.no_grad():
                    host.as_strided(p.shape, stride, begin).copy_(p.detach())
                nan = torch.full((1,), float("nan"), dtype=self.dtype, device=self.device)
                slots.append(
                    Slot(
                        name,
                        p,
                        offset,
                        p.numel(),
                        tuple(p.shape),
                        tuple(stride),
                        p.requires_grad,
                        count,
                        nan.expand(p.numel()).view(p.shape) if p.numel() else nan[:0].view(p.shape),
                    )
                )
                p.data = slots[-1].nan
                p.grad = None
            whole = self.world == 1 or planned.shard == "replicate"
            shard = (0, host.numel()) if whole else (self.rank * share, (self.rank + 1) * share)
            chunk = Chunk(index, planned, slots, self.dtype, host, shard)
            self.chunks.append(chunk)
            for slot in slots:
                self.home[slot.name] = chunk
                self._by_parameter[id(slot.parameter)] = (chunk, slot)
            if not self.moves(chunk):
                chunk.offset = self.arena.carve(planned.bytes)
                self.upload(chunk)
                self._show(chunk)
            if planned.tier == "device":
                if self.plan.keep_gradients:
                    chunk.gradient_offset = self.arena.carve(planned.bytes)
                states = 2 if self.dtype == torch.float32 else 3
                chunk.state_offsets = [self.arena.carve(4 * elements) for _ in range(states)]
        self.broadcast()

    def broadcast(self) -> None:
        """Give every rank the parameters of rank 0."""
        if self.world == 1:
            return
        for chunk in self.chunks:
            dist.broadcast(
                chunk.host,
                dist.get_global_rank(self.group, 0) if self.group else 0,
                group=self.group,
            )
            if not self.moves(chunk):
                self.upload(chunk)

    def upload(self, chunk: Chunk) -> None:
        """Copy a resident chunk's host values to the device."""
        n = chunk.numel
        self.arena.flat(chunk.offset, n, self.dtype).copy_(chunk.host[:n])

    def _show(self, chunk: Chunk) -> None:
        """Point the parameters at the chunk's place on the device."""
        views = chunk.views.get(chunk.offset)
        if views is None:
            views = [
                self.arena.view(chunk.offset + s.offset, s.size, s.stride, self.dtype)
                for s in chunk.slots
            ]
            if len(chunk.views) < 64:
                chunk.views[chunk.offset] = views
        for slot, view in zip(chunk.slots, views, strict=True):
            slot.parameter.data = view

    # -- fetching ----------------------------------------------------------------------------

    def fetch(self, chunk: Chunk) -> None:
        """Make a chunk present and ready on the device."""
        if not self.moves(chunk):
            return
        chunk.untouched, chunk.unused_prefetches = False, 0
        self.cache.advance(chunk.index)
        if chunk.index not in self.cache.offset:
            if self.cache.next_use(chunk.index) == FAR:
                self.unplanned_fetches += 1
            if not self._load(chunk, -1):
                self.make_room()
                if not self._load(chunk, -1):
                    raise BudgetExceededError(
                        f"chunk {chunk.index} ({', '.join(chunk.plan.parameters[:3])}): "
                        f"{chunk.plan.bytes} bytes do not fit beside the pinned chunks in the "
                        f"cache of "
                        f"{self.plan.cache_bytes} bytes; plan with recompute='none' or a larger "
                        f"budget"
                    )
        if chunk.handle is not None:
            chunk.handle.wait()
            chunk.handle = None
            chunk.to(State.HOLD)

    def make_room(self) -> None:
        """Unpin what is pinned only for convenience; called when a chunk does not fit."""

    def _load(self, chunk: Chunk, not_before: int) -> bool:
        found = self.cache.fit(chunk.index, not_before)
        if found is None:
            return False
        offset, victims = found
        for victim in victims:
            self.evict(self.chunks[victim])
        if chunk.stepping is not None:
            chunk.stepping.result()
            chunk.stepping = None
        if chunk.gathering is not None:
            chunk.gathering.wait()
            chunk.gathering = None
        self._wait_for_readers(offset, offset + chunk.plan.bytes)
        self.cache.place(chunk.index, offset)
        chunk.to(State.LOADING)
        chunk.offset = self.base + offset
        n = chunk.numel
        chunk.handle = self.mover.h2d(self.arena.flat(chunk.offset, n, self.dtype), chunk.host[:n])
        self._show(chunk)
        held = self.base + sum(self.chunks[c].plan.bytes for c in self.cache.offset)
        self.peak_bytes = max(self.peak_bytes, held)
        return True

    def _wait_for_readers(self, begin: int, end: int) -> None:
        """Order the next upload after the kernels that read what lay there."""
        kept = []
        for low, high, mark in self._freed:
            if low < end and begin < high:
                self.mover.after(mark)
                if low < begin:
                    kept.append((low, begin, mark))
                if high > end:
                    kept.append((end, high, mark))
            else:
                kept.append((low, high, mark))
        self._freed = kept

    def prefetch(self) -> None:
        """Load the chunks that come next, as long as that takes nothing needed earlier."""
        depth = self.plan.prefetch
        if not depth:
            return
        cache = self.cache
        for index in prefetch_order(cache, self.steps, cache.position, depth):
            chunk = self.chunks[index]
            if chunk.unused_prefetches > 1:  # routed elsewhere lately: on demand again
                continue
            if not self._load(chunk, cache.next_use(index)):
                break
            chunk.untouched = True

    def evict(self, chunk: Chunk) -> None:
        """Drop a chunk's copy on the device (the host has the values)."""
        if chunk.handle is not None:
            chunk.handle.wait()
            chunk.handle = None
        if chunk.untouched:
            chunk.unused_prefetches += 1
            chunk.untouched = False
        if chunk.last_use is not None:
            begin = self.cache.offset[chunk.index]
            self._freed.append((begin, begin + chunk.plan.bytes, chunk.last_use))
            chunk.last_use = None
        self.cache.drop(chunk.index)
        chunk.to(State.FREE)
        for slot in chunk.slots:
            slot.parameter.data = slot.nan
        if self.poison and self.device.type == "cpu":
            self.arena.poison(chunk.offset, chunk.plan.bytes)
        chunk.offset = -1

    # -- values between steps ----------------------------------------------------------------

    def invalidate(self, chunk: Chunk) -> None:
        """After the host copy changed: drop the device's copy."""
        chunk.version += 1
        if self.moves(chunk):
            if chunk.index in self.cache.offset:
                self.evict(chunk)
        elif chunk.plan.tier == "pinned":
            self.upload(chunk)

    def settle(self) -> None:
        """Wait until host copies are complete and current."""
        for chunk in self.chunks:
            if chunk.stepping is not None:
                chunk.stepping.result()
                chunk.stepping = None
            if chunk.gathering is not None:
                chunk.gathering.wait()
                chunk.gathering = None
                if not self.moves(chunk):
                    self.upload(chunk)
            if chunk.plan.tier == "device":
                n = chunk.numel
                chunk.host[:n].copy_(self.arena.flat(chunk.offset, n, self.dtype))

    def value(self, chunk: Chunk, slot: Slot) -> Tensor:
        """Return a view of a parameter's host copy."""
        return chunk.host.as_strided(slot.size, slot.stride, slot.offset // self.dtype.itemsize)


def _fingerprint(named: Sequence[tuple[str, nn.Parameter]]) -> str:
    text = ";".join(f"{n}:{tuple(p.shape)}:{p.requires_grad}" for n, p in named)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
