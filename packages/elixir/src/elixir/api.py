"""The three lines a user adds: ``plan``, ``initialize``, and then plain training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from elixir.planner.packings import Request, Variant
from elixir.planner.result import Plan
from elixir.planner.search import search
from elixir.profile.hardware import Hardware
from elixir.profile.operators import Operator, Rule
from elixir.profile.parts import fingerprint
from elixir.profile.trace import find_blocks, profile
from elixir.runtime.divide import Link, divided, install, resolve, share_values, uninstall
from elixir.runtime.tile import Split, Tiles, find, tiled
from elixir.units import parse_bytes


def plan(
    model: nn.Module,
    batch: Any,
    optimizer: str = "adamw",
    *,
    device_budget: int | str,
    host_budget: int | str | None = None,
    dtype: torch.dtype | None = None,
    recompute: Literal["auto", "none", "all"] | Sequence[str] = "auto",
    offload: Literal["auto", "none", "all"] | Sequence[str] = "auto",
    hardware: Hardware | str | Path | Literal["auto"] = "auto",
    policy: Literal["elixir", "paper"] = "elixir",
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    device: str = "cpu",
    prefetch: int = 2,
    step_in_backward: bool = False,
    keep_gradients: bool = True,
    moments: Literal["fp32", "8bit"] = "fp32",
    disk: bool = False,
    world: int = 1,
    machines: int = 1,
    tensor_parallel: int = 1,
    split: int | str | None = None,
) -> Plan:
    """Plan one training step so that it fits a device budget.

    Parameters
    ----------
    model
        Any module, also on the ``meta`` device; left unchanged.
    batch
        One batch: mapping, tuple or tensor, given to the model as it will be in training.
    optimizer
        ``"adamw"`` (8 bytes of states per element), ``"sgd"`` or any other name (counted as AdamW).
    device_budget, host_budget
        Bytes, or text such as ``"20GiB"``.
    dtype
        Compute dtype; by default the model's. bfloat16 and float16 keep an fp32 master copy.
    recompute
        ``"auto"`` chooses among none, half and all repeated blocks; or names of modules.
    offload
        Modules whose saved activations visit the host: ``"auto"`` chooses together with
        ``recompute="auto"`` (each block keeps, recomputes or offloads) and means none where
        ``recompute`` is given; or names of modules.
    hardware
        ``"auto"`` measures this machine; a profile; or the path of a saved one.
    policy
        ``"paper"``: equal chunks, sized by the paper's search.
    loss_fn
        ``loss_fn(output, batch)``; by default the output's ``loss``, or the sum of its outputs.
    device
        ``"cpu"``: the emulated device, with the same hard budget; ``"cuda"``; ``"sim"``: the
        strict device of :mod:`elixir.testing.sim`.
    prefetch
        Chunks looked ahead.
    step_in_backward
        Whether AdamW of a chunk runs while the backward pass goes on.
    keep_gradients
        False, with ``step_in_backward``: parameters that stay on the device are updated as soon as
        their gradient is there and need no room for it; no clipping, scaling or accumulation then.
    moments
        ``"8bit"`` keeps optimizer moments in one byte each.
    disk
        Whether optimizer states may live on disk.
    world
        Number of ranks that share the training state.
    machines
        Number of machines that the ranks are on; the ranks of one share its copy of the
        parameters. Only the count of host bytes depends on it.
    tensor_parallel
        Number of ranks over which ``override(..., shard="column")`` and ``"row"`` divide linear
        maps, beside the ``world`` ranks that share the training state: the size of the mesh's
        ``"tp"`` dimension.
    split
        Cut weights of linear maps and embeddings that take more bytes than this into tiles along
        their first dimension, chunks of their own; ``"auto"`` means a quarter of the budget.
        Sums over tiles round in another order, so results are close, not equal to the bit.

    Raises
    ------
    InfeasiblePlanError
        If no plan fits; names the least feasible budget.
    ValueError
        If the model cannot be traced or an argument is out of range.
    """
    if policy not in ("elixir", "paper"):
        raise ValueError(f"policy={policy!r}: allowed are elixir, paper")
    if moments not in ("fp32", "8bit"):
        raise ValueError(f"moments={moments!r}: allowed are fp32, 8bit")
    if prefetch < 0:
        raise ValueError(f"prefetch={prefetch}: must not be negative")
    if world < 1:
        raise ValueError(f"world={world}: must be at least 1")
    if tensor_parallel < 1:
        raise ValueError(f"tensor_parallel={tensor_parallel}: must be at least 1")
    if not 1 <= machines <= world:
        raise ValueError(f"machines={machines}: must be from 1 to world={world}")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype={dtype}: allowed are float32, bfloat16, float16")
    if not keep_gradients and not (step_in_backward and world == 1 and optimizer == "adamw"):
        raise ValueError(
            "keep_gradients=False: needs step_in_backward=True, optimizer='adamw' and one rank"
        )
    _check_device(device)
    budget = parse_bytes(device_budget, "device_budget")
    host = None if host_budget is None else parse_bytes(host_budget, "host_budget")
    if isinstance(hardware, Hardware):
        rates = hardware
    elif hardware == "auto":
        rates = _measured(device, torch.get_num_threads())
    else:
        rates = Hardware.load(hardware)
    options: dict[str, Any] = {"loss_fn": loss_fn, "dtype": dtype}
    bound = budget // 4 if split == "auto" else split and parse_bytes(split, "split")
    compute = dtype or next(p.dtype for p in model.parameters())
    choices = _choices(find_blocks(model), recompute, offload)

    def trace(rules: tuple[Rule, ...]) -> list[Variant]:
        if hasattr(model, "_elixir_engine"):
            raise ValueError("model: is already initialized; plan before that")
        operators = resolve(model, batch, rules, tensor_parallel) if rules else ()
        names = [o.module for o in operators]
        splits: tuple[Split, ...] = ()
        if bound:
            splits = find(model, bound, compute.itemsize, names, tied=world == 1)
        with divided(model, operators, tensor_parallel), tiled(model, splits):
            return [
                Variant(
                    recomputed,
                    profile(model, batch, recompute=recomputed, offload=offloaded, **options),
                    offloaded,
                    operators,
                    splits,
                )
                for recomputed, offloaded in choices
            ]

    request = Request(
        device_budget=budget,
        host_budget=host,
        hardware=rates,
        policy=policy,
        device=device,
        dtype=str(compute).removeprefix("torch."),
        optimizer=optimizer,
        moments=moments,
        prefetch=prefetch,
        step_in_backward=step_in_backward,
        keep_gradients=keep_gradients,
        world=world,
        machines=machines,
        use_disk=disk,
        # CUDA's allocator keeps pieces that fit nothing: the authors' share for them
        activation_margin=1.25 if device.startswith("cuda") else 1.0,
        batch=describe(batch),
        batch_bytes=batch_bytes(batch),
        tensor_parallel=tensor_parallel,
    )
    return search(trace(()), request, trace if tensor_parallel > 1 else None)


def _check_device(device: str) -> None:
    """Refuse a device that PyTorch does not know."""
    try:
        torch.device(device)
    except RuntimeError:
        hint = "; call elixir.testing.sim.load() first" if device == "sim" else ""
        raise ValueError(f"device={device!r}: PyTorch knows no such device{hint}") from None


@functools.cache
def _measured(device: str, threads: int) -> Hardware:
    """Measure this machine once per device and number of threads."""
    return Hardware.measure(device)


Names = tuple[str, ...]


def _choices(
    blocks: list[str],
    recompute: str | Sequence[str],
    offload: str | Sequence[str],
) -> list[tuple[Names, Names]]:
    """Return which modules to recompute and which to offload, as the planner may choose."""
    every, half = tuple(blocks), len(blocks) // 2
    for name, value in (("recompute", recompute), ("offload", offload)):
        if isinstance(value, str) and value not in ("auto", "none", "all"):
            raise ValueError(f"{name}={value!r}: allowed are auto, none, all, module names")
    if recompute == offload == "auto":
        # early activations wait longest for the backward pass: they have most time to travel
        pairs: list[tuple[Names, Names]] = [((), ()), (every[:half], ()), (every, ())]
        pairs += [((), every[:half]), ((), every), (every[half:], every[:half])]
        return list(dict.fromkeys(pairs))
    named = {"none": (), "all": every, "auto": ()}
    out = named[offload] if isinstance(offload, str) else tuple(offload)
    if recompute == "auto":
        left = tuple(b for b in blocks if b not in out)
        options: list[Names] = [(), left[: len(left) // 2], left]
    else:
        options = [named[recompute] if isinstance(recompute, str) else tuple(recompute)]
    for chosen in options:
        if both := sorted(set(chosen) & set(out)):
            raise ValueError(f"offload={both[0]!r}: is recomputed as well; choose one of both")
    return list(dict.fromkeys((chosen, out) for chosen in options))


def describe(batch: Any) -> tuple[str, ...]:
    """Return the shapes and dtypes of a batch's tensors."""
    leaves = tree_flatten(batch)[0]
    return tuple(f"{tuple(t.shape)} {t.dtype}" for t in leaves if isinstance(t, Tensor))


