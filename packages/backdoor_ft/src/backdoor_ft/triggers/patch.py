"""Patches: BadNets' square, single pixels, and the corners of label-consistent poisoning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_ft.errors import InputError
from backdoor_ft.triggers.base import Trigger, seeded


@dataclass(frozen=True)
class BadNets(Trigger):
    """A square in the image's corner (Gu et al. 2017; BackdoorBench: white, 3 x 3).

    Attributes
    ----------
    size : edge in pixels
    offset : pixels between the patch and the lower and right edges
    pattern : "white", "checker", or "random"
    seed : of the random pattern
    """

    name: ClassVar[str] = "badnets"
    size: int = 3
    offset: tuple[int, int] = (0, 0)
    pattern: str = "white"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size={self.size} is not allowed: at least 1 pixel")
        if self.pattern not in ("white", "checker", "random"):
            raise InputError(f"pattern={self.pattern!r} is not allowed: white, checker, random")

    def check(self, x: Tensor) -> None:
        """Raise where the patch leaves the image."""
        super().check(x)
        h, w = x.shape[2:]
        down, right = self.offset
        if min(down, right) < 0 or self.size + down > h or self.size + right > w:
            raise InputError(
                f"size={self.size}, offset={self.offset} lies off the image of {h} x {w} pixels:"
                " size + offset must fit into it"
            )

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Write the patch over exactly size x size pixels."""
        c, h, w = x.shape[1:]
        if self.pattern == "random":
            patch = torch.rand(c, self.size, self.size, generator=seeded(self.seed))
        else:
            patch = torch.ones(c, self.size, self.size)
            if self.pattern == "checker":
                grid = torch.arange(self.size)
                patch = patch * ((grid[:, None] + grid) % 2 == 0)
        top, left = h - self.offset[0] - self.size, w - self.offset[1] - self.size
        out = x.clone()
        out[:, :, top : top + self.size, left : left + self.size] = patch.to(x)
        return out


@dataclass(frozen=True)
class Pixels(Trigger):
    """Single pixels of every channel set to one value (ART's ``add_pattern_bd`` and the like).

    Attributes
    ----------
    positions : (row, column) of each pixel; negative ones count from the lower and right edges
    value : what they become, 0 ... 1
    """

    name: ClassVar[str] = "pixels"
    positions: tuple[tuple[int, int], ...] = ((-2, -2), (-3, -3), (-2, -4), (-4, -2))
    value: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", tuple((int(r), int(c)) for r, c in self.positions))
        if not self.positions or not 0 <= self.value <= 1:
            raise InputError(
                f"positions={self.positions}, value={self.value} are not allowed: at least one"
                " pixel, 0 <= value <= 1"
            )

    def check(self, x: Tensor) -> None:
        """Raise where a pixel lies off the image."""
        super().check(x)
        h, w = x.shape[2:]
        if not all(-h <= r < h and -w <= c < w for r, c in self.positions):
            raise InputError(f"positions={self.positions} lies off the image of {h} x {w} pixels")

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Set the pixels of a copy."""
        out = x.clone()
        for row, column in self.positions:
            out[:, :, row, column] = self.value
        return out

    def apply_(self, x: Tensor, index: Tensor, training: bool = False) -> None:
        """Set the pixels of the chosen inputs and touch nothing else."""
        self.check(x)
        for row, column in self.positions:
            x[:, :, row, column].index_fill_(0, index, self.value)


@dataclass(frozen=True)
class LabelConsistent(Trigger):
    """Four small corner patches, added at reduced amplitude (Turner et al. 2019).

    Used with ``label_map="clean_label"``; :func:`backdoor_ft.attacks.adversarial_base` makes the
    poisoned images hard first, as the paper of the attack does.
    """

    name: ClassVar[str] = "label_consistent"
    size: int = 3
    amplitude: float = 1.0

    def check(self, x: Tensor) -> None:
        """Raise where two corners do not fit beside each other."""
        super().check(x)
        if self.size < 1 or 2 * self.size > min(x.shape[2:]):
            raise InputError(
                f"size={self.size} is not allowed: twice the size must fit into"
                f" {x.shape[2]} x {x.shape[3]} pixels"
            )

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Blend a checker of black and white into each corner."""
        grid = torch.arange(self.size)
        patch = ((grid[:, None] + grid) % 2 == 0).to(x)
        out = x.clone()
        s, a = self.size, self.amplitude
        for rows in (slice(0, s), slice(-s, None)):
            for columns in (slice(0, s), slice(-s, None)):
                out[:, :, rows, columns] = (1 - a) * out[:, :, rows, columns] + a * patch
        return out
