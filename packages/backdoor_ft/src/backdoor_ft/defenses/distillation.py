"""Neural attention distillation."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import Context, Defense, Tap
from backdoor_ft.defenses.pruning import channel_layers
from backdoor_ft.engine import evaluating
from backdoor_ft.schedules import CosineConfig


def attention(features: Tensor, power: float = 2.0) -> Tensor:
    """Return the normalised attention map of features [N, C, H, W], [N, T, D] or [N, D]."""
    if features.ndim == 4:
        found = features.abs().pow(power).mean(1)
    elif features.ndim == 3:
        found = features.abs().pow(power).mean(2)
    else:
        found = features
    return F.normalize(found.flatten(1), dim=1)


@dataclass(frozen=True)
class NAD(Defense):
    """NAD (Li et al. 2021): a fine-tuned teacher guides the victim's attention, p = 2.

    Attributes
    ----------
    betas : weights of the layers, from the first to the last; the layers are spread over the net
    teacher_steps, steps, lr : of the teacher's fine-tuning and the student's
    """

    name: ClassVar[str] = "nad"
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    power: float = 2.0
    lr: float = 0.01
    teacher_steps: int = 200
    steps: int = 200
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Fine-tune a teacher, then the student under its attention."""
        teacher = copy.deepcopy(model)
        rate = CosineConfig(self.lr, self.teacher_steps).learning_rate
        context.fit(teacher, clean, steps=self.teacher_steps, rate=rate, batch_size=self.batch_size)
        picked, guides = self._layers(model), self._layers(teacher)

        def update(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            with torch.no_grad(), evaluating(teacher), Tap(guides) as wanted:
                teacher(x)
            optimizer.zero_grad()
            with Tap(picked) as found:
                loss = F.cross_entropy(m(x), y)
            for beta, one, other in zip(self.betas, found.outputs, wanted.outputs):
                gap = attention(one, self.power) - attention(other, self.power)
                loss = loss + beta * gap.square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        rate = CosineConfig(self.lr, self.steps).learning_rate
        context.fit(
            model, clean, steps=self.steps, rate=rate, update=update, batch_size=self.batch_size
        )
        return model

    def _layers(self, model: nn.Module) -> list[nn.Module]:
        layers = channel_layers(model)
        if not layers:
            return []
        places = torch.linspace(0, len(layers) - 1, len(self.betas) + 1)[1:].round().int().tolist()
        return [layers[i][1] for i in sorted(set(places))]
