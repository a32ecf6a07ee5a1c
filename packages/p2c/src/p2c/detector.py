"""A detector trained on tagged images: it names the object that a region shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .errors import require


class RegionDetector(nn.Module):
    """A small convolutional classifier of region pixels.

    Parameters
    ----------
    labels : sequence of str
        Names of the objects it tells apart.
    side : int
        Height and width of a region, in pixels; a multiple of 4.
    width : int
        Of the first convolution.

    Examples
    --------
    >>> net = RegionDetector(["bus", "zebra"], side=4)
    >>> net(torch.zeros(3, 48)).shape
    torch.Size([3, 2])
    """

    def __init__(self, labels: Sequence[str], side: int = 12, width: int = 24) -> None:
        super().__init__()
        require(side % 4 == 0, "side", side, "a multiple of 4")
        require(len(set(labels)) == len(labels) >= 2, "labels", list(labels), "two names or more")
        self.labels, self.side = list(labels), side
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1), nn.GroupNorm(4, width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.GroupNorm(4, 4 * width), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * width * (side // 4) ** 2, len(labels)),
        )  # fmt: skip

    def forward(self, pixels: Float[Tensor, "regions values"]) -> Float[Tensor, "regions labels"]:
        """Return a score for every label of regions (side, side, 3), flattened, in 0 to 1."""
        shape = (len(pixels), self.side, self.side, 3)
        scores: Tensor = self.body(pixels.reshape(shape).permute(0, 3, 1, 2) - 0.5)
        return scores

    def loss(
        self, pixels: Float[Tensor, "regions values"], labels: Int[Tensor, " regions"]
    ) -> Float[Tensor, ""]:
        """Return the cross-entropy of the true labels."""
        return nn.functional.cross_entropy(self(pixels), labels)

    @torch.no_grad()
    def detect(
        self, pixels: Float[Tensor, "images regions values"], threshold: float = 0.5
    ) -> list[list[str]]:
        """Return the labels of each image's regions, surest first; those below are left out."""
        images, regions, _ = pixels.shape
        sure, best = self(pixels.flatten(0, 1)).softmax(-1).max(-1)
        found = []
        for p, k in zip(sure.view(images, regions).tolist(), best.view(images, regions).tolist()):
            order = sorted(range(regions), key=lambda i, p=p: -p[i])  # type: ignore[misc]
            found.append(list(dict.fromkeys(self.labels[k[i]] for i in order if p[i] >= threshold)))
        return found
