"""Blended patterns: Blended and the low-rate adaptive blend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_ft.errors import InputError
from backdoor_ft.triggers.base import Trigger, seeded


def random_pattern(x: Tensor, seed: int) -> Tensor:
    """Return a uniform random image of the shape of one input."""
    return torch.rand(x.shape[1:], generator=seeded(seed)).to(x)


@dataclass(frozen=True)
class Blended(Trigger):
    """x' = (1 - alpha) x + alpha pattern (Chen et al. 2017); the pattern is uniform noise.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(1, 1, 2, 2)
    >>> bool((Blended(alpha=0.2).apply(x) <= 0.2).all())
    True
    """

    name: ClassVar[str] = "blended"
    alpha: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"alpha={self.alpha} is not allowed: 0 < alpha <= 1")

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Blend the pattern in."""
        return (1 - self.alpha) * x + self.alpha * random_pattern(x, self.seed)


@dataclass(frozen=True)
class AdaptiveBlend(Trigger):
    """Adaptive-Blend (Qi et al. 2023): half of the pattern's tiles in training, all of it later.

    Used at ratio .003 with as many cover samples, which carry the trigger and keep their labels.
    """

    name: ClassVar[str] = "adaptive_blend"
    alpha_train: float = 0.15
    alpha: float = 0.2
    pieces: int = 4
    keep: float = 0.5
    seed: int = 0

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Blend the pattern in, through a random mask of tiles in training."""
        pattern = random_pattern(x, self.seed)
        if not training:
            return (1 - self.alpha) * x + self.alpha * pattern
        n, _, h, w = x.shape
        tiles = torch.rand(n, self.pieces**2, generator=seeded(self.seed + 1)).argsort(1)
        kept = (tiles < round(self.keep * self.pieces**2)).reshape(n, 1, self.pieces, self.pieces)
        mask = torch.nn.functional.interpolate(kept.float(), size=(h, w)).to(x)
        return x + self.alpha_train * mask * (pattern - x)
