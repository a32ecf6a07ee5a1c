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
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from elixir.errors import StalePlanError
from elixir.memory.chunk import Chunk
from elixir.memory.simulated import place
from elixir.planner.result import Plan
from elixir.profile.operators import Operator
from elixir.profile.trace import find_blocks
from elixir.runtime import offload, recompute
from elixir.runtime.divide import Link, uninstall
from elixir.runtime.gradients import Gradients
from elixir.runtime.residency import Residency
from elixir.runtime.saved import SavedWeights
from elixir.runtime.tile import Tiles

queue_callback = torch.autograd.Variable._execution_engine.queue_callback


class Engine(Residency):
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
    link
        Ranks over which the plan's operators are divided.
    tiles
        The model's split weights.
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
        super().__init__(
            model,
            plan,
            mover=mover,
            poison=poison,
            disk_folder=disk_folder,
            process_group=process_group,
            link=link,
            tiles=tiles,
        )
        self.in_backward = False
        self.saved = SavedWeights(self)
        self._buffers = {b.untyped_storage()._cdata for b in model.buffers()}
        carrier = offload.HostCarrier(self.mover, self.device, plan.offload_bytes)
        self.tape = offload.Tape(carrier, self._stays)
        self._late_pins: list[Chunk] = []
        self._depth = 0
        self._recomputing = 0
        self._warned = False
        self.gradients = Gradients(self)
        self._handles: list[Any] = []
        self._install()

    # -- construction ------------------------------------------------------------------------

    def _install(self) -> None:
        model, plan = self.model, self.plan
        modules = dict(model.named_modules())
        for name in (*plan.recompute, *plan.offload):
            if name not in modules:
                raise StalePlanError(f"plan: names {name}, which the model does not have")
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
        for name in plan.offload:
            offload.install(modules[name], (self._pack, self._unpack))
        for chunk in self.chunks:
            for slot in chunk.slots:
                if slot.trainable:
                    hook = self.gradients.hook(chunk, slot)
                    self._handles.append(slot.parameter.register_post_accumulate_grad_hook(hook))
        self._original = model.__dict__.get("forward")
        inner = model.forward
        hooks = self.saved.hooks() if any(map(self.moves, self.chunks)) else None

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._depth or torch._C._current_graph_task_id() != -1:
                return inner(*args, **kwargs)
            self.reset()
            self.tape.begin()
            if plan.batch_bytes:
                self._check_batch((args, kwargs))
            self._depth += 1
            try:
                self.prefetch()
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

    def _pack(self, tensor: Tensor) -> Any:
        """Keep a weight's place, or an activation on the host."""
        packed = self.saved.pack(tensor)
        return self.tape.pack(tensor) if packed is tensor else packed

    def _unpack(self, packed: Any) -> Tensor:
        return self.tape.unpack(self.saved.unpack(packed))

    def _stays(self, tensor: Tensor) -> bool:
        if tensor.device.type != self.device.type:
            return True
        storage = tensor.untyped_storage()
        return storage.data_ptr() == self.arena.address or storage._cdata in self._buffers

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
            taken = {*self._recomputed, *self.plan.offload}
            more = [n for n in find_blocks(self.model) if n not in taken]
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
        pack, unpack = self.saved.hooks()

        @contextmanager
        def session() -> Iterator[None]:
            self.begin_backward()
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

    # -- fetching ----------------------------------------------------------------------------

    def enter(self, chunks: Sequence[Chunk]) -> None:
        """Fetch and pin the chunks of a module that is about to run."""
        pins = self.cache.pins
        late = torch._C._current_graph_task_id() != -1 and not self._recomputing
        if late:
            # torch.utils.checkpoint keeps what it recomputes beside our hooks: pin until the
            # gradients are in
            self.begin_backward()
        for chunk in chunks:
            pins[chunk.index] += 1
            if late:
                pins[chunk.index] += 1
                self._late_pins.append(chunk)
        for chunk in chunks:
            self.fetch(chunk)
        self.prefetch()

    def leave(self, chunks: Sequence[Chunk]) -> None:
        """Unpin the chunks of a module that has run."""
        pins = self.cache.pins
        for chunk in chunks:
            if pins[chunk.index]:
                pins[chunk.index] -= 1
            chunk.last_use = self.mover.mark()

    # -- backward ----------------------------------------------------------------------------

    def begin_backward(self) -> None:
        """Note that a backward pass is running; its end is handled by a callback."""
        if not self.in_backward and torch._C._current_graph_task_id() != -1:
            self.in_backward = True
            queue_callback(self._end_backward)

    def make_room(self) -> None:
        """Unpin the weights of the last node."""
        self.saved.release()

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
        self.saved.release()
        for chunk in self._late_pins:
            self.cache.pins[chunk.index] -= 1
            chunk.last_use = self.mover.mark()
        self._late_pins.clear()
        self.in_backward = False
        self.gradients.end_backward()

    def reset(self) -> None:
        """Forget the pins of a pass that was cut short; the next pass starts clean."""
        self.saved.forget()
        self._late_pins.clear()
        self._recomputing = 0
        if self.in_backward:
            self.in_backward = False
            self.gradients.abort_backward()
        for index in range(len(self.cache.pins)):
            self.cache.pins[index] = 0
        self.cache.position = -1

    # -- values between steps ----------------------------------------------------------------

    @contextmanager
    def edit(self) -> Iterator[None]:
        """Let the parameters be read and written in place, on the host; all ranks enter it.

        Of the ranks that share memory each sees its own edits; the first one's are kept.
        """
        self.settle()
        snapshot = self.detach()
        for chunk in self.chunks:
            if self.moves(chunk) and chunk.index in self.cache.offset:
                self.evict(chunk)
            for slot in chunk.slots:
                place(slot.parameter, self.value(chunk, slot))
        try:
            yield
        finally:
            self.attach(snapshot)
            for chunk in self.chunks:
                for slot in chunk.slots:
                    place(slot.parameter, slot.nan)
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
                state[prefix + name] = self.whole(*names[id(p)]).clone()
        if self.tiles is not None:
            self.tiles.join_state(state, prefix)

    def _before_load(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if self.tiles is not None:
            self.tiles.cut_state(state, prefix)
        for name, chunk in self.home.items():
            part = next(s.part for s in chunk.slots if s.name == name)
            if part is not None and prefix + name in state:
                state[prefix + name] = part.cut(state[prefix + name])
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
        for name in (*self.plan.offload, *self._recomputed):
            recompute.uninstall(modules[name])
        for chunk in self.chunks:
            for slot in chunk.slots:
                place(slot.parameter, self.value(chunk, slot).clone())
        if self.tiles is not None:
            self.tiles.remove()
        if self.link is not None:
            join = self.link.whole
            operators = [Operator(*o) for o in self.plan.operators]
            uninstall(self.model, operators, lambda p, part: join(p.data, part))
        if self.shared is not None:
            self.shared.close()
        del self.model._elixir_engine
        self.gradients.close()
        self.mover.close()
