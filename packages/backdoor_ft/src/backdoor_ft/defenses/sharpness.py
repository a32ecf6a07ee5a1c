"""Flat minima: FT-SAM, and path-aware minimisation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.augment import NO_AUGMENT, Augment
from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import BATCH_NORM, Context, Defense
from backdoor_ft.models import head_of
from backdoor_ft.schedules import CosineConfig


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch normalisation normalise by the batch without updating its running statistics."""
    kept = [(m, m.momentum) for m in model.modules() if isinstance(m, BATCH_NORM)]
    for module, _ in kept:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in kept:
            module.momentum = momentum


def adaptive_ascent(parameters: list[nn.Parameter], rho: float) -> list[Tensor]:
    """Return ASAM's step, rho w^2 g / || |w| g || (Kwon et al. 2021), from the present gradients.

    Parameters
    ----------
    parameters : with gradients
    rho : radius
    """
    scaled = [p.detach().abs() * p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([s.norm() for s in scaled]).norm() + 1e-12
    return [rho * p.detach().abs() * s / norm for p, s in zip(parameters, scaled)]


@dataclass(frozen=True)
class FTSAM(Defense):
    """FT-SAM (Zhu et al. 2023): fine-tuning with adaptive SAM, rho 2, label smoothing .1."""

    name: ClassVar[str] = "ft_sam"
    lr: float = 0.01
    steps: int = 400
    rho: float = 2.0
    label_smoothing: float = 0.1
    batch_size: int = 128
    augment: Augment = NO_AUGMENT

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Take every gradient at the worst neighbour."""

        def update(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x), y, label_smoothing=self.label_smoothing)
            loss.backward()
            moved = [p for p in m.parameters() if p.grad is not None]
            ascent = adaptive_ascent(moved, self.rho)
            with torch.no_grad():
                for p, e in zip(moved, ascent):
                    p.add_(e)
            optimizer.zero_grad()
            with frozen_statistics(m):
                F.cross_entropy(m(x), y, label_smoothing=self.label_smoothing).backward()
            with torch.no_grad():
                for p, e in zip(moved, ascent):
                    p.sub_(e)
            optimizer.step()
            return loss.detach()

        rate = CosineConfig(self.lr, self.steps).learning_rate
        context.fit(
            model,
            clean,
            steps=self.steps,
            batch_size=self.batch_size,
            rate=rate,
            update=update,
            augment=self.augment,
        )
        return model


@dataclass(frozen=True)
class PAM(Defense):
    """Path-aware minimisation (Min et al. 2024), started from a re-initialised head.

    Every gradient is taken at a point on the way back to the backdoored weights, so the repaired
    model has to be good on that path without the trigger. The authors start from BTI-DBF; here
    the start is a fresh head, which is our choice.
    """

    name: ClassVar[str] = "pam"
    lr: float = 0.02
    steps: int = 400
    rho: float = 0.5
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Train with gradients of the interpolated model."""
        origin = copy.deepcopy(model)
        head_of(model)[1].reset_parameters()

        def update(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            steps: list[Tensor] = []
            with torch.no_grad():
                for p, q in zip(m.parameters(), origin.parameters()):
                    steps.append(self.rho * (q - p))
                    p.add_(steps[-1])
            optimizer.zero_grad()
            with frozen_statistics(m):
                loss = F.cross_entropy(m(x), y)
            loss.backward()
            with torch.no_grad():
                for p, e in zip(m.parameters(), steps):
                    p.sub_(e)
            optimizer.step()
            with torch.no_grad():
                m(x)  # running statistics of the model itself, not of the interpolated one
            return loss.detach()

        rate = CosineConfig(self.lr, self.steps).learning_rate
        context.fit(
            model, clean, steps=self.steps, batch_size=self.batch_size, rate=rate, update=update
        )
        return model
