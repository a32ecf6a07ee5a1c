"""Training many networks of one architecture at once, stacked by ``torch.func``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from backdoor_ft.data import LabeledData
from backdoor_ft.engine import Rate, batches, fit, sgd
from backdoor_ft.errors import DivergedError, InputError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


def fit_stacked(
    models: Sequence[nn.Module],
    data: LabeledData,
    members: Bool[Tensor, "models n"],
    *,
    steps: int,
    batch_size: int,
    rate: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seeds: Sequence[int] | None = None,
) -> list[nn.Module]:
    """Train K networks, each on its own part of one data set, as one batched computation.

    SGD with momentum and weight decay as ``torch.optim.SGD`` has them; model k sees the batches
    that :func:`backdoor_ft.engine.fit` draws for its part and seed, so both give the same
    networks up to rounding.

    Parameters
    ----------
    models : networks of one architecture; returned as copies
    data : all samples
    members : which samples each model trains on
    steps, batch_size, rate : as in :func:`backdoor_ft.engine.fit`
    seeds : of each model's order; 0, 1, ... without them

    Returns
    -------
    the trained networks, in evaluation mode
    """
    count = len(models)
    if members.shape != (count, len(data)):
        raise InputError(
            f"members has shape {tuple(members.shape)}, [{count}, {len(data)}] is needed"
        )
    pools = [torch.nonzero(row)[:, 0] for row in members]
    smallest = min(len(pool) for pool in pools)
    if smallest < 2:
        raise InputError(f"members leaves a model {smallest} samples: at least 2 are needed")
    size = min(batch_size, smallest)
    seeds = range(count) if seeds is None else seeds
    orders = [batches(len(pool), size, seed, 0) for pool, seed in zip(pools, seeds)]
    trained = [copy.deepcopy(m).train() for m in models]
    skeleton = copy.deepcopy(trained[0]).to("meta")
    found, buffers = stack_module_state(trained)
    parameters = {name: p.detach().requires_grad_() for name, p in found.items()}
    device = next(iter(parameters.values())).device
    inputs, labels = data.inputs.to(device), data.labels.to(device)
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def logits(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(skeleton, (p, b), (x,))
        return out

    forward = vmap(logits, randomness="different")
    for step in range(steps):
        index: Int[Tensor, "models batch"] = torch.stack(
            [pool[next(order)] for pool, order in zip(pools, orders)]
        ).to(device)
        out = forward(parameters, buffers, inputs[index])
        loss = F.cross_entropy(out.flatten(0, 1), labels[index].flatten()) * count
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        lr = rate(step)
        with torch.no_grad():
            for (name, p), g in zip(parameters.items(), gradients):
                velocity[name].mul_(momentum).add_(g).add_(p, alpha=weight_decay)
                p.sub_(velocity[name], alpha=lr)
    if not all(bool(torch.isfinite(p).all()) for p in parameters.values()):
        raise DivergedError(f"a weight is not finite after {steps} stacked steps")
    for k, model in enumerate(trained):
        state = {name: p[k].detach().clone() for name, p in {**parameters, **buffers}.items()}
        model.load_state_dict(state)
        model.eval()
    return trained


def fit_loop(
    models: Sequence[nn.Module],
    data: LabeledData,
    members: Bool[Tensor, "models n"],
    *,
    steps: int,
    batch_size: int,
    rate: Rate,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seeds: Sequence[int] | None = None,
) -> list[nn.Module]:
    """Do what :func:`fit_stacked` does, one network after the other; same parameters and result."""
    trained = []
    for k, model in enumerate(models):
        own = copy.deepcopy(model)
        fit(
            own,
            data.subset(members[k]),
            steps=steps,
            batch_size=batch_size,
            rate=rate,
            optimizer=sgd(own.parameters(), momentum, weight_decay),
            seed=k if seeds is None else seeds[k],
        )
        trained.append(own.eval())
    return trained


def fit_many(models: Sequence[nn.Module], *args: Any, **options: Any) -> list[nn.Module]:
    """Train K networks by the faster way: stacked, but for convolutions on a processor.

    A convolution with weights of its own for each network becomes a grouped one, whose backward
    pass on a CPU costs more than the calls that stacking saves. Parameters are those of
    :func:`fit_stacked`.
    """
    first = models[0]
    on_cpu = next(first.parameters()).device.type == "cpu"
    slow = on_cpu and any(isinstance(m, nn.modules.conv._ConvNd) for m in first.modules())
    return (fit_loop if slow else fit_stacked)(models, *args, **options)
