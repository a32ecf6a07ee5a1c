"""Attackers who know that the model will be tuned: SBL, and an SFT-aware one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.sharpness import adaptive_ascent, frozen_statistics
from backdoor_ft.defenses.tuning import SuperFT
from backdoor_ft.engine import Recipe, fit, train
from backdoor_ft.poison import PoisonPlan
from backdoor_ft.schedules import CosineConfig

if TYPE_CHECKING:
    from jaxtyping import Float


def fisher_diagonal(model: nn.Module, data: LabeledData) -> list[Float[Tensor, ...]]:
    """Return the diagonal of the empirical Fisher information: mean squared gradient per sample."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    device = next(model.parameters()).device
    for x, y in zip(data.inputs.to(device).split(1), data.labels.to(device).split(1)):
        loss = F.cross_entropy(model(x), y)
        for t, g in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True)):
            if g is not None:
                t += g.square()
    return [t / len(data) for t in total]


def sbl(
    factory: Callable[[], nn.Module],
    plan: PoisonPlan,
    clean: LabeledData,
    *,
    recipe: Recipe = Recipe(),
    rho: float = 0.5,
    ewc: float = 1.0,
    anchor_steps: int = 200,
    anchor_lr: float = 0.01,
    seed: int = 0,
) -> nn.Module:
    """Sequential backdoor learning (Pham et al. 2024).

    First the poisoned task with SAM, which leads into a flat basin; then clean data under elastic
    weight consolidation, which takes away what later fine-tuning could still pull on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory()

    def sharp(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(m(x), y)
        loss.backward()
        moved = [p for p in m.parameters() if p.grad is not None]
        ascent = adaptive_ascent(moved, rho)
        with torch.no_grad():
            for p, e in zip(moved, ascent):
                p.add_(e)
        optimizer.zero_grad()
        with frozen_statistics(m):
            F.cross_entropy(m(x), y).backward()
        with torch.no_grad():
            for p, e in zip(moved, ascent):
                p.sub_(e)
        optimizer.step()
        return loss.detach()

    poisoned = plan.dataset
    rate = CosineConfig(recipe.lr, recipe.steps).learning_rate
    fit(
        model,
        poisoned,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        rate=rate,
        update=sharp,
        seed=seed,
    )
    sample, _ = poisoned.split(min(256, len(poisoned) - 1), seed)
    fisher = fisher_diagonal(model, sample)
    anchor = [p.detach().clone() for p in model.parameters()]

    def consolidated(
        m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer
    ) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(m(x), y)
        pull = torch.stack(
            [(f * (p - a).square()).sum() for f, p, a in zip(fisher, m.parameters(), anchor)]
        ).sum()
        (loss + ewc * pull).backward()
        optimizer.step()
        return loss.detach()

    fit(
        model,
        clean,
        steps=anchor_steps,
        batch_size=recipe.batch_size,
        rate=lambda _: anchor_lr,
        update=consolidated,
        seed=seed,
    )
    return model.eval()


def sft_aware(
    factory: Callable[[], nn.Module],
    plan: PoisonPlan,
    clean: LabeledData,
    *,
    defense: SuperFT | None = None,
    rounds: int = 3,
    recipe: Recipe = Recipe(),
    lookahead: float = 0.5,
    seed: int = 0,
) -> nn.Module:
    """Return a model of an attacker who simulates super-fine-tuning (adversary of our own).

    Each round tunes a copy as the defender would, plants the backdoor there again, and moves the
    model part of the way to the result, a first-order meta step (Reptile).
    """
    defense = defense or SuperFT(phase1=60, phase2=60)
    model = train(factory, plan.dataset, recipe=recipe, seed=seed)
    for round_ in range(rounds):
        tuned = copy.deepcopy(defense.repair(model, clean, seed=seed + 1000 + round_).model)
        fit(
            tuned,
            plan.dataset,
            steps=recipe.steps // 4,
            batch_size=recipe.batch_size,
            rate=lambda _: recipe.lr / 2,
            seed=seed + round_,
        )
        with torch.no_grad():
            for p, q in zip(model.parameters(), tuned.parameters()):
                p.lerp_(q, lookahead)
        fit(
            model,
            plan.dataset,
            steps=recipe.steps // 4,
            batch_size=recipe.batch_size,
            rate=CosineConfig(recipe.lr / 2, recipe.steps // 4).learning_rate,
            seed=seed + 100 + round_,
        )
    return model.eval()
