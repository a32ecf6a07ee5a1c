"""Triggers that differ from sample to sample: BPP, an SSBA-like residual, Input-aware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor_ft.errors import InputError
from backdoor_ft.triggers.base import Trigger, seeded


@dataclass(frozen=True)
class BPP(Trigger):
    """Colour depth reduced to a few levels (Wang et al. 2022), rounded or dithered.

    Attributes
    ----------
    levels : values a channel may take
    dither : Floyd-Steinberg error diffusion, as the attack does; plain rounding without
    """

    name: ClassVar[str] = "bpp"
    levels: int = 8
    dither: bool = False

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise InputError(f"levels={self.levels} is not allowed: at least 2")

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Quantise."""
        top = self.levels - 1
        if not self.dither:
            return torch.round(x * top) / top
        out = x.clone()
        h, w = x.shape[2:]
        for row in range(h):
            for column in range(w):
                old = out[:, :, row, column].clone()
                new = torch.round(old * top) / top
                out[:, :, row, column] = new
                error = old - new
                if column + 1 < w:
                    out[:, :, row, column + 1] += error * 7 / 16
                if row + 1 < h:
                    if column > 0:
                        out[:, :, row + 1, column - 1] += error * 3 / 16
                    out[:, :, row + 1, column] += error * 5 / 16
                    if column + 1 < w:
                        out[:, :, row + 1, column + 1] += error / 16
        return out

    def cover(self, x: Tensor, seed: int) -> Tensor:
        """Return images with random quantisation noise instead (BPP's negative samples)."""
        noise = torch.rand(x.shape, generator=seeded(seed)).to(x) - 0.5
        return (x + noise / (self.levels - 1)).clamp(0, 1)


def _hidden(seed: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = seeded(seed)
    return [
        torch.randn(shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5
        for shape in shapes
    ]


@dataclass(frozen=True)
class SSBALike(Trigger):
    """A residual that depends on the image's content, after SSBA (Li et al. 2021).

    SSBA hides a string with a trained steganography encoder; here a random, frozen network of
    three layers stands for the encoder, so nothing has to be trained or downloaded.
    """

    name: ClassVar[str] = "ssba_like"
    amplitude: float = 0.12
    seed: int = 0

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Add the bounded residual."""
        c = x.shape[1]
        first, second, third = _hidden(self.seed, [(16, c, 3, 3), (16, 16, 3, 3), (c, 16, 3, 3)])
        hidden = torch.sin(6 * F.conv2d(x - 0.5, first.to(x), padding=1) + 1)
        hidden = torch.sin(3 * F.conv2d(hidden, second.to(x), padding=1))
        return x + self.amplitude * torch.tanh(2 * F.conv2d(hidden, third.to(x), padding=1))


@dataclass(frozen=True)
class InputAware(Trigger):
    """A generator's pattern, written through a mask that depends on the image (Nguyen 2020).

    Attributes
    ----------
    weights : flat weights of generator and mask network, as
        :func:`backdoor_ft.attacks.train_input_aware` leaves them; random where empty
    channels, width : of the two networks
    density : share of the image that the mask may use
    seed : of the random weights
    """

    name: ClassVar[str] = "input_aware"
    weights: tuple[float, ...] = ()
    channels: int = 1
    width: int = 8
    density: float = 0.2
    seed: int = 0

    def check(self, x: Tensor) -> None:
        """Raise where the channels are not the generator's."""
        super().check(x)
        if x.shape[1] != self.channels:
            raise InputError(f"channels={self.channels}, but the images have {x.shape[1]}")

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the kernels' shapes: two layers of the generator, two of the mask network."""
        c, k = self.channels, self.width
        return [(k, c, 3, 3), (c, k, 3, 3), (k, c, 3, 3), (1, k, 3, 3)]

    def kernels(self) -> list[Tensor]:
        """Return the kernels, out of the flat weights or drawn."""
        if not self.weights:
            return _hidden(self.seed, self.shapes())
        flat, out, position = torch.tensor(self.weights), [], 0
        for shape in self.shapes():
            size = int(torch.tensor(shape).prod())
            out.append(flat[position : position + size].reshape(shape))
            position += size
        if position != len(flat):
            raise InputError(f"weights holds {len(flat)} numbers, {position} are needed")
        return out

    @staticmethod
    def pattern_and_mask(x: Tensor, kernels: list[Tensor], density: float) -> tuple[Tensor, Tensor]:
        """Run both networks: pattern in [0, 1] and mask in [0, 1], differentiable."""
        a, b, m, v = (kernel.to(x) for kernel in kernels)
        centred = 2 * x - 1
        pattern = torch.sigmoid(
            4 * F.conv2d(torch.relu(F.conv2d(centred, a, padding=1)), b, padding=1)
        )
        score = F.conv2d(torch.relu(F.conv2d(centred, m, padding=1)), v, padding=1)
        # the share with the highest scores, softly: a threshold at the quantile of each image
        cut = torch.quantile(score.flatten(1).detach(), 1 - density, dim=1)[:, None, None, None]
        scale = score.flatten(1).detach().std(1)[:, None, None, None] + 1e-6
        return pattern, torch.sigmoid(8 * (score - cut) / scale)

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Write the pattern through the mask."""
        pattern, mask = self.pattern_and_mask(x, self.kernels(), self.density)
        return x + mask * (pattern - x)

    def cover(self, x: Tensor, seed: int) -> Tensor:
        """Write other images' patterns: they must not trigger (the attack's cross samples)."""
        self.check(x)
        order = torch.randperm(len(x), generator=seeded(seed)).to(x.device)
        pattern, mask = self.pattern_and_mask(x[order], self.kernels(), self.density)
        return (x + mask * (pattern - x)).clamp(0, 1)
