"""The optimizer over chunks: after the backward pass, or during it with exact rollback."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from elixir.errors import UnsupportedOptimizerError
from elixir.memory.chunk import Chunk, Slot
from elixir.optim.adamw import AdamW, check_hyperparameters
from elixir.optim.kernels import square_sum
from elixir.runtime.engine import Engine
from elixir.runtime.residency import strided
from elixir.runtime.scaler import LossScaler
from elixir.runtime.states import ChunkStates

FUSED = (torch.optim.AdamW, torch.optim.Adam, AdamW)
PAIR = tuple[Chunk, Slot]


class ChunkOptimizer(torch.optim.Optimizer):
    """An optimizer whose parameters live in chunks.

    Parameters
    ----------
    engine
        Holds the chunks.
    optimizer_cls
        The optimizer asked for.
    params
        Groups of the model's parameters; by default all trainable ones.
    max_grad_norm
        Clip to this L2 norm in every step.
    loss_scale
        A number, ``"dynamic"`` or a :class:`LossScaler`; multiply the loss with
        ``optimizer.scale(loss)``.
    step_in_backward
        Update a chunk as soon as its gradients are in; by default the plan's choice. With
        clipping or
        loss scaling the update is speculative and undone exactly where it proves wrong.
    undo_budget
        Bytes for undo copies; chunks beyond it wait for the end of the backward pass.
    accumulate_in_fp32
        Sum low-precision gradients of several backward passes in fp32.

    Raises
    ------
    UnsupportedOptimizerError
        For amsgrad, optimizers that need a closure, or other optimizers on divided chunks.
    """

    def __init__(
        self,
        engine: Engine,
        optimizer_cls: type[torch.optim.Optimizer],
        params: Iterable[Any] | None = None,
        *,
        max_grad_norm: float | None = None,
        loss_scale: float | str | LossScaler | None = None,
        step_in_backward: bool | None = None,
        undo_budget: int | None = None,
        accumulate_in_fp32: bool = False,
        **options: Any,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={max_grad_norm}: must be positive")
        self.engine, self.max_grad_norm = engine, max_grad_norm
        self.scaler = _scaler(loss_scale)
        if not engine.plan.keep_gradients:
            _check_direct(engine, optimizer_cls, max_grad_norm, self.scaler, step_in_backward)
        self.fused = optimizer_cls in FUSED
        self.decoupled = optimizer_cls is not torch.optim.Adam
        self.undo_budget = undo_budget
        self.last_norm: float | None = None
        self.skipped_steps = 0
        self.undone = 0
        self._pairs = {id(s.parameter): (c, s) for c in engine.chunks for s in c.slots}
        self._options_used = options
        self._pool: ThreadPoolExecutor | None = None
        self._stepped: dict[int, dict[str, list[Tensor]] | None] = {}
        self._direct_done: set[str] = set()
        self._undo_bytes = 0
        if params is None:
            params = [p for p in engine.model.parameters() if p.requires_grad]
        elif engine.tiles is not None:
            params = engine.tiles.expand(params)
        defaults = self._defaults(optimizer_cls, options)
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in self._pairs:
                    raise ValueError("params: a parameter does not belong to the model")
        engine.gradients.through_host = not self.fused
        if accumulate_in_fp32:
            engine.gradients.accumulate_dtype = torch.float32
        self.states: ChunkStates | None = None
        self.inner: torch.optim.Optimizer | None = None
        if self.fused:
            self.states = ChunkStates(engine, eight_bit=engine.plan.moments == "8bit")
        else:
            self._make_inner(optimizer_cls)
        engine.edited = self._edited  # type: ignore[method-assign]
        self._group_of = {id(p): g for g in self.param_groups for p in g["params"]}
        wanted = engine.plan.step_in_backward if step_in_backward is None else step_in_backward
        self.step_in_backward = bool(wanted) and self.fused and engine.world == 1
        if self.step_in_backward:
            engine.gradients.on_complete = self._completed
            engine.gradients.on_late = self._late
            if not engine.plan.keep_gradients:
                engine.gradients.direct = self._direct
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="elixir-adam")

    def _defaults(
        self, optimizer_cls: type[torch.optim.Optimizer], options: dict[str, Any]
    ) -> dict[str, Any]:
        if not self.fused:
            if optimizer_cls is torch.optim.LBFGS:
                raise UnsupportedOptimizerError(
                    "optimizer_cls=LBFGS: evaluates the model inside its step; use a "
                    "first-order optimizer"
                )
            return dict(options)
        known = {"lr", "betas", "eps", "weight_decay", "maximize", "fused", "foreach", "amsgrad"}
        if unknown := sorted(set(options) - known):
            raise ValueError(f"{unknown[0]}: no option of {optimizer_cls.__name__} on chunks")
        if options.get("amsgrad"):
            raise UnsupportedOptimizerError(
                "amsgrad=True: not offered on chunks; use amsgrad=False"
            )
        decay = 0.01 if self.decoupled else 0.0
        defaults: dict[str, Any] = {
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": decay,
            "maximize": False,
        }
        defaults.update({k: v for k, v in options.items() if k in defaults})
        check_hyperparameters(
            defaults["lr"], defaults["betas"], defaults["eps"], defaults["weight_decay"]
        )
        return defaults

    def _make_inner(self, optimizer_cls: type[torch.optim.Optimizer]) -> None:
        """Run any other optimizer, tensor by tensor, on host copies of the parameters."""
        engine = self.engine
        if engine.world > 1 and any(c.plan.shard != "replicate" for c in engine.chunks):
            raise UnsupportedOptimizerError(
                f"optimizer_cls={optimizer_cls.__name__}: over several ranks only AdamW divides "
                f"its "
                "states; use plan.override('*', shard='replicate')"
            )
        self.masters: dict[int, nn.Parameter] = {}
        groups = []
        for group in self.param_groups:
            mine = []
            for p in group["params"]:
                chunk, slot = self._pairs[id(p)]
                value = engine.value(chunk, slot)
                master = nn.Parameter(value if value.dtype == torch.float32 else value.float())
                self.masters[id(p)] = master
                mine.append(master)
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": mine})
        try:
            self.inner = optimizer_cls(groups, **self._options_used)
        except TypeError as error:
            raise UnsupportedOptimizerError(
                f"optimizer_cls={optimizer_cls.__name__}: {error}"
            ) from None
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            for key, value in inner.items():
                outer.setdefault(key, value)

    # -- what a user calls -------------------------------------------------------------------

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the loss scale."""
        return self.scaler(loss) if self.scaler else loss

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients without stepping in the backward pass.

        Over several ranks only replicated chunks wait to be reduced: of the others each rank has
        room for its own part, which every pass adds to.
        """
        gradients = self.engine.gradients
        gradients.synchronize = False
        try:
            yield
        finally:
            gradients.synchronize = True

    @contextmanager
    def edit(self) -> Iterator[None]:
        """Let parameters be read and written in place, on the host, between steps."""
        with self.engine.edit():
            yield

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """Return a parameter's gradient, or None where it has none.

        ``parameter.grad`` itself is None: gradients live in their chunk's tier. On one rank this is
        a view; over several it is a copy of the mean over the ranks, put together from their
        parts: every rank calls it.
        """
        engine = self.engine
        if engine.tiles is not None and (tiles := engine.tiles.of.get(id(parameter))):
            found = [g for tile in tiles if (g := self.gradient(tile)) is not None]
            return torch.cat(found) if found else None
        chunk, slot = self._pairs[id(parameter)]
        if not slot.has_gradient:
            return None
        engine.gradients.ready(chunk)
        low, high = engine.gradients.held_range(chunk, slot)
        flat = engine.gradients.own(chunk, slot, low, high)
        if engine.world > 1:
            whole = torch.zeros(slot.numel, dtype=flat.dtype, device=engine.device)
            if not chunk.replicated or not chunk.reduced or engine.rank == 0:
                whole[low:high] = flat
            dist.all_reduce(whole, group=engine.group)
            flat = whole.div_(engine.world)
        return strided(flat, slot.size, slot.stride)

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Clip in the coming step to this norm; return the norm."""
        if self.step_in_backward:
            raise ValueError(
                "clip_grad_norm_: pass max_grad_norm to initialize when stepping in backward"
            )
        norm, _ = self._norm()
        self._coefficient = min(1.0, max_norm / (norm + 1e-6))
        return norm

    _coefficient: float | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.engine.gradients.forget()
        self._coefficient = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have gradients; skip the step on overflow."""
        if closure is not None:
            raise ValueError("closure: not offered on chunks; call backward() before step()")
        engine, gradients = self.engine, self.engine.gradients
        scale = 1.0 / engine.world
        coefficient = 1.0
        judged = self.scaler or self.max_grad_norm or self._coefficient is not None
        if judged or self.inner is not None:
            for chunk in engine.chunks:
                gradients.ready(chunk)
        for chunk in engine.chunks:
            if chunk.stepping is not None:
                chunk.stepping.result()
                chunk.stepping = None
        if judged:
            norm, bad = self._norm()
            self.last_norm = norm
            if self.scaler:
                scale /= self.scaler.scale
                self.scaler.update(bad)
            if bad and self.scaler:
                self._undo_all()
                self.skipped_steps += 1
                return None
            if self.max_grad_norm:
                coefficient = min(1.0, self.max_grad_norm / (norm + 1e-6))
            elif self._coefficient is not None:
                coefficient = self._coefficient
        scale *= coefficient
        if coefficient != 1.0:
            self._undo_all()
        if self.inner is not None:
            self._step_inner(scale)
        else:
            engine.begin_update()
            # in the order of the reductions: while one chunk is updated, the next is under way
            for chunk in reversed(engine.chunks):
                gradients.ready(chunk)
                if chunk.index not in self._stepped:
                    self._update(chunk, scale)
                engine.updated(chunk)
            engine.end_update()
            for chunk in engine.chunks:
                self._publish(chunk)
        self._stepped.clear()
        self._direct_done.clear()
        self._undo_bytes = 0
        return None

    # -- updates -----------------------------------------------------------------------------

    def _options(self, slot: Slot, scale: float) -> dict[str, Any] | None:
        group = self._group_of.get(id(slot.parameter))
        if group is None:
            return None
        sign = -1.0 if group["maximize"] else 1.0
        return {
            "lr": float(group["lr"]),
            "betas": group["betas"],
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "scale": sign * scale,
            "decoupled": self.decoupled,
        }

    def _update(self, chunk: Chunk, scale: float) -> None:
        assert self.states is not None
        for slot in chunk.slots:
            if slot.trainable and slot.has_gradient:
                options = self._options(slot, scale)
                if options is not None:
                    self.states.update(chunk, slot, options)

    def _publish(self, chunk: Chunk) -> None:
        """After an update: drop or refresh the device's copy."""
        engine = self.engine
        if not any(s.has_gradient for s in chunk.slots):
            return
        if engine.gradients.on_device(chunk):
            chunk.version += 1
            return
        if chunk.plan.tier == "device" and engine.world == 1:
            engine.upload(chunk)
        engine.invalidate(chunk)

    def _step_inner(self, scale: float) -> None:
        assert self.inner is not None
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({k: v for k, v in outer.items() if k != "params"})
        gradients = self.engine.gradients
        for group in self.param_groups:
            for p in group["params"]:
                chunk, slot = self._pairs[id(p)]
                master = self.masters[id(p)]
                master.grad = None
                if slot.has_gradient:
                    flat = gradients.own(chunk, slot, 0, slot.numel)
                    g = strided(flat, slot.size, slot.stride)
                    g = g if g.dtype == master.dtype else g.to(master.dtype)
                    master.grad = g if scale == 1.0 else g * scale
        with torch.enable_grad():
            self.inner.step()
        for group in self.param_groups:
            for p in group["params"]:
                chunk, slot = self._pairs[id(p)]
                if self.engine.dtype != torch.float32:
                    self.engine.value(chunk, slot).copy_(self.masters[id(p)].detach())
        for chunk in self.engine.chunks:
            self._publish(chunk)

    def _norm(self) -> tuple[float, bool]:
        """Return the unscaled L2 norm over all gradients and whether one is not finite.

        Sums per parameter are added exactly, so the norm does not depend on the plan.
        """
        engine = self.engine
        sums, bad = [], False
        for chunk in engine.chunks:
            engine.gradients.ready(chunk)
            whole = chunk.replicated
            for slot in chunk.slots:
                if not (slot.trainable and slot.has_gradient):
                    continue
                low, high = engine.gradients.held_range(chunk, slot)
                flat = engine.gradients.own(chunk, slot, low, high)
                total, wrong = square_sum(flat)
                share = engine.world if whole else 1
                if engine.link is not None and slot.part is None:
                    share *= engine.link.size  # each of them has this sum
                sums.append(total / share)
                bad |= wrong
        total = math.nan if bad else math.fsum(sums)
        if engine.world > 1 or engine.link is not None:
            pair = torch.tensor(
                [0.0 if bad else total, float(bad)], dtype=torch.float64, device=engine.device
            )
            if engine.world > 1:
                dist.all_reduce(pair, group=engine.group)
            if engine.link is not None:
                dist.all_reduce(pair, group=engine.link.group)
            bad = bool(pair[1] > 0)
            total = math.nan if bad else float(pair[0])
        factor = engine.world * (self.scaler.scale if self.scaler else 1.0)
        return math.sqrt(total) / factor, bad

    # -- during the backward pass ------------------------------------------------------------

    def _completed(self, chunk: Chunk) -> None:
        """Update a chunk whose gradients are in, if that can be undone or needs no undoing."""
        if any(s.has_gradient and s.expected > 1 for s in chunk.slots):
            return
        if self.engine.gradients.direct is not None and self.engine.gradients.on_device(chunk):
            return
        speculative = bool(self.scaler or self.max_grad_norm)
        assert self.states is not None
        assert self._pool is not None
        if speculative:
            size = chunk.plan.trainable * (12 + (0 if self.engine.dtype == torch.float32 else 2))
            if self.undo_budget is not None and self._undo_bytes + size > self.undo_budget:
                return
            self._undo_bytes += size
        scale = 1.0 / (self.scaler.scale if self.scaler else 1.0)
        self._stepped[chunk.index] = {} if speculative else None
        states = self.states

        def work() -> None:
            with torch.no_grad():
                self.engine.gradients.wait(chunk)
                kept = self._stepped[chunk.index]
                if kept is not None:
                    for slot in chunk.slots:
                        if (
                            slot.trainable
                            and slot.has_gradient
                            and id(slot.parameter) in self._group_of
                        ):
                            kept[slot.name] = states.keep(chunk, slot)
                self._update(chunk, scale)

        if self.engine.gradients.on_device(chunk):
            work()
        else:
            chunk.stepping = self._pool.submit(work)

    def _direct(self, chunk: Chunk, slot: Slot, gradient: Tensor) -> None:
        """Update a parameter from the gradient autograd has just made."""
        if not self.engine.gradients.synchronize or slot.expected > 1:
            raise RuntimeError(
                f"{slot.name}: its gradient has no room to accumulate in; plan with "
                "keep_gradients=True"
            )
        if slot.name in self._direct_done:
            raise RuntimeError(
                f"{slot.name}: a second gradient came before step(); plan with keep_gradients=True"
            )
        assert self.states is not None
        options = self._options(slot, 1.0)
        if options is not None:
            with torch.no_grad():
                self.states.update(chunk, slot, options, gradient)
        self._direct_done.add(slot.name)

    def _late(self, chunk: Chunk) -> None:
        if chunk.index in self._stepped:
            raise RuntimeError(
                f"chunk {chunk.index} ({', '.join(chunk.plan.parameters[:3])}): a gradient came "
                f"after its "
                "update in the backward pass; wrap earlier passes in optimizer.no_sync() when "
                "accumulating, or use step_in_backward=False"
            )

    def _undo_all(self) -> None:
        for index, kept in self._stepped.items():
            chunk = self.engine.chunks[index]
            if kept is None:
                raise RuntimeError("an update without undo copies cannot be taken back")
            for slot in chunk.slots:
                if slot.name in kept:
                    assert self.states is not None
                    self.states.restore(chunk, slot, kept[slot.name])
                    self.undone += 1
        self._stepped.clear()

    def _edited(self) -> None:
        for chunk in self.engine.chunks:
            for slot in chunk.slots:
                if self.states is not None and slot.name in self.states.slots:
                    self.states.take_master(chunk, slot, self.states.slots[slot.name])
                elif self.inner is not None and id(slot.parameter) in self.masters:
                    self.masters[id(slot.parameter)].data.copy_(self.engine.value(chunk, slot))

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return per-parameter states that ``torch.optim.AdamW`` loads as well."""
        if self.inner is not None:
            return self.inner.state_dict()
        assert self.states is not None
        if self.engine.world > 1 or self.engine.link is not None:
            raise ValueError("state_dict: over several ranks use elixir.checkpoint.save")
        self.engine.settle()
        packed = super().state_dict()
        state: dict[int, Any] = {}
        index = 0
        for group in self.param_groups:
            for p in group["params"]:
                chunk, slot = self._pairs[id(p)]
                part = self.states.slots[slot.name]
                if part.step:
                    values = self.states.read(chunk, slot)
                    state[index] = {"step": torch.tensor(float(part.step))}
                    for key in ("exp_avg", "exp_avg_sq"):
                        state[index][key] = values[key].as_strided(slot.size, slot.stride)
                    if self.states.low_precision:
                        state[index]["master"] = values["master"].as_strided(slot.size, slot.stride)
                index += 1
        packed["state"] = state
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` or ``torch.optim.AdamW.state_dict`` returned."""
        if self.inner is not None:
            self.inner.load_state_dict(state_dict)
            return
        assert self.states is not None
        parameters = [p for g in self.param_groups for p in g["params"]]
        saved = [k for g in state_dict["param_groups"] for k in g["params"]]
        if len(saved) != len(parameters):
            raise ValueError(
                f"state_dict: has {len(saved)} parameters, the optimizer {len(parameters)}"
            )
        for mine, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            mine.update({k: v for k, v in theirs.items() if k != "params" and k in mine})
        self.engine.begin_update()
        for key, p in zip(saved, parameters, strict=True):
            if key not in state_dict["state"]:
                continue
            entry = state_dict["state"][key]
            chunk, slot = self._pairs[id(p)]
            part = self.states.slots[slot.name]
            values = {
                k: _flat(entry[k], slot)[part.low : part.high]
                for k in ("exp_avg", "exp_avg_sq", "master")
                if k in entry
            }
            if not self.states.low_precision:
                values.pop("master", None)
            self.states.write(chunk, slot, values, int(entry["step"]))
        self.engine.end_update()
        for chunk in self.engine.chunks:
            self.engine.invalidate(chunk)

    def close(self) -> None:
        """Give the model back its ordinary parameters and remove files and threads."""
        if self._pool is not None:
            self._pool.shutdown()
        self.engine.close()
        if self.states is not None:
            self.states.close()


