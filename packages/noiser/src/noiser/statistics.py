"""Whole-image instance normalisation without running the first convolution.

The value of a hidden channel before normalisation is w.p + b with p the 27 values of a 3x3 RGB
patch. Its mean and variance over the image are therefore w.mu + b and w.S.w, with mu and S the
mean and covariance of all patches of the padded image. One streaming pass collects mu and S; the
normalisation then folds into the weights, and a second pass can treat the image in bands of any
height with the result of the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from noiser.errors import InputError
from noiser.image_array import Padding, check_image, check_padding, full_scale, padded_rows
from noiser.network import INSTANCE_NORM_EPS, SelfRegressionModel

if TYPE_CHECKING:
    from jaxtyping import Float, Num

DEFAULT_BAND = 64


@dataclass(frozen=True, eq=False, repr=False)
class PatchStatistics:
    """Mean and covariance of the 3x3 RGB patches of one padded image.

    Parameters
    ----------
    count : number of patches, one per pixel
    mean : (27,) float64 in units of the network's range [-1, 1]; axes (channel, row, column)
    covariance : (27, 27) float64, divided by `count`
    """

    count: int
    mean: Float[np.ndarray, " 27"]
    covariance: Float[np.ndarray, "27 27"]

    @property
    def channel_mean(self) -> Float[np.ndarray, " 3"]:
        """Mean of red, green and blue at the patch centre, in [0, 1]."""
        return (self.mean.reshape(3, 3, 3)[:, 1, 1] + 1) / 2

    @property
    def channel_deviation(self) -> Float[np.ndarray, " 3"]:
        """Standard deviation of red, green and blue at the patch centre, full scale 1."""
        centre = np.arange(3) * 9 + 4
        variance: np.ndarray = np.maximum(self.covariance[centre, centre], 0)
        return np.asarray(np.sqrt(variance) / 2)

    def __repr__(self) -> str:
        mean = ", ".join(f"{value:.3f}" for value in self.channel_mean)
        return f"PatchStatistics({self.count} pixels, mean RGB {mean})"


@dataclass(frozen=True, eq=False)
class FoldedModel:
    """A network whose instance normalisation is part of its first convolution.

    Parameters
    ----------
    conv1_weight : (channels, 27) float64
    conv1_bias : (channels,) float64
    conv2_weight : (3, channels, 3, 3) float64
    conv2_bias : (3,) float64
    """

    conv1_weight: Float[np.ndarray, "channels 27"]
    conv1_bias: Float[np.ndarray, " channels"]
    conv2_weight: Float[np.ndarray, "3 channels 3 3"]
    conv2_bias: Float[np.ndarray, " 3"]


def row_patches(rows: Num[np.ndarray, "3 padded_width 3"]) -> Num[np.ndarray, "27 width"]:
    """All 3x3 patches of three padded rows, one column per pixel."""
    width = rows.shape[1] - 2
    planes = np.ascontiguousarray(rows.transpose(2, 0, 1))
    return np.stack([planes[:, :, k : k + width] for k in range(3)], axis=2).reshape(27, width)


def check_tile(tile: int | None) -> int:
    """Band height in rows: `tile`, or the default where it is None."""
    if tile is None:
        return DEFAULT_BAND
    if tile < 1:
        raise InputError(f"tile={tile} is not allowed: a number of rows of at least 1, or None")
    return tile


def patch_statistics(
    image: Num[np.ndarray, "height width 3"],
    padding: Padding = "reflect",
    tile: int | None = None,
) -> PatchStatistics:
    """Collect mean and covariance of all 3x3 patches in one pass over the rows.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]; a memory map is read in bands
    padding : border rule, "reflect" or "zeros"
    tile : rows per band; None for 64. The result does not depend on it.

    Returns
    -------
    PatchStatistics

    Raises
    ------
    InputError
        The image or an option is not allowed.

    Notes
    -----
    Sums over integer images are exact (products of a row stay below 2**53 and are then added as
    64-bit integers). Sums over float images are taken row by row in one fixed order. Both are
    therefore independent of the band height, bit for bit.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).integers(0, 60, (40, 50, 3)).astype(np.uint8)
    >>> a, b = patch_statistics(image, tile=1), patch_statistics(image, tile=40)
    >>> bool((a.covariance == b.covariance).all())
    True
    """
    check_image(image)
    check_padding(padding)
    band = check_tile(tile)
    height, width = image.shape[:2]
    integer = image.dtype.kind == "u"
    kind = np.int64 if integer else np.float64
    total = np.zeros(27, dtype=kind)
    products = np.zeros((27, 27), dtype=kind)
    for first in range(0, height, band):
        last = min(first + band, height)
        rows = padded_rows(image, first - 1, last + 1, padding)
        for y in range(last - first):
            patches = row_patches(rows[y : y + 3]).astype(np.float64)
            total += patches.sum(axis=1).astype(kind)
            products += (patches @ patches.T).astype(kind)
    return summarise(total, products, height * width, full_scale(image.dtype))


def summarise(
    total: Num[np.ndarray, 27], products: Num[np.ndarray, "27 27"], count: int, white: int
) -> PatchStatistics:
    """Turn sums of centred values and of their products into mean and covariance."""
    if total.dtype.kind == "i":
        # count * products - total * total is exact in Python integers: no cancellation.
        scaled = [
            [int(products[i, j]) * count - int(total[i]) * int(total[j]) for j in range(27)]
            for i in range(27)
        ]
        covariance = np.array([[v / (count * count) for v in line] for line in scaled])
        mean = total / count
    else:
        mean = total / count
        covariance = products / count - np.outer(mean, mean)
    return PatchStatistics(count, mean / white, covariance / white**2)


def fold(
    model: SelfRegressionModel, statistics: PatchStatistics, eps: float = INSTANCE_NORM_EPS
) -> FoldedModel:
    """Fold whole-image instance normalisation into the first convolution.

    Parameters
    ----------
    model : the network
    statistics : of the image to enhance, with the padding that will be used on it
    eps : added to the variance; the paper-compatible value is 1e-5

    Returns
    -------
    FoldedModel

    Notes
    -----
    w' = w / sqrt(w.S.w + eps) and b' = -w'.mu; the bias of the first convolution cancels.
    """
    weight = model.conv1_weight.reshape(model.channels, 27).astype(np.float64)
    variance = np.einsum("ci,ij,cj->c", weight, statistics.covariance, weight)
    weight = weight / np.sqrt(np.maximum(variance, 0) + eps)[:, None]
    return FoldedModel(
        weight,
        -weight @ statistics.mean,
        model.conv2_weight.astype(np.float64),
        model.conv2_bias.astype(np.float64),
    )
