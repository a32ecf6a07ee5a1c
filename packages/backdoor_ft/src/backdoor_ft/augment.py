"""Augmentation in torch: crop, flip and cutout, drawn for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Augment:
    """Random shift by up to `pad` pixels (zeros outside), flip, and a square that is cut out."""

    pad: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(
        self, x: Float[Tensor, "n c h w"], generator: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return an augmented copy; anything but a batch of images comes back as it is."""
        if x.ndim != 4 or not (self.pad or self.flip or self.cutout):
            return x
        n, _, h, w = x.shape
        if self.pad or self.flip:
            draws = draw_crops(n, self.pad, self.flip, generator).to(x.device)
            x = crop_flip(x, draws, self.pad)
        if self.cutout:
            top = torch.randint(0, h, (n, 1), generator=generator).to(x.device)
            left = torch.randint(0, w, (n, 1), generator=generator).to(x.device)
            half = self.cutout // 2
            rows = (torch.arange(h, device=x.device)[None] - top + half).float()
            columns = (torch.arange(w, device=x.device)[None] - left + half).float()
            inside_r = (rows >= 0) & (rows < self.cutout)
            inside_c = (columns >= 0) & (columns < self.cutout)
            x = x * ~(inside_r[:, None, :, None] & inside_c[:, None, None, :])
        return x


NO_AUGMENT = Augment()


def draw_crops(n: int, pad: int, flip: bool, generator: torch.Generator) -> Int[Tensor, "n 3"]:
    """Draw row, column and flip of each sample."""
    draws = torch.zeros(n, 3, dtype=torch.int64)
    draws[:, :2] = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
    if flip:
        draws[:, 2] = torch.randint(0, 2, (n,), generator=generator)
    return draws


def crop_flip(
    x: Float[Tensor, "n c h w"], draws: Int[Tensor, "n 3"], pad: int
) -> Float[Tensor, "n c h w"]:
    """Cut the drawn window out of the padded image and mirror it where drawn."""
    n, c, h, w = x.shape
    padded = F.pad(x, (pad, pad, pad, pad))
    rows = draws[:, :1] + torch.arange(h, device=x.device)
    columns = torch.arange(w, device=x.device).expand(n, w)
    columns = torch.where(draws[:, 2:] == 1, w - 1 - columns, columns) + draws[:, 1:2]
    samples = torch.arange(n, device=x.device)[:, None, None, None]
    channels = torch.arange(c, device=x.device)[None, :, None, None]
    return padded[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]
