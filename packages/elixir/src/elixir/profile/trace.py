"""The parameter-use trace and the exact peak of live bytes, without a device.

One forward and backward under ``FakeTensorMode``: a dispatch mode sees every operator with the
storages it reads, so views of weights, tied weights and functional uses are recognised by address.
Where an operator depends on data (routing), the same recording runs on real tensors instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry

from elixir.profile.parts import fingerprint, whole_shape


@dataclass
class ParameterInfo:
    """One parameter: name, layout, and how the traced step used it."""

    name: str
    shape: tuple[int, ...]
    numel: int
    trainable: bool
    owner: str
    wide: bool = False
    shared: bool = False
    first_use: int = -1
    gradients: int = 0


@dataclass
class ModelProfile:
    """The traced step.

    Attributes
    ----------
    parameters
        In the model's order; tied parameters once.
    steps
        Parameter indices per operator that reads parameters, forward then backward; equal
        neighbours are merged.
    forward_steps
        How many of the steps belong to the forward pass.
    flops, traffic
        Floating-point operations and bytes of memory traffic up to and including each step.
    activation_bytes
        Peak of live bytes besides parameters: inputs, activations, buffers made, one gradient at
        a time.
    live
        Live bytes at each step.
    extras
        Module name to parameters that it reads although their owner is not running.
    blocks
        Repeated modules: candidates for recomputation.
    offloads
        Storages that visit the host: (step after which it leaves, step before which it is called
        back, step before which it is needed, bytes).
    """

    parameters: list[ParameterInfo]
    steps: list[list[int]]
    forward_steps: int
    flops: list[float]
    traffic: list[float]
    activation_bytes: int
    live: list[int]
    extras: dict[str, list[int]]
    blocks: list[str]
    itemsize: int
    fake: bool = True
    notes: list[str] = field(default_factory=list)
    offloads: list[tuple[int, int, int, int]] = field(default_factory=list)
    fingerprint: str = ""

    @property
    def numel(self) -> int:
        """Number of elements of all parameters."""
        return sum(p.numel for p in self.parameters)


def unique_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return every parameter once, under its first name."""
    return list(model.named_parameters(remove_duplicate=True))


def find_blocks(model: nn.Module) -> list[str]:
    """Return the names of repeated modules: entries of a list or sequence with parameters."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(
            name.startswith(f"{block}.") for block in found
        ):
            continue
        children = [(f"{name}.{k}" if name else k, c) for k, c in module.named_children()]
        heavy = [(n, c) for n, c in children if next(c.parameters(), None) is not None]
        kinds = [type(c) for _, c in heavy]
        found += [n for n, c in heavy if kinds.count(type(c)) > 1 and list(c.children())]
    return found


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model on a mapping (keywords), a tuple or list (positions) or one tensor."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def default_loss(output: Any) -> Tensor:
    """Return ``output.loss``, the output itself if a scalar, or the sum of floating outputs."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    values = output.values() if isinstance(output, Mapping) else output
    leaves = [t for t in tree_flatten(values)[0] if isinstance(t, Tensor) and t.requires_grad]
    if not leaves:
        raise ValueError("model: its output has no tensor that requires a gradient; pass loss_fn")
    if len(leaves) == 1 and leaves[0].numel() == 1:
        return leaves[0].reshape(())
    total = leaves[0].float().sum()
    for leaf in leaves[1:]:
        total = total + leaf.float().sum()
    return total


