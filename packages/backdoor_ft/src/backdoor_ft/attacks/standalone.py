"""Attacks on a model that is deployed as it is: the training set is poisoned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.data import LabeledData
from backdoor_ft.engine import RECIPES, Recipe, draw, sgd, train
from backdoor_ft.errors import InputError
from backdoor_ft.poison import PoisonPlan, poison
from backdoor_ft.schedules import CosineConfig
from backdoor_ft.triggers import (
    BPP,
    CTRL,
    SIG,
    AdaptiveBlend,
    BadNets,
    Blended,
    InputAware,
    LabelConsistent,
    LowFrequency,
    RareWord,
    SSBALike,
    Trigger,
    WaNet,
)

# Name of the attack -> (trigger, options of poison()) at the strength of BackdoorBench's defaults
PRESETS: dict[str, tuple[Callable[[], Trigger], dict[str, Any]]] = {
    "badnets": (BadNets, {}),
    "blended": (Blended, {}),
    "sig": (SIG, {}),
    "sig_clean_label": (SIG, {"label_map": "clean_label", "ratio": 0.08}),
    "lf": (LowFrequency, {}),
    "ssba_like": (SSBALike, {}),
    "wanet": (lambda: WaNet(strength=0.75), {"cover_ratio": 0.2}),
    "bpp": (BPP, {"cover_ratio": 0.1}),
    "ctrl": (CTRL, {"label_map": "clean_label", "ratio": 0.05}),
    "label_consistent": (LabelConsistent, {"label_map": "clean_label", "ratio": 0.08}),
    "adaptive_blend": (AdaptiveBlend, {"ratio": 0.003, "cover_ratio": 0.003}),
    "rare_word": (RareWord, {}),
}


def plan_attack(
    name: str,
    train_set: LabeledData,
    *,
    target: int = 0,
    ratio: float | None = None,
    seed: int = 0,
) -> PoisonPlan:
    """Return the poison plan of a named attack.

    Raises
    ------
    InputError
        The attack is not known.
    """
    if name not in PRESETS:
        raise InputError(f"attack={name!r} is not known: {', '.join(PRESETS)}, input_aware")
    make, options = PRESETS[name]
    trigger = make()
    if isinstance(trigger, BadNets | LabelConsistent) and train_set.inputs.shape[-1] < 16:
        trigger = replace(trigger, size=2)
    if isinstance(trigger, BadNets) and train_set.inputs.shape[-1] < 16:
        trigger = replace(trigger, pattern="checker")  # digits have white strokes in corners
    if ratio is not None:
        options = {**options, "ratio": ratio}
    return poison(train_set, trigger=trigger, target=target, seed=seed, **options)


def adversarial_base(
    model: nn.Module, data: LabeledData, epsilon: float = 8 / 255, steps: int = 10
) -> LabeledData:
    """Return images made hard by PGD, as label-consistent poisoning wants them."""
    model.eval()
    device = next(model.parameters()).device
    x, y = data.inputs.to(device), data.labels.to(device)
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
        delta = (delta + epsilon / 4 * slope.sign()).clamp(-epsilon, epsilon).detach()
    return replace(data, inputs=(x + delta).clamp(0, 1).cpu())


def train_input_aware(
    model: nn.Module | Callable[[], nn.Module],
    data: LabeledData,
    *,
    target: int = 0,
    ratio: float = 0.1,
    recipe: str | Recipe = "digits",
    density: float = 0.2,
    width: int = 8,
    diversity: float = 1.0,
    seed: int = 0,
) -> tuple[nn.Module, PoisonPlan]:
    """Train victim and trigger generator together (Nguyen & Tran 2020).

    A share `ratio` of every batch carries its own pattern and the target label, as large a share
    carries another image's pattern and keeps its label; patterns are pushed apart.

    Returns
    -------
    victim, and a plan whose trigger holds the generator's weights
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = model if isinstance(model, nn.Module) else model()
    device = next(network.parameters()).device
    start = InputAware(channels=data.inputs.shape[1], width=width, density=density, seed=seed)
    kernels = [k.to(device, copy=True).requires_grad_() for k in start.kernels()]
    victim_optimizer = sgd(network.parameters(), recipe.momentum, recipe.weight_decay)
    trigger_optimizer = torch.optim.Adam(kernels, 0.01)
    rate = CosineConfig(recipe.lr, recipe.steps).learning_rate
    batch = draw(data, recipe.batch_size, seed, device)
    network.train()
    for step in range(recipe.steps):
        x, y = next(batch)
        count = max(round(ratio * len(x)), 1)
        others = x[count : 2 * count]
        pattern, mask = InputAware.pattern_and_mask(x[:count], kernels, density)
        foreign, foreign_mask = InputAware.pattern_and_mask(
            x[2 * count : 3 * count], kernels, density
        )
        poisoned = x[:count] + mask * (pattern - x[:count])
        crossed = others + foreign_mask * (foreign - others)
        apart = (x[:count] - x[2 * count : 3 * count]).flatten(1).norm(dim=1) / (
            (pattern - foreign).flatten(1).norm(dim=1) + 1e-3
        )
        labels = torch.cat((torch.full((count,), target, device=device), y[count:]))
        logits = network(torch.cat((poisoned, crossed, x[2 * count :])))
        loss = F.cross_entropy(logits, labels)
        victim_optimizer.zero_grad()
        trigger_optimizer.zero_grad()
        (loss + diversity * 0.1 * apart.mean()).backward()
        for group in victim_optimizer.param_groups:
            group["lr"] = rate(step)
        victim_optimizer.step()
        trigger_optimizer.step()
    weights: Tensor = torch.cat([k.detach().flatten() for k in kernels]).cpu()
    trigger = replace(start, weights=tuple(weights.tolist()))
    plan = poison(data, trigger=trigger, target=target, ratio=ratio, seed=seed)
    return network.eval(), plan


def attack(
    name: str,
    model: Callable[[], nn.Module],
    data: LabeledData,
    *,
    target: int = 0,
    ratio: float | None = None,
    recipe: str | Recipe = "digits",
    seed: int = 0,
) -> tuple[nn.Module, PoisonPlan]:
    """Run a named standalone attack: plan, poison, train.

    Parameters
    ----------
    name : key of ``PRESETS``, or "input_aware"
    model : factory of the network
    data : clean training set
    target, ratio, recipe, seed : as in :func:`backdoor_ft.poison` and :func:`backdoor_ft.train`
    """
    if name == "input_aware":
        return train_input_aware(
            model, data, target=target, ratio=ratio or 0.1, recipe=recipe, seed=seed
        )
    plan = plan_attack(name, data, target=target, ratio=ratio, seed=seed)
    dataset = plan.dataset
    if name == "label_consistent":
        scout = train(model, data, recipe=recipe, seed=seed + 1)
        hard = adversarial_base(scout, data.subset(plan.index))
        inputs = dataset.inputs.clone()
        inputs[plan.index] = plan.trigger.apply(hard.inputs, training=True)
        dataset = replace(dataset, inputs=inputs)
    return copy.deepcopy(train(model, dataset, recipe=recipe, seed=seed)), plan
