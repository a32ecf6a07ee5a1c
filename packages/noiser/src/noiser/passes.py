"""The two passes over an image, in bands of rows, on the fastest back end at hand."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

from noiser import statistics
from noiser.errors import InputError
from noiser.forward import forward_bands
from noiser.image_array import Padding, check_image, check_padding, full_scale
from noiser.native import (
    NativeNetwork,
    add_patch_sums,
    instruction_set,
    new_sums,
    statistics_of,
)
from noiser.network import INSTANCE_NORM_EPS, SelfRegressionModel
from noiser.statistics import PatchStatistics, check_tile, fold

if TYPE_CHECKING:
    from jaxtyping import Num

# Rows of a memory map that are in memory at a time.
_MAPPED_BAND = 256
_WIDEST = 2**21


def check_threads(threads: int, name: str = "threads") -> None:
    """Raise unless `threads` is a number of threads."""
    if not 1 <= threads <= 1024:
        raise InputError(f"{name}={threads} is not allowed: an integer in 1 ... 1024")


def _band_height(image: np.ndarray, tile: int | None) -> int:
    if tile is None:
        return _MAPPED_BAND if isinstance(image, np.memmap) else int(image.shape[0])
    return check_tile(tile)


def _release(array: np.ndarray) -> None:
    """Let the system drop the pages of a memory map that have been used."""
    mapping = getattr(array, "_mmap", None)
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        if array.flags.writeable:
            mapping.flush()
        mapping.madvise(mmap.MADV_DONTNEED)


def _rows(image: np.ndarray, first: int, last: int) -> tuple[int, np.ndarray]:
    """Contiguous rows [first, last) as far as the image has them, and the first one's number."""
    first, last = max(first, 0), min(last, image.shape[0])
    return first, np.ascontiguousarray(image[first:last])


def collect_statistics(
    image: Num[np.ndarray, "height width 3"],
    padding: Padding = "reflect",
    tile: int | None = None,
    threads: int = 1,
) -> PatchStatistics:
    """First pass: mean and covariance of all patches, by the compiled kernels where they exist.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]; a memory map is read in bands
    padding : border rule
    tile : rows per band; None for the whole image, or 256 rows of a memory map
    threads : to use

    Returns
    -------
    PatchStatistics; the same bits whatever `tile` and `threads` are

    Raises
    ------
    InputError
        The image or an option is not allowed.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).integers(0, 60, (40, 50, 3)).astype(np.uint8)
    >>> reference = statistics.patch_statistics(image)
    >>> bool((collect_statistics(image).covariance == reference.covariance).all())
    True
    """
    check_image(image)
    check_padding(padding)
    check_threads(threads)
    height, width = image.shape[:2]
    if instruction_set() == "numpy" or width >= _WIDEST:
        return statistics.patch_statistics(image, padding, tile)
    band = _band_height(image, tile)
    sums = new_sums(image.dtype)
    # Padded rows -1 ... height; each looks at itself and the two below it.
    for first in range(-1, height + 1, band):
        last = min(first + band, height + 1)
        low = height - 2 if last > height - 1 else first - 1
        start, rows = _rows(image, min(first - 1, low), last + 3)
        add_patch_sums(rows, start, height, (first, last), sums, padding, threads)
        _release(image)
    return statistics_of(sums, height * width, image.dtype)


def apply_network(
    model: SelfRegressionModel,
    image: Num[np.ndarray, "height width 3"],
    measured: PatchStatistics,
    padding: Padding = "reflect",
    tile: int | None = None,
    threads: int = 1,
    eps: float = INSTANCE_NORM_EPS,
    out: Num[np.ndarray, "height width 3"] | None = None,
) -> Num[np.ndarray, "height width 3"]:
    """Second pass: the network with given statistics, by the compiled kernels where they exist.

    Parameters
    ----------
    model : the network
    image : (height, width, 3) uint8, uint16 or float in [0, 1]; a memory map is read in bands
    measured : statistics to normalise with, usually those of `image`
    padding : border rule
    tile : rows per band; None for the whole image, or 256 rows of a memory map
    threads : to use
    eps : of the instance normalisation
    out : (height, width, 3) array or memory map of uint8, uint16 or float to write to;
        None for a new float32 array

    Returns
    -------
    `out`; floats hold [0, 1], integers the full scale, rounded. The same bits whatever `tile` and
    `threads` are.

    Raises
    ------
    InputError
        An array or an option is not allowed.
    """
    check_image(image)
    check_padding(padding)
    check_threads(threads)
    height = image.shape[0]
    if out is None:
        out = np.empty(image.shape, np.float32)
    elif out.shape != image.shape or out.dtype.name not in (
        "uint8",
        "uint16",
        "float32",
        "float64",
    ):
        raise InputError(
            f"out has shape {out.shape} and dtype {out.dtype}: must have the shape of the image"
            f" {image.shape}, and be uint8, uint16, float32 or float64"
        )
    folded = fold(model, measured, eps)
    if instruction_set() == "numpy":
        white = full_scale(out.dtype)
        for first, values in forward_bands(folded, image, padding, tile):
            if out.dtype.kind == "u":
                values = np.rint(values * white)
            out[first : first + values.shape[0]] = values
        return out
    network = NativeNetwork(folded, measured, image.dtype, padding)
    band = _band_height(image, tile)
    for first in range(0, height, band):
        last = min(first + band, height)
        # Two rows of context, and four where the border mirrors them.
        start, rows = _rows(image, first - 3, last + 3)
        part = out[first:last]
        if part.flags.c_contiguous and not isinstance(out, np.memmap):
            network.run(rows, start, height, (first, last), part, threads)
        else:
            buffer = np.empty(part.shape, out.dtype)
            network.run(rows, start, height, (first, last), buffer, threads)
            out[first:last] = buffer
        _release(image)
        _release(out)
    return out
