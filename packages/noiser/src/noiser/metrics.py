"""Image quality measures: with a reference, and without."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from noiser.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Num

# ITU-R BT.601, as scikit-image's and OpenCV's gray conversions differ from BT.709 by design.
_LUMA = np.array([0.299, 0.587, 0.114])


def as_float(image: Num[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """Image in [0, 1] as float64; integer types are divided by their full scale."""
    value: np.ndarray = image.astype(np.float64)
    if image.dtype.kind == "u":
        value /= np.iinfo(image.dtype).max
    return value


def luma(image: Num[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """Weighted sum 0.299 R + 0.587 G + 0.114 B in [0, 1] (ITU-R BT.601)."""
    result: np.ndarray = as_float(image) @ _LUMA
    return result


def _same_shape(image: np.ndarray, reference: np.ndarray) -> None:
    if image.shape != reference.shape:
        raise InputError(
            f"image has shape {image.shape}, reference {reference.shape}: must be equal;"
            " crop or resize one of them first"
        )


def psnr(
    image: Num[np.ndarray, "height width 3"], reference: Num[np.ndarray, "height width 3"]
) -> float:
    """Peak signal-to-noise ratio over all RGB values, in dB.

    Parameters
    ----------
    image, reference : (height, width, 3) of one shape, uint8, uint16 or float in [0, 1]

    Returns
    -------
    10 log10(1 / mean squared error); infinite for equal images

    Raises
    ------
    InputError
        The shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> black, gray = np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.1)
    >>> round(psnr(gray, black), 6)
    20.0
    """
    _same_shape(image, reference)
    error = float(np.mean(np.square(as_float(image) - as_float(reference))))
    return math.inf if error == 0 else -10.0 * math.log10(error)


def gaussian_blur(
    plane: Float[np.ndarray, "height width"], sigma: float, radius: int | None = None
) -> Float[np.ndarray, "height width"]:
    """Gaussian filter, cut at `radius` (3.5 sigma), edges mirrored with the edge pixel repeated."""
    radius = int(3.5 * sigma + 0.5) if radius is None else radius
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        width = [(0, 0), (0, 0)]
        width[axis] = (radius, radius)
        padded = np.pad(plane, width, mode="symmetric")
        length = plane.shape[axis]
        plane = sum(
            (tap * padded.take(range(k, k + length), axis) for k, tap in enumerate(taps)),
            start=np.zeros_like(plane),
        )
    return plane


def ssim(
    image: Num[np.ndarray, "height width 3"], reference: Num[np.ndarray, "height width 3"]
) -> float:
    """Structural similarity of the luma, Gaussian window of 1.5 pixels.

    Parameters
    ----------
    image, reference : (height, width, 3) of one shape, at least 11 x 11 pixels

    Returns
    -------
    mean of the index map without its border of 5 pixels; 1 for equal images

    Raises
    ------
    InputError
        The shapes differ or are too small.

    References
    ----------
    Wang, Bovik, Sheikh, Simoncelli, IEEE Transactions on Image Processing 13(4), 2004.
    """
    _same_shape(image, reference)
    if min(image.shape[:2]) < 11:
        raise InputError(f"image has shape {image.shape}: must be at least 11 x 11 pixels")
    a, b = luma(image), luma(reference)
    mean_a, mean_b = gaussian_blur(a, 1.5), gaussian_blur(b, 1.5)
    var_a = gaussian_blur(a * a, 1.5) - mean_a**2
    var_b = gaussian_blur(b * b, 1.5) - mean_b**2
    cov = gaussian_blur(a * b, 1.5) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    index = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return float(index[5:-5, 5:-5].mean())


def colour_cast(image: Num[np.ndarray, "height width 3"]) -> float:
    """Distance of the image from gray world: largest minus smallest channel mean, in [0, 1]."""
    means = as_float(image).mean(axis=(0, 1))
    return float(means.max() - means.min())


def gt_mean(
    image: Num[np.ndarray, "height width 3"], reference: Num[np.ndarray, "height width 3"]
) -> Float[np.ndarray, "height width 3"]:
    """Scale the image to the mean of the reference, clipped to [0, 1].

    Figures taken after this step know the answer's brightness; they are reported apart.
    """
    _same_shape(image, reference)
    value, target = as_float(image), as_float(reference)
    result: np.ndarray = np.clip(value * (target.mean() / max(value.mean(), 1e-12)), 0, 1)
    return result


def discrete_entropy(image: Num[np.ndarray, "height width 3"]) -> float:
    """Entropy of the 256 levels of the luma, in bits: 8 for a flat histogram.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    >>> round(discrete_entropy(ramp), 6)
    8.0
    """
    counts = np.bincount(np.rint(luma(image) * 255).astype(np.intp).ravel(), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def lightness_order_error(
    image: Num[np.ndarray, "height width 3"],
    original: Num[np.ndarray, "height width 3"],
    samples: int = 50,
) -> float:
    """Share of pixel pairs whose order of lightness changed (LOE), in 0 ... 1.

    Parameters
    ----------
    image : result
    original : shot that it was made from, of the same shape
    samples : the longer side is reduced to about so many pixels

    Returns
    -------
    mean over all pairs of the reduced images; 0 where the order is kept. The customary LOE is this
    share times the number of reduced pixels.

    Raises
    ------
    InputError
        The shapes differ.

    References
    ----------
    Wang, Zheng, Hu, Li: Naturalness preserved enhancement algorithm for non-uniform illumination
    images, IEEE Transactions on Image Processing 22(9), 2013. Lightness is the largest channel.
    """
    _same_shape(image, original)
    step = max(1, max(image.shape[:2]) // samples)
    a, b = (as_float(x)[::step, ::step].max(axis=2).ravel() for x in (image, original))
    return float(((a[:, None] >= a) != (b[:, None] >= b)).mean())


def niqe(image: Num[np.ndarray, "height width 3"]) -> float:
    """Naturalness without a reference, lower is better; see `noiser.niqe.niqe`.

    The parameters are this package's own, so values compare images with each other only.

    Parameters
    ----------
    image : (height, width, 3), at least 96 x 96 pixels

    Raises
    ------
    InputError
        The image is too small.
    """
    from noiser.niqe import niqe as measure

    return measure(image)
