"""The engine: fetches chunks when modules and autograd ask for them, and drops them for others.

Forward: a module's hook fetches and pins the chunks of its parameters. Saved weights are packed as
(chunk, offset) and fetched again, into any block, when their node runs in the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from elixir.errors import BudgetExceededError, StalePlanError
from elixir.memory.arena import Arena
from elixir.memory.chunk import Chunk, Slot, State
from elixir.memory.mover import CudaMover, HostMover
from elixir.optim.adamw import dense
from elixir.planner.cache import FAR, Cache
from elixir.planner.packing import aligned
from elixir.planner.result import Plan
from elixir.planner.simulate import prefetch_order
from elixir.profile.trace import find_blocks
from elixir.runtime import recompute
from elixir.runtime.gradients import Gradients

queue_callback = torch.autograd.Variable._execution_engine.queue_callback


class _Saved:
    """A saved weight: where it lies in its chunk, not where the chunk lies."""

    __slots__ = ("chunk", "dtype", "offset", "size", "stride", "version")

    def __init__(self, chunk: Chunk, offset: int, tensor: Tensor) -> None:
        self.chunk, self.offset, self.version = chunk, offset, chunk.version
        self.size, self.stride, self.dtype = tensor.size(), tensor.stride(), tensor.dtype


class Engine:
    """Runs a module under a plan.

    Parameters
    ----------
    model
        The module; its parameters' storage moves into the plan's tiers.
    plan
        Made for this module.
    mover
        Copies; by default unthrottled on the CPU, streams on CUDA.
    poison
        Fill dropped blocks with NaN.
    disk_folder
        Where optimizer states of tier ``disk`` live.
    process_group
        Ranks that share the training; by default the default group if there is one.
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
        self.in_backward = False
        self.unplanned_fetches = 0
        self.peak_bytes = 0
        self._freed: list[tuple[int, int, Any]] = []
        self._node: Any = None
        self._node_pins: list[Chunk] = []
        self._late_pins: list[Chunk] = []
        self._depth = 0
        self._recomputing = 0
        self._warned = False
        self.gradients = Gradients(self)
        self._handles: list[Any] = []
        self._install()

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

    def _install(self) -> None:
        model, plan = self.model, self.plan
        modules = dict(model.named_modules())
        for name in plan.recompute:
            if name not in modules:
                raise StalePlanError(f"plan: recomputes {name}, which the model does not have")
        needs: dict[str, list[Chunk]] = {}
        for name, module in modules.items():
            wanted = [
                self._by_parameter[id(p)][0] for p in module._parameters.values() if p is not None
            ]
            wanted += [self.home[n] for n in plan.extras.get(name, ())]
            moving = list({c.index: c for c in wanted if self.moves(c)}.values())
            if moving:
                needs[name] = moving
                self._hook(module, moving)
        self._needs = needs
        self._recomputed: list[str] = []
        self._recompute(plan.recompute)
        for chunk in self.chunks:
            for slot in chunk.slots:
                if slot.trainable:
                    hook = self.gradients.hook(chunk, slot)
                    self._handles.append(slot.parameter.register_post_accumulate_grad_hook(hook))
        self._original = model.__dict__.get("forward")
        inner = model.forward
        hooks = self._saved_hooks() if any(map(self.moves, self.chunks)) else None

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._depth or torch._C._current_graph_task_id() != -1:
                return inner(*args, **kwargs)
            self.reset()
            if plan.batch_bytes:
                self._check_batch((args, kwargs))
            self._depth += 1
            try:
                if hooks is None:
                    return inner(*args, **kwargs)
                with torch.autograd.graph.saved_tensors_hooks(*hooks):
                    return inner(*args, **kwargs)
            finally:
                self._depth -= 1

        model.forward = forward
        model._elixir_engine = self  # type: ignore[assignment]
        self._handles.append(
            model.register_state_dict_post_hook(lambda *a: self._fill_state_dict(*a))
        )
        self._handles.append(
            model.register_load_state_dict_pre_hook(lambda *a: self._before_load(*a))
        )
        self._handles.append(
            model.register_load_state_dict_post_hook(lambda *a: self._after_load(*a))
        )

    def _recompute(self, names: Sequence[str]) -> None:
        modules = dict(self.model.named_modules())
        for name in names:
            session = self._recompute_session(self._needs.get(name, []))
            recompute.install(modules[name], session)
            self._recomputed.append(name)

    def _check_batch(self, inputs: Any) -> None:
        """Keep fewer activations when a batch goes beyond the plan."""
        size = sum(t.nbytes for t in tree_flatten(inputs)[0] if isinstance(t, Tensor))
        if size <= self.plan.batch_bytes or not torch.is_grad_enabled():
            return
        if not self._warned:
            more = [n for n in find_blocks(self.model) if n not in self._recomputed]
            self._recompute(more)
            self._warned = True
            warnings.warn(
                f"the batch has {size} bytes, planned were {self.plan.batch_bytes}: every "
                f"repeated block is "
                "recomputed from here on; make a new plan for this batch",
                RuntimeWarning,
                stacklevel=3,
            )

    def _hook(self, module: nn.Module, chunks: list[Chunk]) -> None:
        def before(_: nn.Module, __: Any) -> None:
            self.enter(chunks)

        def after(_: nn.Module, __: Any, ___: Any) -> None:
            self.leave(chunks)

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after, always_call=True))

    def _recompute_session(self, own: list[Chunk]) -> Callable[[], AbstractContextManager[None]]:
        pack, unpack = self._saved_hooks()

        @contextmanager
        def session() -> Iterator[None]:
            self._begin_backward()
            self._recomputing += 1
            self._depth += 1
            self.enter(own)
            try:
                with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                    yield
            finally:
                self.leave(own)
                self._recomputing -= 1
                self._depth -= 1

        return session

    def _saved_hooks(self) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
        address, base = self.arena.address, self.base

        def pack(tensor: Tensor) -> Any:
            if tensor.device.type != self.device.type or tensor.layout != torch.strided:
                return tensor
            if tensor.untyped_storage().data_ptr() != address:
                return tensor
            offset = int(tensor.storage_offset()) * tensor.element_size()
            if offset < base:
                return tensor
            index = self.cache.at(offset - base)
            if index is None:
                raise RuntimeError("a saved tensor lies in a block that no chunk holds")
            chunk = self.chunks[index]
            return _Saved(chunk, offset - chunk.offset, tensor)

        def unpack(saved: Any) -> Tensor:
            if not isinstance(saved, _Saved):
                return saved  # type: ignore[no-any-return]
            chunk = saved.chunk
            if saved.version != chunk.version:
                raise RuntimeError(
                    f"one of the parameters {', '.join(chunk.plan.parameters[:3])} needed for the "
                    "gradient was changed (optimizer step or edit) after the forward pass"
                )
            self._begin_backward()
            node = torch._C._current_autograd_node()
            if node is not self._node:
                self._release_node()
                self._node = node
            self.fetch(chunk)
            self.cache.pins[chunk.index] += 1
            self._node_pins.append(chunk)
            self._prefetch()
            return self.arena.view(
                chunk.offset + saved.offset, saved.size, saved.stride, saved.dtype
            )

        return pack, unpack

    # -- fetching ----------------------------------------------------------------------------

    def enter(self, chunks: Sequence[Chunk]) -> None:
        """Fetch and pin the chunks of a module that is about to run."""
        pins = self.cache.pins
        late = torch._C._current_graph_task_id() != -1 and not self._recomputing
        if late:
            # torch.utils.checkpoint keeps what it recomputes beside our hooks: pin until the
            # gradients are in
            self._begin_backward()
        for chunk in chunks:
            pins[chunk.index] += 1
            if late:
                pins[chunk.index] += 1
                self._late_pins.append(chunk)
        for chunk in chunks:
            self.fetch(chunk)
        self._prefetch()

    def leave(self, chunks: Sequence[Chunk]) -> None:
        """Unpin the chunks of a module that has run."""
        pins = self.cache.pins
        for chunk in chunks:
            if pins[chunk.index]:
                pins[chunk.index] -= 1
            chunk.last_use = self.mover.mark()

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
                self._release_node()
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

    def _prefetch(self) -> None:
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

    # -- backward ----------------------------------------------------------------------------

    def _begin_backward(self) -> None:
        if not self.in_backward and torch._C._current_graph_task_id() != -1:
            self.in_backward = True
            queue_callback(self._end_backward)

    def _release_node(self) -> None:
        for chunk in self._node_pins:
            self.cache.pins[chunk.index] -= 1
            chunk.last_use = self.mover.mark()
        self._node_pins.clear()
        self._node = None

    def release_late(self, chunk: Chunk) -> None:
        """Unpin what a checkpoint recomputed, now that the chunk's gradients are in."""
        kept = []
        for other in self._late_pins:
            if other is chunk:
                self.cache.pins[chunk.index] -= 1
                chunk.last_use = self.mover.mark()
            else:
                kept.append(other)
        self._late_pins = kept

    def _end_backward(self) -> None:
        self._release_node()
        for chunk in self._late_pins:
            self.cache.pins[chunk.index] -= 1
            chunk.last_use = self.mover.mark()
        self._late_pins.clear()
        self.in_backward = False
        self.gradients.end_backward()

    def reset(self) -> None:
        """Forget the pins of a pass that was cut short; the next pass starts clean."""
        self._node_pins.clear()
        self._late_pins.clear()
        self._node = None
        self._recomputing = 0
        if self.in_backward:
            self.in_backward = False
            self.gradients.abort_backward()
        for index in range(len(self.cache.pins)):
            self.cache.pins[index] = 0
        self.cache.position = -1

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

    @contextmanager
    def edit(self) -> Iterator[None]:
        """Let the parameters be read and written in place, on the host."""
        self.settle()
        for chunk in self.chunks:
            if self.moves(chunk) and chunk.index in self.cache.offset:
                self.evict(chunk)
            for slot in chunk.slots:
                slot.parameter.data = self.value(chunk, slot)
        try:
            yield
        finally:
            for chunk in self.chunks:
                for slot in chunk.slots:
                    slot.parameter.data = slot.nan
                chunk.version += 1
                if not self.moves(chunk):
                    self.upload(chunk)
                    self._show(chunk)
            self.edited()

    def edited(self) -> None:
        """Let the optimizer take fp32 masters from edited values (it sets this)."""

    def _fill_state_dict(
        self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any
    ) -> None:
        self.settle()
        names = {id(s.parameter): (c, s) for c in self.chunks for s in c.slots}
        for name, p in module.named_parameters(remove_duplicate=False):
            if prefix + name in state and id(p) in names:
                state[prefix + name] = self.value(*names[id(p)]).clone()

    def _before_load(self, module: nn.Module, *_: Any) -> None:
        self._editing = self.edit()
        self._editing.__enter__()

    def _after_load(self, module: nn.Module, _: Any) -> None:
        self._editing.__exit__(None, None, None)

    def close(self) -> None:
        """Give the model its parameters back, as ordinary tensors on the host."""
        if not hasattr(self.model, "_elixir_engine"):
            return
        self.settle()
        for handle in self._handles:
            handle.remove()
        self.model.__dict__.pop("forward", None)
        if self._original is not None:
            self.model.forward = self._original
        modules = dict(self.model.named_modules())
        for name in self._recomputed:
            recompute.uninstall(modules[name])
        for chunk in self.chunks:
            for slot in chunk.slots:
                slot.parameter.data = self.value(chunk, slot).clone()
        del self.model._elixir_engine
        self.gradients.close()
        self.mover.close()


def _fingerprint(named: Sequence[tuple[str, nn.Parameter]]) -> str:
    import hashlib

    text = ";".join(f"{n}:{tuple(p.shape)}:{p.requires_grad}" for n, p in named)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
