"""Data-free methods to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from noiser.metrics import as_float, luma

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
