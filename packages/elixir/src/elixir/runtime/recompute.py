"""Recomputation of modules in the backward pass, under the engine's own saved-tensor hooks.

``torch.utils.checkpoint`` keeps what it recomputes behind its own hooks, so weights saved by the
second forward would pin their blocks. Here the second forward runs in an ordinary nested backward,
where each weight is fetched when its node runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Session = Callable[[], AbstractContextManager[Any]]


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        dummy: Tensor,
        run: Callable[..., Any],
        session: Session,
        structure: Any,
        *leaves: Any,
    ) -> Any:
        ctx.run, ctx.session, ctx.structure = run, session, structure
        ctx.rng = torch.random.get_rng_state()
        ctx.device_rng = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        ctx.positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[i] for i in ctx.positions))
        args, kwargs = tree_unflatten(leaves, structure)
        with torch.no_grad():
            out = run(*args, **kwargs)
        flat, ctx.output = tree_flatten(out)
        holder = _Structure(ctx.output)
        return holder, *flat

    @staticmethod
    def backward(ctx: Any, _: Any, *gradients: Any) -> Any:
        leaves = list(ctx.rest)
        inputs = []
        for position, saved in zip(ctx.positions, ctx.saved_tensors, strict=True):
            leaf = saved.detach().requires_grad_(saved.requires_grad)
            leaves[position] = leaf
            inputs.append(leaf)
        args, kwargs = tree_unflatten(leaves, ctx.structure)
        now = torch.random.get_rng_state()
        device_now = torch.cuda.get_rng_state() if ctx.device_rng is not None else None
        torch.random.set_rng_state(ctx.rng)
        if ctx.device_rng is not None:
            torch.cuda.set_rng_state(ctx.device_rng)
        try:
            with ctx.session():
                on_gpu = torch.autocast("cuda", enabled=True) if ctx.autocast[1] else nullcontext()
                with torch.enable_grad(), torch.autocast("cpu", enabled=ctx.autocast[0]), on_gpu:
                    flat = tree_flatten(ctx.run(*args, **kwargs))[0]
                torch.random.set_rng_state(now)
                if device_now is not None:
                    torch.cuda.set_rng_state(device_now)
                pairs = [
                    (out, gradient)
                    for out, gradient in zip(flat, gradients, strict=True)
                    if isinstance(out, Tensor) and out.requires_grad and gradient is not None
                ]
                if pairs:
                    torch.autograd.backward([p[0] for p in pairs], [p[1] for p in pairs])
        finally:
            torch.random.set_rng_state(now)
        back: list[Any] = [None] * len(leaves)
        for position, leaf in zip(ctx.positions, inputs, strict=True):
            back[position] = leaf.grad
        return None, None, None, None, *back


class _Structure:
    """Carries an output's tree structure through an autograd function."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec


def recompute_call(run: Callable[..., Any], session: Session, args: Any, kwargs: Any) -> Any:
    """Call ``run`` keeping only its inputs; it is called again in the backward pass."""
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    leaves, structure = tree_flatten((args, kwargs))
    dummy = torch.empty(0, requires_grad=True)
    holder, *flat = _Recompute.apply(dummy, run, session, structure, *leaves)
    return tree_unflatten(flat, holder.spec)


@contextmanager
def recomputed(
    model: nn.Module, names: Sequence[str], session: Session = nullcontext
) -> Iterator[None]:
    """Recompute the named modules while the context is open."""
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"recompute={unknown[0]!r}: the model has no such module")
    installed = []
    try:
        for name in names:
            install(modules[name], session)
            installed.append(modules[name])
        yield
    finally:
        for module in installed:
            uninstall(module)


def install(module: nn.Module, session: Session) -> None:
    """Make a module recompute itself."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return recompute_call(original, session, args, kwargs)

    forward.elixir_original = module.__dict__.get("forward")  # type: ignore[attr-defined]
    module.forward = forward


def uninstall(module: nn.Module) -> None:
    """Undo :func:`install`."""
    earlier = module.__dict__.pop("forward").elixir_original
    if earlier is not None:
        module.forward = earlier