def _check_direct(
    engine: Engine,
    optimizer_cls: type[torch.optim.Optimizer],
    max_grad_norm: float | None,
    scaler: LossScaler | None,
    step_in_backward: bool | None,
) -> None:
    """Refuse what needs gradients to be kept."""
    if max_grad_norm is not None or scaler is not None or step_in_backward is False:
        raise ValueError(
            "plan: was made with keep_gradients=False, which excludes max_grad_norm, loss_scale "
            "and step_in_backward=False"
        )
    if optimizer_cls not in FUSED or engine.world > 1:
        raise UnsupportedOptimizerError(
            f"optimizer_cls={optimizer_cls.__name__}: a plan with keep_gradients=False runs AdamW "
            "on one rank"
        )


def _flat(value: Tensor, slot: Slot) -> Tensor:
    arranged = torch.empty_strided(slot.size, slot.stride, dtype=torch.float32)
    return arranged.copy_(value).as_strided((slot.numel,), (1,))


def _scaler(value: float | str | LossScaler | None) -> LossScaler | None:
    if value is None or isinstance(value, LossScaler):
        return value
    if value == "dynamic":
        return LossScaler()
    if isinstance(value, str):
        raise ValueError(f"loss_scale={value!r}: allowed are a number, 'dynamic' or a LossScaler")
    return LossScaler(scale=float(value), growth_interval=1 << 60, hysteresis=1 << 60)
