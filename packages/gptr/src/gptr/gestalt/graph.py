"""The gestalt graph by itself: images in, one row-stochastic matrix per law out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gptr.gestalt import laws as law
from gptr.gestalt.coarsen import centred, group_tokens
from gptr.gestalt.descriptors import HIGH, LOW, Descriptors, describe


def as_arrays(images: object) -> list[np.ndarray]:
    """Return a list of (H, W, 3) uint8 arrays from a batch, a list, or one image.

    Raises
    ------
    ValueError
        Naming the shape and type that came.
    """
    if isinstance(images, Tensor):
        if images.ndim == 3:
            images = images[None]
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images has shape {tuple(images.shape)}: (B, 3, H, W) is needed")
        if images.dtype != torch.uint8:
            if not bool(torch.isfinite(images).all()):
                raise ValueError("images has NaN or infinite values: they must lie in 0..1")
            images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        return list(images.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    if isinstance(images, np.ndarray) and images.ndim == 3:
        images = [images]
    if not isinstance(images, Sequence | np.ndarray):
        images = [images]
    arrays = []
    for image in images:
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ValueError(
                f"an image has shape {array.shape} and type {array.dtype}: (H, W, 3) uint8, a PIL "
                "image or a (B, 3, H, W) tensor is needed"
            )
        arrays.append(array)
    return arrays


class GestaltGraph(nn.Module):
    """Which cells of an image belong together, by each law; needs no training.

    Parameters
    ----------
    laws
        Any of ``similarity``, ``proximity``, ``smoothness``.
    stride
        Side of a cell in pixels.
    temperature
        Colour distance (0..1 a channel) at which similarity fades.
    sigma
        Distance in cells at which proximity fades.
    spread
        Turn in radians at which continuation fades.
    decay, hops
        Weight of each further cell along a contour, and how many are followed.

    Examples
    --------
    >>> image = np.zeros((32, 64, 3), np.uint8)
    >>> image[:, 32:] = 255
    >>> A = GestaltGraph(("similarity",))(image)["similarity"]
    >>> A.shape
    torch.Size([1, 8, 8])
    >>> bool(A[0, 0, 1] > 100 * A[0, 0, 2])
    True
    """

    def __init__(
        self,
        laws: tuple[str, ...] = law.LAWS,
        *,
        stride: int = 16,
        temperature: float = 0.15,
        sigma: float = 2.0,
        spread: float = 0.3,
        decay: float = 0.9,
        hops: int = 24,
        low: int = LOW,
        high: int = HIGH,
    ) -> None:
        super().__init__()
        self.laws = law.check_laws(laws)
        for name, value in (("temperature", temperature), ("sigma", sigma), ("spread", spread)):
            if not value > 0:
                raise ValueError(f"{name}={value}: must be positive")
        if not 0 < decay <= 1 or hops < 0:
            raise ValueError(f"decay={decay}, hops={hops}: 0 < decay <= 1 and hops >= 0 are needed")
        self.stride, self.hops, self.decay = stride, hops, decay
        self.temperature, self.sigma, self.spread = temperature, sigma, spread
        self.low, self.high = low, high

    def extra_repr(self) -> str:
        """Say the laws and their scales."""
        return (
            f"laws={self.laws}, stride={self.stride}, temperature={self.temperature}, "
            f"sigma={self.sigma}, spread={self.spread}, decay={self.decay}, hops={self.hops}"
        )

    def describe(self, images: object) -> Descriptors:
        """Return the descriptors the laws compare."""
        return describe(as_arrays(images), self.stride, low=self.low, high=self.high)

    def weights(self, descriptors: Descriptors) -> dict[str, Float[Tensor, "B N N"]]:
        """Return unnormalised logits of each law."""
        out = {}
        if "similarity" in self.laws:
            out["similarity"] = law.similarity_logits(descriptors.colour, self.temperature)
        if "proximity" in self.laws:
            near = law.proximity_logits(descriptors.places, self.sigma)
            out["proximity"] = near.expand(len(descriptors.colour), -1, -1)
        if "smoothness" in self.laws:
            right, down = law.continuation(descriptors, self.spread)
            over = law.bridges(descriptors, self.spread)
            total = law.smoothness_weights(right, down, self.decay, self.hops, over)
            out["smoothness"] = torch.log(law.FLOOR + total)
        return out

    def forward(self, images: object) -> dict[str, Float[Tensor, "B N N"]]:
        """Return the matrix of each law; rows of cells that hold image sum to one.

        Parameters
        ----------
        images
            (B, 3, H, W) tensor (uint8, or float in 0..1), array, PIL image, or a list of these.
        """
        found = self.describe(images)
        logits = self.weights(found)
        return {k: law.masked_softmax(v, found.valid) for k, v in logits.items()}

    def groups(self, images: object, count: int = 16) -> dict[str, tuple[Tensor, Tensor]]:
        """Return, per law, the group of every cell (B, N) and the group tokens (B, count, F).

        The group is -1 for padding, and for cells that no contour joins to any group of smoothness.
        Tokens are descriptors (relative to their mean over the image) averaged over a group.
        """
        found = self.describe(images)
        rows, columns = found.grid
        features = {
            "similarity": found.colour,
            "proximity": found.places.expand(len(found.colour), -1, -1),
            "smoothness": torch.cat(
                (
                    found.tensor[..., :2] * found.tensor[..., 2:],
                    found.density[..., None],
                    found.places.expand(len(found.colour), -1, -1) / max(rows, columns),
                ),
                -1,
            ),
        }
        out = {}
        for name, logits in self.weights(found).items():
            value = centred(features[name], found.valid)
            tokens, soft = group_tokens(value, logits, found.valid, count)
            member = found.valid
            if name == "smoothness":
                itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
                linked = logits.masked_fill(itself, -math.inf).amax(-1) > math.log(2 * law.FLOOR)
                member = member & linked & (soft.amax(-1) > 1.001 / soft.shape[-1])
            out[name] = (soft.argmax(-1).masked_fill(~member, -1), tokens)
        return out
