"""Edge-preserving smoothing of one plane, for base and detail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def box_mean(plane: Float[np.ndarray, "height width"], radius: int) -> np.ndarray:
    """Mean over a square window of 2 radius + 1, cut off at the borders of the plane."""
    value = plane.astype(np.float64)
    for axis in (0, 1):
        length = value.shape[axis]
        total = np.concatenate(
            [np.zeros_like(value.take([0], axis)), np.cumsum(value, axis=axis)], axis=axis
        )
        index = np.arange(length)
        low, high = np.maximum(index - radius, 0), np.minimum(index + radius + 1, length)
        count = (high - low).reshape((-1, 1) if axis == 0 else (1, -1))
        value = (total.take(high, axis) - total.take(low, axis)) / count
    return value


def _shrink(plane: np.ndarray, factor: int) -> np.ndarray:
    """Mean of blocks of factor x factor pixels; the last block repeats the edge."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % factor), (0, -width % factor)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, -1, factor)
    mean: np.ndarray = blocks.mean(axis=(1, 3))
    return mean


def _enlarge(plane: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Bilinear interpolation between block centres back to the full size."""
    for axis in (0, 1):
        position = (np.arange(shape[axis]) + 0.5) / factor - 0.5
        position = np.clip(position, 0, plane.shape[axis] - 1)
        low = position.astype(np.intp)
        high = np.minimum(low + 1, plane.shape[axis] - 1)
        weight = (position - low).reshape((-1, 1) if axis == 0 else (1, -1))
        plane = plane.take(low, axis) * (1 - weight) + plane.take(high, axis) * weight
    return plane


def guided_filter(
    plane: Float[np.ndarray, "height width"], radius: int, eps: float
) -> Float[np.ndarray, "height width"]:
    """Smooth a plane and keep its edges: the guided filter with the plane as its own guide.

    Parameters
    ----------
    plane : (height, width), values of about 0 ... 1
    radius : of the window in pixels; from 8 on, the coefficients are computed on a reduced plane
    eps : variance above which a structure counts as an edge

    Returns
    -------
    (height, width) float64

    References
    ----------
    He, Sun, Tang: Guided image filtering, IEEE TPAMI 35(6), 2013; He, Sun: Fast guided filter,
    arXiv 1505.00996.

    Examples
    --------
    >>> import numpy as np
    >>> flat = np.full((20, 30), 0.25)
    >>> bool(abs(guided_filter(flat, 4, 0.01) - flat).max() < 1e-12)
    True
    """
    factor = reduction(radius)
    small = _shrink(plane, factor) if factor > 1 else plane
    slope, offset = guided_coefficients(small, max(1, radius // factor), eps)
    if factor > 1:
        slope = _enlarge(slope, factor, plane.shape)
        offset = _enlarge(offset, factor, plane.shape)
    return np.asarray(slope * plane + offset)


def reduction(radius: int) -> int:
    """Side of the blocks on which the coefficients of a guided filter are computed, in pixels."""
    return max(1, radius // 8)


def guided_coefficients(
    small: Float[np.ndarray, "height width"], window: int, eps: float
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Slope and offset of the guided filter on a plane, averaged over the windows.

    Parameters
    ----------
    small : plane, reduced or not
    window : radius in its pixels
    eps : variance above which a structure counts as an edge

    Returns
    -------
    slope, offset : the filtered plane is slope * plane + offset
    """
    mean = box_mean(small, window)
    variance = np.maximum(box_mean(small * small, window) - mean * mean, 0)
    slope = variance / (variance + eps)
    return box_mean(slope, window), box_mean(mean - slope * mean, window)
