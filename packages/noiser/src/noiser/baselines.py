"""Data-free methods to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from noiser.filters import box_mean
from noiser.metrics import as_float, gaussian_blur, luma

if TYPE_CHECKING:
    from jaxtyping import Float, Num

_MEAN = 0.45


def identity(image: Num[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """Return the image as it is, as floats."""
    return as_float(image)


def gain(
    image: Num[np.ndarray, "height width 3"], mean: float = _MEAN
) -> Float[np.ndarray, "height width 3"]:
    """Multiply by one factor that brings the mean to `mean`, then clip."""
    value = as_float(image)
    result: np.ndarray = np.clip(value * (mean / max(value.mean(), 1e-12)), 0, 1)
    return result


def gray_world(
    image: Num[np.ndarray, "height width 3"], mean: float = _MEAN
) -> Float[np.ndarray, "height width 3"]:
    """Multiply each channel by the factor that brings its mean to `mean`, then clip."""
    value = as_float(image)
    result: np.ndarray = np.clip(value * (mean / np.maximum(value.mean(axis=(0, 1)), 1e-12)), 0, 1)
    return result


def gamma(
    image: Num[np.ndarray, "height width 3"], mean: float = _MEAN
) -> Float[np.ndarray, "height width 3"]:
    """Raise to the power that brings the mean to `mean`.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    mean : wanted mean of all values

    Returns
    -------
    (height, width, 3) float64

    Examples
    --------
    >>> import numpy as np
    >>> dark = np.random.default_rng(0).integers(0, 40, (30, 30, 3)).astype(np.uint8)
    >>> round(float(gamma(dark).mean()), 3)
    0.45
    """
    value = as_float(image)
    return value ** mean_exponent(value, mean)


def mean_exponent(value: Float[np.ndarray, "*shape"], mean: float) -> float:
    """Exponent in 2**-5 ... 2**5 that brings the mean of `value` to `mean`, by bisection."""
    low, high = -5.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        if float(np.mean(value**2.0**middle)) > mean:
            low = middle
        else:
            high = middle
    return float(2.0 ** ((low + high) / 2))


def histogram_equalisation(
    image: Num[np.ndarray, "height width 3"],
) -> Float[np.ndarray, "height width 3"]:
    """Equalise the histogram of the luma (256 bins) and scale RGB by its change."""
    value, y = as_float(image), luma(image)
    counts, _ = np.histogram(y, bins=256, range=(0, 1))
    cumulative = np.cumsum(counts) / y.size
    equalised = cumulative[np.minimum((y * 256).astype(np.intp), 255)]
    result: np.ndarray = np.clip(value * (equalised / np.maximum(y, 1 / 512))[..., None], 0, 1)
    return result


def zscore(
    image: Num[np.ndarray, "height width 3"], slope: float = 0.5
) -> Float[np.ndarray, "height width 3"]:
    """Normalise each channel and compress it by tanh: the network's effect without a network.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    slope : factor before the tanh

    Returns
    -------
    (height, width, 3) float64, mean near 0.5 in every channel
    """
    value = as_float(image)
    deviation = value.std(axis=(0, 1))
    z = (value - value.mean(axis=(0, 1))) / np.maximum(deviation, 1e-6)
    result: np.ndarray = (np.tanh(slope * z) + 1) / 2
    return result


def with_luma(
    image: Num[np.ndarray, "height width 3"], lit: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width 3"]:
    """Scale the colours of each pixel so that its luma becomes `lit`, clipped to [0, 1]."""
    result: np.ndarray = as_float(image) * (lit / np.maximum(luma(image), 1 / 512))[..., None]
    return np.asarray(np.clip(result, 0, 1))


def clahe(
    image: Num[np.ndarray, "height width 3"], clip_limit: float = 2.0, tiles: int = 8
) -> Float[np.ndarray, "height width 3"]:
    """Equalise the luma in tiles, with limited contrast, and scale RGB by its change.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    clip_limit : largest count of a bin, in units of a flat histogram
    tiles : along each side

    Returns
    -------
    (height, width, 3) float64

    References
    ----------
    Zuiderveld: Contrast limited adaptive histogram equalization, Graphics Gems IV, 1994. Bins,
    clipping and interpolation as in OpenCV.
    """
    return with_luma(image, equalise_tiles(luma(image), clip_limit, tiles))


def equalise_tiles(
    plane: Float[np.ndarray, "height width"], clip_limit: float, tiles: int
) -> Float[np.ndarray, "height width"]:
    """Contrast-limited equalisation of one plane in [0, 1], with 256 levels."""
    levels = np.rint(plane * 255).astype(np.intp)
    height, width = plane.shape
    extended = np.pad(levels, ((0, -height % tiles), (0, -width % tiles)), mode="symmetric")
    rows, columns = extended.shape[0] // tiles, extended.shape[1] // tiles
    area = rows * columns
    limit = max(int(clip_limit * area / 256), 1)
    tables = np.empty((tiles, tiles, 256))
    for i in range(tiles):
        for j in range(tiles):
            tile = extended[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            counts = np.bincount(tile.ravel(), minlength=256)
            excess = int(np.maximum(counts - limit, 0).sum())
            counts = np.minimum(counts, limit) + excess // 256
            rest = excess % 256
            if rest:
                step = max(256 // rest, 1)
                counts[: step * rest : step][:rest] += 1
            tables[i, j] = np.rint(np.clip(np.cumsum(counts) * (255 / area), 0, 255))
    y = np.arange(height) / rows - 0.5
    x = np.arange(width) / columns - 0.5
    y0, x0 = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    wy, wx = (y - y0)[:, None], (x - x0)[None]
    low_y, high_y = (np.clip(y0 + k, 0, tiles - 1)[:, None] for k in (0, 1))
    low_x, high_x = (np.clip(x0 + k, 0, tiles - 1)[None] for k in (0, 1))
    top = tables[low_y, low_x, levels] * (1 - wx) + tables[low_y, high_x, levels] * wx
    bottom = tables[high_y, low_x, levels] * (1 - wx) + tables[high_y, high_x, levels] * wx
    return np.asarray(np.rint(top * (1 - wy) + bottom * wy) / 255)


def _smooth_lines(plane: np.ndarray, weights: np.ndarray, amount: float) -> np.ndarray:
    """Solve (I + amount A) u = plane along the columns of each row; A is the weighted Laplacian.

    The tridiagonal systems of all rows are solved at once (Thomas algorithm).
    """
    width = plane.shape[1]
    side = amount * weights[:, :-1]
    diagonal = np.ones_like(plane)
    diagonal[:, :-1] += side
    diagonal[:, 1:] += side
    upper = np.zeros_like(plane)
    value = np.empty_like(plane)
    value[:, 0] = plane[:, 0] / diagonal[:, 0]
    for x in range(1, width):
        upper[:, x - 1] = -side[:, x - 1] / (
            diagonal[:, x - 1] + (side[:, x - 2] * upper[:, x - 2] if x > 1 else 0)
        )
        pivot = diagonal[:, x] + side[:, x - 1] * upper[:, x - 1]
        value[:, x] = (plane[:, x] + side[:, x - 1] * value[:, x - 1]) / pivot
    for x in range(width - 2, -1, -1):
        value[:, x] -= upper[:, x] * value[:, x + 1]
    return value


def lime(
    image: Num[np.ndarray, "height width 3"], gamma: float = 0.6, smoothing: float = 0.15
) -> Float[np.ndarray, "height width 3"]:
    """Divide by a smooth illumination map.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    gamma : power of the map before the division
    smoothing : weight of its total variation

    Returns
    -------
    (height, width, 3) float64

    Notes
    -----
    The map is the largest channel, smoothed with weights 1 / abs(local gradient). The weighted
    least squares of the paper are solved by alternating lines (fast global smoother) in place
    of one large sparse system; no final denoising.

    References
    ----------
    Guo, Li, Ling: LIME, IEEE Transactions on Image Processing 26(2), 2017. Min et al.: Fast global
    image smoothing, IEEE Transactions on Image Processing 23(12), 2014.
    """
    value = as_float(image)
    brightest = value.max(axis=2)
    smooth = brightest
    # Amounts of three rounds whose sum is that of one solve: section III of the second reference.
    for round_ in range(3):
        amount = 1.5 * 4 ** (2 - round_) / (4**3 - 1) * smoothing * 10
        for _ in range(2):
            gradient = np.abs(np.diff(gaussian_blur(brightest, 2.0), axis=1, append=0))
            gradient[:, -1] = 0
            smooth = _smooth_lines(smooth, 1 / (gradient + 1e-2), amount)
            smooth, brightest = smooth.T, brightest.T
    result: np.ndarray = value / np.clip(smooth, 1e-2, 1)[..., None] ** gamma
    return np.asarray(np.clip(result, 0, 1))


def msrcr(
    image: Num[np.ndarray, "height width 3"], scales: tuple[float, ...] = (15, 80, 250)
) -> Float[np.ndarray, "height width 3"]:
    """Multi-scale retinex with colour restoration.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    scales : standard deviations of the surrounds in pixels, each by three passes of a box filter

    Returns
    -------
    (height, width, 3) float64; 1 % of the values are clipped on each side

    References
    ----------
    Jobson, Rahman, Woodell: A multiscale retinex for bridging the gap between color images and the
    human observation of scenes, IEEE Transactions on Image Processing 6(7), 1997.
    """
    value = as_float(image) * 255 + 1
    retinex = np.zeros_like(value)
    for sigma in scales:
        radius = max(1, round((np.sqrt(4 * sigma**2 + 1) - 1) / 2))
        for c in range(3):
            surround = value[..., c]
            for _ in range(3):
                surround = box_mean(surround, radius)
            retinex[..., c] += np.log(value[..., c] / surround) / len(scales)
    colour = np.log(125 * value / value.sum(axis=2, keepdims=True))
    out = colour * retinex
    low, high = np.quantile(out, (0.01, 0.99))
    result: np.ndarray = np.clip((out - low) / max(high - low, 1e-9), 0, 1)
    return result