def _tensors(value: Any, found: list[Tensor]) -> None:
    """Add the tensors in an operator's arguments to ``found``; many times faster than a pytree."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        for entry in value:
            _tensors(entry, found)
    elif isinstance(value, dict):
        for entry in value.values():
            _tensors(entry, found)


_DEVICE = torch.ops.prim.device.default


class _Recorder(TorchDispatchMode):
    """Sees every operator: parameters read, live bytes, floating-point operations."""

    def __init__(self, storages: dict[int, int]) -> None:
        super().__init__()
        self.parameters = storages
        self.stack: list[str] = [""]
        self.owners: list[str] = []
        self.steps: list[list[int]] = []
        self.flops: list[float] = []
        self.traffic: list[float] = []
        self.levels: list[int] = []
        self.backward_from = -1
        self.live = self.peak = 0
        self.total_flops = self.total_traffic = 0.0
        self.known: set[int] = set()
        self.extras: dict[str, set[int]] = {}
        self.in_backward = False
        self.called: set[str] = set()

    def enter(self, name: str) -> None:
        self.stack.append(name)
        self.called.add(name)

    def leave(self) -> None:
        self.stack.pop()

    def track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in self.parameters:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two thirds of all calls only ask for this
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        _tensors(args, inputs)
        _tensors(kwargs, inputs)
        _tensors(out, outputs)
        read = {t.untyped_storage()._cdata for t in inputs}
        fresh = [t for t in outputs if t.untyped_storage()._cdata not in read]
        for t in fresh:
            self.track(t)
        used = sorted({self.parameters[k] for k in read if k in self.parameters})
        if fresh or not outputs or func._schema.is_mutable:
            packet = func.overloadpacket
            if packet in flop_registry:
                self.total_flops += flop_registry[packet](*args, **kwargs, out_val=out)
            self.total_traffic += sum(t.nbytes for t in inputs) + sum(t.nbytes for t in fresh)
        elif not self.in_backward:
            self._extra(used)
            return out
        else:
            return out
        if used:
            self._extra(used)
            if (not self.in_backward or self.backward_from < 0) and self.in_backward:
                self.backward_from = len(self.steps)
            if self.steps and self.steps[-1] == used and self.backward_from != len(self.steps):
                self.flops[-1], self.traffic[-1] = self.total_flops, self.total_traffic
                self.levels[-1] = max(self.levels[-1], self.live)
            else:
                self.steps.append(used)
                self.flops.append(self.total_flops)
                self.traffic.append(self.total_traffic)
                self.levels.append(self.live)
        return out

    def _extra(self, used: Sequence[int]) -> None:
        if self.in_backward:
            return
        for index in used:
            owner = self.owners[index]
            if owner not in self.stack:
                self.extras.setdefault(self.stack[-1], set()).add(index)


class _Ledger:
    """Stands for the host in a trace: bytes that leave are gone, bytes that return are made."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder
        self.rows: list[list[int]] = []

    def out(self, tensor: Tensor) -> list[int]:
        position = max(len(self.recorder.steps) - 1, 0)
        row = [position, -1, -1, tensor.untyped_storage().nbytes()]
        self.rows.append(row)
        return row

    def back(self, token: list[int]) -> Tensor:
        if token[1] < 0:
            token[1] = len(self.recorder.steps)
        with torch.no_grad():
            return torch.empty(token[3], dtype=torch.uint8)

    def arrived(self, token: list[int]) -> None:
        if token[2] < 0:
            token[2] = len(self.recorder.steps)

    def free(self, token: list[int]) -> None:
        pass

    def moves(self, steps: int) -> list[tuple[int, int, int, int]]:
        """Return the rows that came back, positions within the trace."""
        last = max(steps - 1, 0)
        return [
            (out, min(called, last), min(needed if needed >= 0 else last, last), size)
            for out, called, needed, size in self.rows
            if called >= 0
        ]


@contextmanager
def swapped(
    model: nn.Module, make: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, nn.Parameter]]:
    """Replace parameters and buffers by what ``make`` returns, tied ones by one; then restore."""
    saved: list[tuple[dict[str, Any], str, Any]] = []
    replaced: dict[int, Any] = {}
    try:
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for key, value in list(table.items()):
                    if value is None:
                        continue
                    if id(value) not in replaced:
                        replaced[id(value)] = make(value)
                    saved.append((table, key, value))
                    table[key] = replaced[id(value)]
        yield replaced
    finally:
        for table, key, value in saved:
            table[key] = value


def profile(
    model: nn.Module,
    batch: Any,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    recompute: Sequence[str] = (),
    offload: Sequence[str] = (),
    fake: bool | None = None,
) -> ModelProfile:
    """Trace one training step of a model.

    Parameters
    ----------
    model
        Any module; a model on the ``meta`` device is welcome. It is left unchanged.
    batch
        Mapping, tuple or tensor given to the model.
    loss_fn
        ``loss_fn(output, batch)``; by default the output's ``loss`` or the sum of its outputs.
    dtype
        Compute dtype of the parameters; by default their own.
    recompute
        Names of modules that are recomputed in the backward pass.
    offload
        Names of modules whose saved activations visit the host.
    fake
        True: FakeTensor only; False: real tensors; None: FakeTensor, then real if it fails.

    Raises
    ------
    ValueError
        If the model has no trainable parameter, or cannot be traced.
    """
    parameters = unique_parameters(model)
    if not any(p.requires_grad for _, p in parameters):
        raise ValueError("model: has no trainable parameter")
    options: dict[str, Any] = {
        "loss_fn": loss_fn,
        "dtype": dtype,
        "recompute": recompute,
        "offload": offload,
    }
    if fake is not False:
        try:
            return _trace(model, batch, fake=True, **options)
        except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
            on_meta = any(p.device.type == "meta" for _, p in parameters)
            if fake or on_meta or isinstance(error, _RefusedError):
                raise ValueError(f"model: cannot be traced without data: {error}") from error
            first = str(error).splitlines()[0]
        result = _trace(model, batch, fake=False, **options)
        result.notes.append(f"traced on real tensors, for FakeTensor says: {first}")
        return result
    return _trace(model, batch, fake=False, **options)


class _RefusedError(ValueError):
    pass