def batch_bytes(batch: Any) -> int:
    """Return the bytes of a batch's tensors."""
    return sum(t.nbytes for t in tree_flatten(batch)[0] if isinstance(t, Tensor))


def initialize(
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW,
    *,
    plan: Plan,
    **kwargs: Any,
) -> tuple[nn.Module, Any]:
    """Move a model's training state into the plan's tiers.

    Parameters
    ----------
    model
        The planned module, with values; its forward pass and ``backward()`` then work as before.
    optimizer_cls
        ``torch.optim.AdamW``, ``torch.optim.Adam`` or ``elixir.optim.AdamW`` run on the fused
        kernels;
        any other torch optimizer runs on host copies of the parameters.
    plan
        A :class:`Plan` for this model.
    **kwargs
        ``params`` (groups of the model's parameters), ``max_grad_norm``, ``loss_scale``,
        ``mover``, ``poison``, ``disk_folder``, ``mesh`` (a ``torch.distributed.DeviceMesh`` over
        the ranks that share the training state; a plan with divided operators takes a mesh with a
        further dimension named ``"tp"``, or with that one alone) or ``process_group``; everything
        else goes to the optimizer.

    Returns
    -------
    model, optimizer
        The same module, and a :class:`torch.optim.Optimizer` over its parameters.

    Raises
    ------
    StalePlanError
        If the plan was made for another model.
    UnsupportedOptimizerError
        If the optimizer cannot run on chunks.
    """
    from elixir.runtime.engine import Engine
    from elixir.runtime.optimizer import ChunkOptimizer

    engine_keys = ("mover", "poison", "disk_folder", "process_group", "link")
    mesh = kwargs.pop("mesh", None)
    if mesh is not None:
        if "process_group" in kwargs:
            raise ValueError("mesh: process_group is given as well; give one of both")
        kwargs |= _from_mesh(mesh, plan)
    elif plan.tensor_parallel > 1:
        raise ValueError(
            f"mesh: the plan divides operators over {plan.tensor_parallel} ranks; give a mesh with "
            "a dimension named 'tp'"
        )
    engine_options = {k: kwargs.pop(k) for k in engine_keys if k in kwargs}
    operators, link = [Operator(*o) for o in plan.operators], engine_options.get("link")
    plan.check_model(fingerprint(model))
    if hasattr(model, "_elixir_engine"):
        raise ValueError("model: is already initialized")
    if operators and link is not None:
        share_values(model, link)
        install(model, operators, link)
    tiles = Tiles(model, [Split(*s) for s in plan.splits]) if plan.splits else None
    try:
        engine = Engine(model, plan, tiles=tiles, **engine_options)
    except BaseException:
        if tiles is not None:
            tiles.remove()
        if operators and link is not None:
            uninstall(model, operators, lambda p, part: link.whole(p.data, part))
        raise
    try:
        optimizer = ChunkOptimizer(engine, optimizer_cls, **kwargs)
    except BaseException:
        engine.close()
        raise
    return model, optimizer


