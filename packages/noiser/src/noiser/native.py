"""The compiled kernels: the same two passes as the numpy reference, in single precision.

Without the compiled extension everything still works, through numpy and more slowly.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from noiser.errors import InputError
from noiser.image_array import Padding, full_scale
from noiser.statistics import FoldedModel, PatchStatistics, summarise
from noiser.tone import GAIN_FLOOR, MOST_GAIN, ToneCurve

if TYPE_CHECKING:
    from jaxtyping import Num, UInt8

try:
    import noiser._native as _native
except ImportError:  # a source tree that was not built, or a platform without a compiler
    _native = None  # type: ignore[assignment]

VARIABLE = "NOISER_INSTRUCTIONS"
INSTRUCTION_SETS = ("avx512", "avx2", "portable", "numpy")


@cache
def _warn_once() -> None:
    warnings.warn(
        "noiser runs without its compiled part, through numpy: results agree, speed does not;"
        " install it with a C++17 compiler at hand",
        RuntimeWarning,
        stacklevel=4,
    )


def instruction_set() -> str:
    """Name the kernels that run here: "avx512", "avx2", "portable", or "numpy" for none.

    The environment variable NOISER_INSTRUCTIONS forces one of them.

    Raises
    ------
    InputError
        The variable names a set that this processor or installation does not have.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in INSTRUCTION_SETS:
        raise InputError(
            f"{VARIABLE}={wanted!r} is not allowed: one of {', '.join(INSTRUCTION_SETS)}"
        )
    if wanted == "numpy":
        return wanted
    if _native is None:
        if wanted:
            raise InputError(
                f"{VARIABLE}={wanted!r} needs the compiled part: install with a C++17 compiler"
            )
        _warn_once()
        return "numpy"
    found = str(_native.instructions(wanted))
    if not found:
        raise InputError(
            f"{VARIABLE}={wanted!r} is not available on this processor: avx2, portable or numpy"
        )
    return found


def add_patch_sums(
    band: Num[np.ndarray, "rows width 3"],
    first: int,
    height: int,
    rows: tuple[int, int],
    sums: tuple[np.ndarray, np.ndarray],
    padding: Padding,
    threads: int,
) -> None:
    """Add the sums of some padded rows to the totals of an image.

    Parameters
    ----------
    band : rows of the image, contiguous
    first : number of its first row
    height : of the whole image
    rows : first and last padded row to add, -1 ... height + 1
    sums : (27,) and (27, 27), int64 for integer images, float64 for floats
    padding : border rule
    threads : to use
    """
    total, products = sums
    _native.patch_sums(
        band, first, height, *rows, products, total, padding == "zeros", threads, instruction_set()
    )


