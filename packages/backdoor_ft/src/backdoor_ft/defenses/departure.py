"""Leaving the backdoored weights on purpose: FST and distance-driven detoxification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.augment import NO_AUGMENT, Augment
from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import Context, Defense
from backdoor_ft.models import head_of
from backdoor_ft.schedules import CosineConfig


@dataclass(frozen=True)
class FST(Defense):
    """Feature-shift tuning (Min et al. 2023).

    The head is drawn anew, the loss is CE + alpha <W, W_orig>, and after every step W is scaled
    back to the norm of W_orig.
    """

    name: ClassVar[str] = "fst"
    alpha: float = 0.1
    lr: float = 0.01
    steps: int = 400
    batch_size: int = 128
    augment: Augment = NO_AUGMENT

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Tune away from the old head."""
        _, head = head_of(model)
        original = head.weight.detach().clone()
        norm = original.norm()
        head.reset_parameters()

        def update(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x), y) + self.alpha * (head.weight * original).sum()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                head.weight.mul_(norm / head.weight.norm().clamp(min=1e-12))
            return loss.detach()

        context.fit(
            model,
            clean,
            steps=self.steps,
            batch_size=self.batch_size,
            rate=CosineConfig(self.lr, self.steps).learning_rate,
            update=update,
            augment=self.augment,
        )
        return model


@dataclass(frozen=True)
class D3(Defense):
    """Distance-driven detoxification, after arXiv 2411.09585, in a penalty form of our own.

    Minimise weight * max(0, CE - budget) - ||theta - theta0|| / ||theta0||, with the norm of every
    weight matrix held, so that the distance is one of direction.
    """

    name: ClassVar[str] = "d3"
    weight: float = 10.0
    budget: float = 0.02
    lr: float = 0.05
    steps: int = 400
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Walk away while the clean loss stays within its budget."""
        trained = [p for p in model.parameters() if p.ndim > 1]
        origin = [p.detach().clone() for p in trained]
        norms = [p.norm() for p in origin]
        total = torch.stack(norms).norm()

        def update(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            optimizer.zero_grad()
            task = F.cross_entropy(m(x), y)
            square = torch.stack([(p - q).square().sum() for p, q in zip(trained, origin)]).sum()
            distance = torch.sqrt(square + 1e-8) / total
            (self.weight * torch.relu(task - self.budget) - distance).backward()
            optimizer.step()
            with torch.no_grad():
                for p, norm in zip(trained, norms):
                    p.mul_(norm / p.norm().clamp(min=1e-12))
            return task.detach()

        context.fit(
            model,
            clean,
            steps=self.steps,
            batch_size=self.batch_size,
            rate=CosineConfig(self.lr, self.steps).learning_rate,
            weight_decay=0.0,
            update=update,
        )
        return model
