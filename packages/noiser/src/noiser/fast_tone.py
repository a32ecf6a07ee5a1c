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
    from jaxtyping import Float, Num


def power_table(dtype: np.dtype, exponent: float) -> Float[np.ndarray, " levels"]:
    """All levels of an integer type, full scale 1, after a power."""
    white = full_scale(dtype)
    return ((np.arange(white + 1) / white) ** exponent).astype(np.float32)


def reduced_luma(
    image: Num[np.ndarray, "height width 3"], exponent: float, threads: int
) -> tuple[Float[np.ndarray, "block_rows block_columns"], float, float]:
    """Luma after a power: means of the blocks of the base's filter, sum and sum of squares."""
    factor = reduction(base_radius(image.shape))
    return block_means(image, power_table(image.dtype, exponent), factor, threads)


def fast_curve(
    image: Num[np.ndarray, "height width 3"], contrast: float, chroma: float, threads: int
) -> tuple[ToneCurve, Float[np.ndarray, "block_rows block_columns"]]:
    """Choose the curve for an image of 8 or 16 bits, as `noiser.tone.measure_curve` does.

    Parameters
    ----------
    image : (height, width, 3) uint8 or uint16, contiguous
    contrast, chroma : see `noiser.tone.dials`
    threads : to use; the result does not depend on it

    Returns
    -------
    curve, luma after its power on a reduced plane (see `reduced_luma`)
    """
    counts, luma_counts = histograms(image, BINS)
    levels = np.arange(counts.shape[1]) / full_scale(image.dtype)
    pixels = image.shape[0] * image.shape[1]
    dial = dials(float(LUMA @ (counts @ levels)) / pixels, contrast, chroma)
    exponent = exponent_of_histogram(luma_counts, dial.mean)
    powered = levels**exponent
    channel_mean = counts @ powered / pixels
    variance = np.maximum(counts @ powered**2 / pixels - channel_mean**2, 0)
    small, total, square = reduced_luma(image, exponent, threads)
    luma_mean = total / pixels
    curve = ToneCurve(
        exponent=exponent,
        channel_mean=channel_mean,
        channel_deviation=np.maximum(np.sqrt(variance), DEVIATION_FLOOR),
        luma_mean=luma_mean,
        luma_deviation=max(max(square / pixels - luma_mean**2, 0.0) ** 0.5, DEVIATION_FLOOR),
        **dial.of_curve(),
    )
    return curve, small


def fast_light(
    image: Num[np.ndarray, "height width 3"],
    curve: ToneCurve,
    small: Float[np.ndarray, "block_rows block_columns"],
    strength: float,
    threads: int,
    out: Num[np.ndarray, "height width 3"],
) -> Num[np.ndarray, "height width 3"]:
    """Apply a curve to an image of 8 or 16 bits, as `noiser.tone.light` does.

    Parameters
    ----------
    image : (height, width, 3) uint8 or uint16, contiguous
    curve : of this image, or of a shot that it belongs to
    small : luma of the image after the curve's power, see `reduced_luma`
    strength : 0 ... 1
    threads : to use; the result does not depend on it
    out : (height, width, 3) uint8, uint16 or float32

    Returns
    -------
    `out`
    """
    radius = base_radius(image.shape)
    factor = reduction(radius)
    maps = guided_coefficients(small, max(1, radius // factor), BASE_EPS)
    table = power_table(image.dtype, curve.exponent)
    return run_tone(image, curve, table, maps, factor, strength, threads, out)
