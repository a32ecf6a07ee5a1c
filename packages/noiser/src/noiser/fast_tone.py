"""The method "plus" by the compiled kernels; `noiser.tone` is the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from noiser.filters import guided_coefficients, reduction
from noiser.image_array import full_scale
from noiser.native import block_means, histograms, run_tone
from noiser.tone import (
    BASE_EPS,
    BINS,
    DEVIATION_FLOOR,
    LUMA,
    ToneCurve,
    base_radius,
    dials,
    exponent_of_histogram,
)

if TYPE_CHECKING:
    from jaxtyping import Num


def fast_plus(
    image: Num[np.ndarray, "height width 3"],
    contrast: float,
    chroma: float,
    strength: float,
    threads: int,
    out: Num[np.ndarray, "height width 3"],
) -> Num[np.ndarray, "height width 3"]:
    """Enhance an image of 8 or 16 bits.

    Parameters
    ----------
    image : (height, width, 3) uint8 or uint16
    contrast, chroma : see `noiser.tone.dials`
    strength : 0 ... 1
    threads : to use; the result does not depend on it
    out : (height, width, 3) uint8, uint16 or float32

    Returns
    -------
    `out`
    """
    image = np.ascontiguousarray(image)
    counts, luma_counts = histograms(image, BINS)
    levels = np.arange(counts.shape[1]) / full_scale(image.dtype)
    pixels = image.shape[0] * image.shape[1]
    mean, slope, share = dials(float(LUMA @ (counts @ levels)) / pixels, contrast, chroma)
    exponent = exponent_of_histogram(luma_counts, mean)
    powered = levels**exponent
    channel_mean = counts @ powered / pixels
    variance = np.maximum(counts @ powered**2 / pixels - channel_mean**2, 0)
    table = powered.astype(np.float32)
    radius = base_radius(image.shape)
    factor = reduction(radius)
    small, total, square = block_means(image, table, factor, threads)
    luma_mean = total / pixels
    curve = ToneCurve(
        exponent=exponent,
        channel_mean=channel_mean,
        channel_deviation=np.maximum(np.sqrt(variance), DEVIATION_FLOOR),
        luma_mean=luma_mean,
        luma_deviation=max(max(square / pixels - luma_mean**2, 0.0) ** 0.5, DEVIATION_FLOOR),
        slope=slope,
        chroma=share,
    )
    maps = guided_coefficients(small, max(1, radius // factor), BASE_EPS)
    return run_tone(image, curve, table, maps, factor, strength, threads, out)
