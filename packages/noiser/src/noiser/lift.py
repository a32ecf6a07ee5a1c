"""How far the method "auto" may lift a dark image: scenes beyond that are dark by nature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from noiser.camera import srgb_to_linear
from noiser.metrics import as_float

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Num

# Stops of light (EV). Two per cent of 60 real under-exposed brackets need more.
MOST_LIFT = 5.0
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
_SAMPLES = 65536


def mean_luminance(rgb: Float[np.ndarray, "*shape 3"]) -> float:
    """Mean linear light of sRGB colours in [0, 1], relative to white."""
    return float((srgb_to_linear(rgb).reshape(-1, 3) @ LUMINANCE).mean())


def lift_exponent(
    image: Num[np.ndarray, "height width 3"],
    curve: Callable[[Float[np.ndarray, "samples 3"]], Float[np.ndarray, "samples 3"]],
) -> float:
    """Power after the curve that keeps the lift at `MOST_LIFT` stops.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]; a grid of pixels of it is measured
    curve : what the image is about to go through, from RGB to RGB in [0, 1]

    Returns
    -------
    1 where the mean luminance grows by no more, else the exponent above 1 at which it does not

    Notes
    -----
    Light, not encoded values, is what a camera would have needed: an exposure that misses five
    stops holds 1/32 of it, and what it shows in 8 bits is mostly noise. Where a curve asks for
    more, the scene is taken for dark (a night sky) and becomes 32 times brighter at most.
    """
    step = max(1, int(np.ceil(np.sqrt(image.shape[0] * image.shape[1] / _SAMPLES))))
    pixels = np.clip(as_float(image[::step, ::step]), 0, 1).reshape(-1, 3)
    most = mean_luminance(pixels) * 2.0**MOST_LIFT
    if most >= 1:
        return 1.0
    lit = curve(pixels)
    if mean_luminance(lit) <= most:
        return 1.0
    low, high = 0.0, 5.0  # logarithms to base 2
    for _ in range(40):
        middle = (low + high) / 2
        if mean_luminance(lit**2.0**middle) > most:
            low = middle
        else:
            high = middle
    return float(2.0**high)
