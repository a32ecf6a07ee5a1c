"""WaNet: a smooth warp of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor_ft.errors import InputError
from backdoor_ft.triggers.base import Trigger, seeded


@dataclass(frozen=True)
class WaNet(Trigger):
    """Elastic warp (Nguyen & Tran 2021): a k x k noise field, upsampled, strength s / H.

    Cover samples get the same warp with uniform jitter of one pixel and keep their labels.
    """

    name: ClassVar[str] = "wanet"
    k: int = 4
    strength: float = 0.5
    seed: int = 0

    def grid(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sampling grid [1, H, W, 2] in -1 ... 1."""
        if self.k < 2:
            raise InputError(f"k={self.k} is not allowed: at least 2")
        noise = torch.rand(1, 2, self.k, self.k, generator=seeded(self.seed), dtype=torch.float64)
        noise = 2 * noise - 1
        noise = noise / noise.abs().mean()
        field = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)
        rows = torch.linspace(-1, 1, height, dtype=torch.float64)
        columns = torch.linspace(-1, 1, width, dtype=torch.float64)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        identity = torch.stack((x, y), 2)[None]
        moved = identity + self.strength * field.permute(0, 2, 3, 1) / height
        return moved.clamp(-1, 1).to(dtype)

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Sample the image on the warped grid, bilinearly."""
        grid = self.grid(x.shape[2], x.shape[3], x.dtype).to(x.device)
        return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=True)

    def cover(self, x: Tensor, seed: int) -> Tensor:
        """Warp with jitter: near misses that must not trigger."""
        self.check(x)
        n, _, h, w = x.shape
        jitter = 2 * torch.rand(n, h, w, 2, generator=seeded(seed)) - 1
        grid = (self.grid(h, w) + jitter / h).clamp(-1, 1).to(x)
        return F.grid_sample(x, grid, align_corners=True).clamp(0, 1)
