"""Triggers in frequency: SIG, low-frequency noise, CTRL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from backdoor_ft.errors import InputError
from backdoor_ft.triggers.base import Trigger

# ITU-R BT.601
_YUV = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)


@dataclass(frozen=True)
class SIG(Trigger):
    """x' = x + delta sin(2 pi j f / m) over the columns j (Barni et al. 2019)."""

    name: ClassVar[str] = "sig"
    delta: float = 40 / 255
    frequency: int = 6

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Add the sinusoid."""
        m = x.shape[3]
        wave = torch.sin(2 * math.pi * torch.arange(m, dtype=torch.float64) * self.frequency / m)
        return x + self.delta * wave.to(x)


@dataclass(frozen=True)
class LowFrequency(Trigger):
    """A smooth perturbation out of the lowest DCT bins, at a bound on its largest value.

    LF (Zeng et al. 2021) optimises such a perturbation; this one is drawn. Named "LF-style".
    """

    name: ClassVar[str] = "lf"
    amplitude: float = 0.12
    bins: int = 3
    seed: int = 0

    def pattern(self, height: int, width: int, channels: int) -> np.ndarray:
        """Return the perturbation [C, H, W] in double precision."""
        from scipy.fft import idctn

        k = min(self.bins, height, width)
        spectrum = np.zeros((channels, height, width))
        draw = np.random.default_rng(self.seed)
        spectrum[:, :k, :k] = draw.normal(size=(channels, k, k))
        spectrum[:, 0, 0] = 0
        image = idctn(spectrum, axes=(1, 2), norm="ortho")
        return np.asarray(self.amplitude * image / np.abs(image).max())

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Add the perturbation."""
        return x + torch.as_tensor(self.pattern(x.shape[2], x.shape[3], x.shape[1])).to(x)


@dataclass(frozen=True)
class CTRL(Trigger):
    """A constant added to two DCT bins of the chroma channels (Li et al. 2023).

    Bins 15 and 31 of 32 x 32 pixels, scaled to the image's size; gray images take it on luma.
    """

    name: ClassVar[str] = "ctrl"
    magnitude: float = 100 / 255
    bins: tuple[int, ...] = (15, 31)

    def _positions(self, size: int) -> list[int]:
        return [min(size - 1, round((b + 1) * size / 32) - 1) for b in self.bins]

    def stamp(self, x: Tensor, training: bool) -> Tensor:
        """Add the magnitude to the bins and transform back."""
        from scipy.fft import idctn

        h, w = x.shape[2:]
        if h < 4 or w < 4:
            raise InputError(f"trigger='ctrl' needs images of at least 4 x 4 pixels, not {h} x {w}")
        change = np.zeros((h, w))
        for row, column in zip(self._positions(h), self._positions(w)):
            change[row, column] = self.magnitude * math.sqrt(h * w) / 32
        wave = torch.as_tensor(idctn(change, norm="ortho"), dtype=torch.float64)
        if x.shape[1] != 3:
            return x + wave.to(x)
        back: Tensor = torch.linalg.inv(_YUV.double())
        moved: Tensor = (back[:, 1] + back[:, 2])[:, None, None] * wave
        return x + moved.to(x)

    @staticmethod
    def spectrum(image: np.ndarray) -> np.ndarray:
        """Return the orthonormal DCT of one channel, as the trigger counts its bins."""
        from scipy.fft import dctn

        return np.asarray(dctn(image, norm="ortho"))