def new_sums(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return zeros for `add_patch_sums`: exact integers for integer images."""
    kind = np.int64 if dtype.kind == "u" else np.float64
    return np.zeros(27, kind), np.zeros((27, 27), kind)


def statistics_of(
    sums: tuple[np.ndarray, np.ndarray], pixels: int, dtype: np.dtype
) -> PatchStatistics:
    """Turn the totals of all rows into mean and covariance."""
    return summarise(*sums, pixels, full_scale(dtype))


class NativeNetwork:
    """A folded network, prepared for the kernels.

    The input is centred on the image's mean before it is rounded to single precision, so that
    very dark images lose nothing.

    Parameters
    ----------
    folded : network with the statistics of the image
    statistics : the same statistics
    dtype : of the image
    padding : border rule
    """

    def __init__(
        self,
        folded: FoldedModel,
        statistics: PatchStatistics,
        dtype: np.dtype,
        padding: Padding,
    ) -> None:
        white = full_scale(dtype)
        centre = (statistics.channel_mean * white).astype(np.float32)
        shift = 2.0 * centre.astype(np.float64) / white - 1.0
        by_channel = folded.conv1_weight.reshape(-1, 3, 9).sum(axis=2)
        self._weights = tuple(
            np.ascontiguousarray(value, dtype=np.float32)
            for value in (
                folded.conv1_weight,
                folded.conv1_bias + by_channel @ shift,
                folded.conv2_weight,
                folded.conv2_bias,
            )
        )
        self._input = (centre, 2.0 / white, padding == "zeros", -shift.astype(np.float32))

    def run(
        self,
        band: Num[np.ndarray, "rows width 3"],
        first: int,
        height: int,
        rows: tuple[int, int],
        out: Num[np.ndarray, "out_rows width 3"],
        threads: int,
    ) -> None:
        """Compute some rows of the output.

        Parameters
        ----------
        band : rows of the image with two more on each side, as far as the image has them
        first : number of the band's first row
        height : of the whole image
        rows : first and last row to compute
        out : (rows, width, 3) contiguous; floats take [0, 1], integers the full scale
        threads : to use
        """
        weight1, bias1, weight2, bias2 = self._weights
        centre, scale, zeros, border = self._input
        begin, end = rows
        _native.network_rows(
            band, first, height, begin, end, out, weight1, bias1, weight2, bias2, centre, scale,
            zeros, border, threads, instruction_set(),
        )  # fmt: skip


def histograms(
    image: Num[np.ndarray, "height width 3"], bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the levels of each channel, and the luma in equal bins.

    Returns
    -------
    (3, levels) and (bins,) int64
    """
    counts = np.zeros((3, full_scale(image.dtype) + 1), np.int64)
    luma = np.zeros(bins, np.int64)
    _native.histograms(image, counts, luma)
    return counts, luma


def block_means(
    image: Num[np.ndarray, "height width 3"], table: np.ndarray, factor: int, threads: int
) -> tuple[np.ndarray, float, float]:
    """Mean luma of blocks of factor x factor pixels after a table, and its sums over the pixels.

    Returns
    -------
    (block rows, block columns) float64, sum, sum of squares
    """
    rows, columns = (-(-side // factor) for side in image.shape[:2])
    means, sums = np.empty((rows, columns)), np.zeros((rows, 2))
    _native.block_means(image, table, factor, means, sums, threads)
    return means, float(sums[:, 0].sum()), float(sums[:, 1].sum())


def run_tone(
    image: Num[np.ndarray, "height width 3"],
    curve: ToneCurve,
    table: np.ndarray,
    maps: tuple[np.ndarray, np.ndarray],
    factor: int,
    strength: float,
    threads: int,
    out: Num[np.ndarray, "height width 3"],
) -> Num[np.ndarray, "height width 3"]:
    """Apply a tone curve whose base is given by the coefficients of a guided filter."""
    numbers = (
        curve.luma_mean,
        curve.slope / curve.luma_deviation,
        curve.chroma,
        curve.detail,
        MOST_GAIN,
        strength,
        curve.middle,
        GAIN_FLOOR,
    )
    slope_map, offset_map = (np.ascontiguousarray(m, dtype=np.float32) for m in maps)
    _native.tone_rows(
        image,
        table,
        curve.channel_mean.astype(np.float32),
        (curve.slope / curve.channel_deviation).astype(np.float32),
        np.array(numbers, dtype=np.float32),
        slope_map,
        offset_map,
        factor,
        out,
        threads,
        instruction_set(),
    )
    return out


class NativeTraining:
    """Adam steps of the noise self-regression on one thread, in single precision.

    Parameters
    ----------
    weights : (channels, 3, 3, 3), (3, channels, 3, 3) and (3,) float32; changed in place
    tv_weight, learning_rate, betas : of the recipe
    """

    def __init__(
        self,
        weights: tuple[np.ndarray, np.ndarray, np.ndarray],
        tv_weight: float,
        learning_rate: float,
        betas: tuple[float, float],
    ) -> None:
        self.weights = weights
        self._recipe = (tv_weight, learning_rate, *betas)
        size = sum(weight.size for weight in weights)
        self._moments = (np.zeros(size, np.float32), np.zeros(size, np.float32))
        self.gradients = np.zeros(size, np.float32)
        self._done = 0

    def run(self, noise: Num[np.ndarray, "steps 3 size size"]) -> Num[np.ndarray, "steps 2"]:
        """Take one step per noise image; return L1 and total variation of each."""
        losses = np.empty((noise.shape[0], 2))
        tv_weight, learning_rate, beta1, beta2 = self._recipe
        _native.training_steps(
            noise, self._done, *self.weights, *self._moments, self.gradients, losses, tv_weight,
            learning_rate, beta1, beta2, instruction_set(),
        )  # fmt: skip
        self._done += noise.shape[0]
        return losses


def lookup(
    image: UInt8[np.ndarray, "height width 3"],
    table: UInt8[np.ndarray, "3 256"],
    threads: int = 1,
) -> UInt8[np.ndarray, "height width 3"]:
    """Send each channel of an 8-bit image through a table of its own."""
    if instruction_set() == "numpy":
        return np.stack([table[c][image[..., c]] for c in range(3)], axis=2)
    out = np.empty_like(image)
    _native.lookup(np.ascontiguousarray(image), np.ascontiguousarray(table), out, threads)
    return out


def unfilter(
    lines: UInt8[np.ndarray, "rows line"], pixel: int, name: str = "image"
) -> np.ndarray | None:
    """Undo PNG row filters; None where there is no compiled part."""
    if instruction_set() == "numpy":
        return None
    out = np.empty((lines.shape[0], lines.shape[1] - 1), dtype=np.uint8)
    known = _native.unfilter(np.ascontiguousarray(lines), pixel, out)
    if not known:
        raise InputError(f"image={name!r} has an unknown row filter: the PNG file is damaged")
    return out
