"""The network in numpy and float64: the reference that every faster path is checked against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from noiser.activation import gelu
from noiser.image_array import Padding, check_image, check_padding, full_scale, padded_rows
from noiser.network import INSTANCE_NORM_EPS, SelfRegressionModel
from noiser.statistics import FoldedModel, check_tile, fold, patch_statistics, row_patches

if TYPE_CHECKING:
    from jaxtyping import Float, Num


def _pad_columns(
    hidden: Float[np.ndarray, "channels width"], padding: Padding
) -> Float[np.ndarray, "channels padded_width"]:
    if padding == "zeros":
        return np.pad(hidden, ((0, 0), (1, 1)))
    return np.pad(hidden, ((0, 0), (1, 1)), mode="edge" if hidden.shape[1] == 1 else "reflect")


def hidden_row(
    folded: FoldedModel, rows: Num[np.ndarray, "3 padded_width 3"], white: int, padding: Padding
) -> Float[np.ndarray, "channels padded_width"]:
    """First convolution, normalisation and GELU of one image row, padded by one column."""
    patches = row_patches(rows) / white
    return _pad_columns(gelu(folded.conv1_weight @ patches + folded.conv1_bias[:, None]), padding)


def forward_bands(
    folded: FoldedModel,
    image: Num[np.ndarray, "height width 3"],
    padding: Padding = "reflect",
    tile: int | None = None,
) -> Iterator[tuple[int, Float[np.ndarray, "rows width 3"]]]:
    """Yield the network's output in bands of rows, top to bottom.

    Parameters
    ----------
    folded : network with the statistics of `image`
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    padding : border rule of both convolutions
    tile : rows per band; None for 64

    Yields
    ------
    first row, (rows, width, 3) float64 in [0, 1]

    Notes
    -----
    Every row is computed by the same operations on the same numbers whatever the band, so the
    pixels do not depend on `tile`.
    """
    height, width = image.shape[:2]
    white = full_scale(image.dtype)
    channels = folded.conv1_bias.size
    # (3, 3 * channels * 3): one product per output row, axes (row offset, channel, column offset)
    weight = folded.conv2_weight.transpose(0, 2, 1, 3).reshape(3, -1)
    border = np.zeros((channels, width + 2))

    def hidden(row: int) -> Float[np.ndarray, "channels padded_width"]:
        if padding == "zeros" and not 0 <= row < height:
            return border
        row = min(abs(row), max(2 * (height - 1) - row, 0), height - 1)
        return hidden_row(folded, padded_rows(image, row - 1, row + 2, padding), white, padding)

    window = [hidden(-1), hidden(0)]
    for first in range(0, height, check_tile(tile)):
        last = min(first + check_tile(tile), height)
        band = np.empty((last - first, width, 3))
        for y in range(first, last):
            window.append(hidden(y + 1))
            stack = np.stack(window)
            columns = np.stack([stack[:, :, k : k + width] for k in range(3)], axis=2)
            value = weight @ columns.reshape(-1, width) + folded.conv2_bias[:, None]
            band[y - first] = (np.tanh(value).T + 1) / 2
            window.pop(0)
        yield first, band


def forward(
    model: SelfRegressionModel,
    image: Num[np.ndarray, "height width 3"],
    padding: Padding = "reflect",
    tile: int | None = None,
    eps: float = INSTANCE_NORM_EPS,
) -> Float[np.ndarray, "height width 3"]:
    """Run the network on an image of any size, in float64.

    Parameters
    ----------
    model : the network
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    padding : border rule of both convolutions; "zeros" is what the paper's layers do by default
    tile : rows treated at a time; None for 64. The result does not depend on it.
    eps : of the instance normalisation

    Returns
    -------
    (height, width, 3) float64 in [0, 1]

    Raises
    ------
    InputError
        The image or an option is not allowed.

    Examples
    --------
    Gain and offset of the exposure vanish, because the normalisation removes both:

    >>> import numpy as np
    >>> model = SelfRegressionModel.initialise(seed=0)
    >>> image = np.random.default_rng(0).random((20, 30, 3))
    >>> dark = 0.3 * image + 0.01
    >>> bool(abs(forward(model, image) - forward(model, dark)).max() < 1 / 255)
    True
    """
    check_image(image)
    check_padding(padding)
    folded = fold(model, patch_statistics(image, padding, tile), eps)
    out = np.empty(image.shape)
    for first, band in forward_bands(folded, image, padding, tile):
        out[first : first + band.shape[0]] = band
    return out
