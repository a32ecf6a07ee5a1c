"""Where chunks are: host copies, the arena, and the traffic between them."""

from __future__ import annotations

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
from elixir.memory.shared import SharedHost
from elixir.memory.simulated import DEVICES, place
from elixir.optim.adamw import dense
from elixir.planner.cache import FAR, Cache
from elixir.planner.packing import aligned, share_elements
from elixir.planner.result import Plan
from elixir.planner.simulate import prefetch_order
from elixir.profile.parts import fingerprint, origin_of, part_of
from elixir.runtime.divide import Link
from elixir.runtime.tile import Tiles


class Residency:
    """The chunks of a model and their places; knows nothing of modules' calls or of autograd.

    Parameters
    ----------
    model, plan, mover, poison, disk_folder, process_group, link, tiles
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
        link: Link | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        self.model, self.plan, self.poison = model, plan, poison
        self.disk_folder = disk_folder
        self.device = torch.device(plan.device)
        self.dtype: torch.dtype = getattr(torch, plan.dtype)
        self.group, self.link, self.tiles = process_group, link, tiles
        distributed = dist.is_available() and dist.is_initialized()
        if link is not None and process_group is None:
            distributed = False  # every rank is one of the link's, and none shares its state
        self.world = dist.get_world_size(self.group) if distributed else 1
        self.rank = dist.get_rank(self.group) if distributed else 0
        if self.world > 1 and self.device.type in DEVICES:
            raise ValueError(f"device={plan.device!r}: a simulated device serves one rank only")
        named = list(model.named_parameters(remove_duplicate=True))
        plan.check_model(fingerprint(model))
        if any(p.device.type == "meta" for _, p in named):
            raise StalePlanError(
                "model: has parameters on meta; give them values before initialize"
            )
        if hasattr(model, "_elixir_engine"):
            raise ValueError("model: is already initialized")
        self.mover = mover or (
            CudaMover(self.device) if self.device.type == "cuda" else HostMover()
        )
        outside = 0  # gradients of resident chunks, see Gradients
        if plan.keep_gradients and self.device.type == "cpu":
            outside = sum(c.bytes for c in plan.chunks if c.tier == "device")
        self.arena = Arena(plan.cache_bytes + plan.resident_bytes - outside, self.device)
        self.chunks: list[Chunk] = []
        self.home: dict[str, Chunk] = {}
        self._by_parameter: dict[int, tuple[Chunk, Slot]] = {}
        self.shared: SharedHost | None = None
        self._exchanges: list[Any] = []
        self._take(dict(named))
        if tiles is not None:
            tiles.release()
        for _, buffer in model.named_buffers():
            target = self.dtype if buffer.is_floating_point() else buffer.dtype
            place(buffer, buffer.data.to(self.device, target))
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

    def _hosts(self) -> list[Tensor]:
        """Return the chunks' host memory: divided ones lie in what a machine's ranks share."""
        pin, size = self.device.type == "cuda", self.dtype.itemsize
        shares = [share_elements(c.bytes, size, self.world) for c in self.plan.chunks]
        begins, total = [], 0
        for planned, share in zip(self.plan.chunks, shares, strict=True):
            divided = self.world > 1 and planned.shard != "replicate"
            begins.append(total if divided else -1)
            total += aligned(share * self.world * size) if divided else 0
        if total:
            self.shared = SharedHost(total, self.group, pin=pin)
        hosts = []
        for begin, share in zip(begins, shares, strict=True):
            if begin < 0 or self.shared is None:
                hosts.append(torch.zeros(share * self.world, dtype=self.dtype, pin_memory=pin))
            else:
                end = begin + share * self.world * size
                hosts.append(self.shared.data[begin:end].view(self.dtype))
        return hosts

    def _take(self, named: dict[str, nn.Parameter]) -> None:
        nan = torch.full((1,), float("nan"), dtype=self.dtype, device=self.device)
        for index, (planned, host) in enumerate(zip(self.plan.chunks, self._hosts(), strict=True)):
            elements = planned.bytes // self.dtype.itemsize
            share = host.numel() // self.world
            slots = []
            counts = planned.gradients or (1,) * len(planned.parameters)
            for name, offset, count in zip(
                planned.parameters, planned.offsets, counts, strict=True
            ):
                p = named[name]
                stride = dense(p)
                begin = offset // self.dtype.itemsize
                if self.rank == 0:  # the others' values do not count
                    with torch.no_grad():
                        flat = host[begin : begin + p.numel()]
                        strided(flat, p.shape, stride).copy_(p.detach())
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
                        part_of(p),
                        origin_of(p),
                    )
                )
                place(p, slots[-1].nan)
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
                self._show(chunk)
            if planned.tier == "device":
                if self.plan.keep_gradients and self.device.type != "cpu":
                    chunk.gradient_offset = self.arena.carve(planned.bytes)
                states = 2 if self.dtype == torch.float32 else 3
                chunk.state_offsets = [self.arena.carve(4 * elements) for _ in range(states)]
        if self.device.type in DEVICES:  # it refuses to read what has no memory: better than NaN
            nan.untyped_storage().resize_(0)
        if self.world > 1:
            self._spread()
        for chunk in self.chunks:
            if not self.moves(chunk):
                self.upload(chunk)

    def _spread(self) -> None:
        """Give every rank the parameters of rank 0."""
        if self.shared is not None:
            self.shared.spread()
        first = dist.get_global_rank(self.group, 0) if self.group else 0
        for chunk in self.chunks:
            if chunk.replicated:
                dist.broadcast(chunk.host, first, group=self.group)

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
        if self.poison and self.device.type != "cuda":
            self.arena.poison(chunk.offset, chunk.plan.bytes)
        chunk.offset = -1

    # -- values between steps ----------------------------------------------------------------

    def invalidate(self, chunk: Chunk) -> None:
        """After the host copy changed: drop the device's copy."""
        chunk.version += 1
        if self.moves(chunk):
            if chunk.index in self.cache.offset:
                self.evict(chunk)
        elif chunk.plan.tier == "pinned" or self.world > 1:
            self.upload(chunk)

    def begin_update(self) -> None:
        """Return when the host copies may be written: no rank of the machine computes on them.

        A copy to the device that is still under way may mix old and new values; every chunk that
        is updated is dropped from the device before anybody reads it there.
        """
        if self.shared is not None:
            self.shared.meet()

    def updated(self, chunk: Chunk) -> None:
        """Note that this rank's part is new; a machine of one rank starts the exchange."""
        if self.shared is not None and not self.shared.shared and not chunk.replicated:
            self._exchanges += self.shared.begin_exchange(chunk.host)

    def end_update(self) -> None:
        """Return when the host copies are complete, parts of other ranks included."""
        shared = self.shared
        if shared is None:
            return
        if shared.shared:
            shared.meet()
            for chunk in reversed(self.chunks):
                if not chunk.replicated:
                    self._exchanges += shared.begin_exchange(chunk.host)
        for work in self._exchanges:
            work.wait()
        self._exchanges.clear()
        if shared.shared and len(shared.machines) > 1:
            shared.meet()

    def detach(self) -> Tensor | None:
        """Let this rank write its host copies alone, beside the other ranks of its machine."""
        if self.shared is None or not self.shared.shared:
            return None
        snapshot = self.shared.snapshot()
        self._swap(self.shared.data, snapshot)
        return snapshot

    def attach(self, snapshot: Tensor | None) -> None:
        """End :meth:`detach`: the machine's first rank decides what the host copies hold."""
        if self.shared is not None and snapshot is not None:
            self._swap(snapshot, self.shared.data)
            self.shared.commit(snapshot)

    def _swap(self, old: Tensor, new: Tensor) -> None:
        for chunk in self.chunks:
            if not chunk.replicated:
                begin = chunk.host.data_ptr() - old.data_ptr()
                chunk.host = new[begin : begin + chunk.host.nbytes].view(self.dtype)

    def settle(self) -> None:
        """Wait until host copies are complete and current."""
        for chunk in self.chunks:
            if chunk.stepping is not None:
                chunk.stepping.result()
                chunk.stepping = None
            if chunk.plan.tier == "device" and self.world == 1:
                n = chunk.numel
                chunk.host[:n].copy_(self.arena.flat(chunk.offset, n, self.dtype))

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0 and (self.link is None or self.link.rank == 0)

    def whole(self, chunk: Chunk, slot: Slot) -> Tensor:
        """Return a parameter's value, put together where operators are divided."""
        mine = self.value(chunk, slot)
        return mine if self.link is None or slot.part is None else self.link.whole(mine, slot.part)

    def value(self, chunk: Chunk, slot: Slot) -> Tensor:
        """Return a view of a parameter's host copy."""
        return strided(chunk.flat(slot, chunk.host), slot.size, slot.stride)


def strided(flat: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return a flat tensor's elements under a shape and strides."""
    return flat.as_strided(size, stride, flat.storage_offset())