def _trace(
    model: nn.Module,
    batch: Any,
    *,
    fake: bool,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    dtype: torch.dtype | None,
    recompute: Sequence[str],
    offload: Sequence[str],
) -> ModelProfile:
    from elixir.runtime.offload import Tape, offloaded
    from elixir.runtime.recompute import recomputed

    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None

    def make(value: Tensor) -> Tensor:
        target = dtype if dtype and value.is_floating_point() else value.dtype
        if isinstance(value, nn.Parameter):
            if mode:
                with mode:
                    new = torch.empty_strided(value.shape, value.stride(), dtype=target)
            else:
                new = value.detach().to(target, copy=True)
            return nn.Parameter(new, requires_grad=value.requires_grad)
        if mode and value.device.type == "meta":
            with mode:
                return torch.empty_strided(value.shape, value.stride(), dtype=target)
        if mode:
            return mode.from_tensor(value.detach().cpu()).to(target)
        return value.detach().to(target, copy=True)

    def make_input(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        target = dtype if dtype and value.is_floating_point() else value.dtype
        if mode:
            with mode:
                return torch.empty_strided(
                    value.shape, value.stride(), dtype=target
                ).requires_grad_(value.requires_grad)
        return value.detach().to(target).requires_grad_(value.requires_grad)

    named = unique_parameters(model)
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for p in module._parameters.values():
            if p is not None:
                owners.setdefault(id(p), []).append(name)
    infos = [
        ParameterInfo(
            n,
            whole_shape(p),
            p.numel(),
            p.requires_grad,
            owners[id(p)][0],
            shared=len(owners[id(p)]) > 1,
        )
        for n, p in named
    ]
    rng = torch.random.get_rng_state()
    handles: list[Any] = []
    try:
        with swapped(model, make) as replaced:
            fakes = [replaced[id(p)] for _, p in named]
            storages = {p.untyped_storage()._cdata: i for i, p in enumerate(fakes)}
            recorder = _Recorder(storages)
            recorder.owners = [info.owner for info in infos]
            for i, p in enumerate(fakes):
                if p.requires_grad:
                    handles.append(p.register_post_accumulate_grad_hook(_drop(infos[i])))
            names = {id(m): n for n, m in model.named_modules()}
            handles.append(
                nn.modules.module.register_module_forward_pre_hook(
                    lambda m, _: recorder.enter(names.get(id(m), "?"))
                )
            )
            handles.append(
                nn.modules.module.register_module_forward_hook(
                    lambda m, _, __: recorder.leave(), always_call=True
                )
            )
            inputs = tree_map(make_input, batch)
            buffers = {b.untyped_storage()._cdata for b in model.buffers()}
            carrier = _Ledger(recorder)
            tape = Tape(carrier, lambda t: t.untyped_storage()._cdata in storages.keys() | buffers)
            with (
                recomputed(model, recompute),
                offloaded(model, offload, (tape.pack, tape.unpack)),
            ):
                _step(model, inputs, recorder, mode, loss_fn)
    finally:
        for handle in handles:
            handle.remove()
        torch.random.set_rng_state(rng)
    for position, used in enumerate(recorder.steps):
        for i in used:
            if infos[i].first_use < 0:
                infos[i].first_use = position
    heavy = {name for ids in owners.values() for name in ids}
    for info in infos:
        prefix = f"{info.owner}." if info.owner else ""
        info.wide = any(
            c != info.owner and c in heavy and c.startswith(prefix) for c in recorder.called
        )
    split = recorder.backward_from if recorder.backward_from >= 0 else len(recorder.steps)
    itemsize = max((p.element_size() for p in fakes), default=4)
    return ModelProfile(
        infos,
        recorder.steps,
        split,
        recorder.flops,
        recorder.traffic,
        recorder.peak,
        recorder.levels,
        {k: sorted(v) for k, v in recorder.extras.items() if k != "?"},
        find_blocks(model),
        itemsize,
        fake,
        offloads=carrier.moves(len(recorder.steps)),
        fingerprint=fingerprint(model),
    )


def _drop(info: ParameterInfo) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        info.gradients += 1
        parameter.grad = None

    return hook


def _step(
    model: nn.Module,
    inputs: Any,
    recorder: _Recorder,
    mode: FakeTensorMode | None,
    loss_fn: Callable[[Any, Any], Tensor] | None,
) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        if mode:
            stack.enter_context(mode)
        stack.enter_context(recorder)
        stack.enter_context(torch.enable_grad())
        for leaf in tree_flatten(inputs)[0]:
            if isinstance(leaf, Tensor):
                recorder.track(leaf)
        output = call(model, inputs)
        loss = loss_fn(output, inputs) if loss_fn else default_loss(output)
        del output
        if loss.numel() != 1:
            raise _RefusedError(f"loss: shape {tuple(loss.shape)}: must be a scalar")
        recorder.in_backward = True
        loss.backward()