def _from_mesh(mesh: Any, plan: Plan) -> dict[str, Any]:
    """Return the group that shares the training state, and the link of divided operators."""
    kind = torch.device(plan.device).type
    if mesh.device_type != kind:
        raise ValueError(f"mesh: is of {mesh.device_type} devices, the plan of {kind}")
    names = mesh.mesh_dim_names or ()
    found: dict[str, Any] = {}
    if plan.tensor_parallel > 1:
        if "tp" not in names or mesh["tp"].size() != plan.tensor_parallel:
            raise ValueError(
                f"mesh: has dimensions {names}; the plan needs one named 'tp' of "
                f"{plan.tensor_parallel} ranks"
            )
        line = mesh["tp"]
        where = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else kind
        found["link"] = Link(line.size(), line.get_local_rank(), line.get_group(), where)
        rest = [n for n in names if n != "tp"]
        if not rest and plan.world == 1:
            return found
        if len(rest) != 1:
            raise ValueError(
                f"mesh: has dimensions {names}; beside 'tp' the plan needs one of {plan.world} "
                "ranks"
            )
        mesh = mesh[rest[0]]
    if mesh.ndim != 1:
        raise ValueError(
            f"mesh: has {mesh.ndim} dimensions; give the one that shares the training, such as "
            "mesh['shard']"
        )
    if mesh.size() != plan.world:
        raise ValueError(f"mesh: has {mesh.size()} ranks, the plan was made for {plan.world}")
    return found | {"process_group": mesh.get_group()}
