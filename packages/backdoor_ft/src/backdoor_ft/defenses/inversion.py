"""Neural Cleanse: invert a trigger for every class, find the outlier, unlearn it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.adversarial import _images_only
from backdoor_ft.defenses.base import Context, Defense
from backdoor_ft.detect import anomaly_index
from backdoor_ft.engine import draw
from backdoor_ft.schedules import CosineConfig


def invert(
    model: nn.Module,
    clean: LabeledData,
    target: int,
    *,
    steps: int,
    lr: float = 0.1,
    threshold: float = 0.98,
    init_cost: float = 1e-3,
    patience: int = 5,
    multiplier: float = 2.0,
    batch_size: int = 128,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Search the smallest mask and a pattern that send inputs to a class (Wang et al. 2019).

    Returns
    -------
    mask [1, H, W] and pattern [C, H, W], both in [0, 1]
    """
    shape = clean.inputs.shape[1:]
    generator = torch.Generator().manual_seed(seed + target)
    device = next(model.parameters()).device
    mask = torch.randn(1, *shape[1:], generator=generator, device="cpu").to(device).requires_grad_()
    pattern = torch.randn(shape, generator=generator, device="cpu").to(device).requires_grad_()
    optimizer = torch.optim.Adam([mask, pattern], lr, betas=(0.5, 0.9))
    batch = draw(clean, batch_size, seed, device)
    best, cost, up, down = None, init_cost, 0, 0
    smallest = float("inf")
    model.eval()
    for _ in range(steps):
        x, _ = next(batch)
        m, p = (torch.tanh(mask) + 1) / 2, (torch.tanh(pattern) + 1) / 2
        logits = model((1 - m) * x + m * p)
        wanted = torch.full((len(x),), target, device=device)
        size = m.sum()
        area = float(size.detach())
        optimizer.zero_grad()
        (F.cross_entropy(logits, wanted) + cost * size).backward()
        optimizer.step()
        success = float((logits.argmax(1) == target).float().mean())
        if success >= threshold and area < smallest:
            best, smallest = (m.detach(), p.detach()), area
        up, down = (up + 1, 0) if success >= threshold else (0, down + 1)
        if up >= patience:
            cost, up = cost * multiplier, 0
        elif down >= patience:
            cost, down = cost / multiplier**1.5, 0
    if best is None:
        best = ((torch.tanh(mask) + 1).detach() / 2, (torch.tanh(pattern) + 1).detach() / 2)
    return best


@dataclass(frozen=True)
class NC(Defense):
    """Neural Cleanse (Wang et al. 2019): the inverted trigger of the flagged class is unlearned.

    Where no class is anomalous the smallest trigger is taken, and the notes say so.
    """

    name: ClassVar[str] = "nc"
    inversion_steps: int = 400
    lr: float = 0.01
    steps: int = 200
    share: float = 0.2
    anomaly: float = 2.0
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Invert, flag, and fine-tune with the found trigger under true labels."""
        _images_only(self.name, clean)
        found = [
            invert(model, clean, c, steps=self.inversion_steps, batch_size=self.batch_size,
                   seed=context.seed)
            for c in range(clean.num_classes)
        ]  # fmt: skip
        sizes = np.array([float(mask.sum()) for mask, _ in found])
        index = anomaly_index(sizes)
        flagged = np.flatnonzero(index > self.anomaly)
        if len(flagged) == 0:
            context.notes.append("no class is anomalous; the smallest trigger is unlearned")
            flagged = np.array([sizes.argmin()])
        context.notes.append(
            "flagged " + ", ".join(f"class {c} (index {index[c]:.1f})" for c in flagged)
        )
        triggers = [found[c] for c in flagged]

        def update(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            x = x.clone()
            count = max(int(self.share * len(x)), 1)
            mask, pattern = triggers[int(torch.randint(len(triggers), (), device="cpu"))]
            x[:count] = (1 - mask) * x[:count] + mask * pattern
            optimizer.zero_grad()
            loss = F.cross_entropy(m(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        rate = CosineConfig(self.lr, self.steps).learning_rate
        context.fit(
            model, clean, steps=self.steps, batch_size=self.batch_size, rate=rate, update=update
        )
        return model
