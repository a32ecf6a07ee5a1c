"""A camera model that takes a well-exposed photograph again, too dark or too bright."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from noiser.errors import InputError
from noiser.metrics import as_float

if TYPE_CHECKING:
    from jaxtyping import Float, Num, UInt8


def srgb_to_linear(value: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Decode sRGB (IEC 61966-2-1): encoded values in [0, 1] to light."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Encode sRGB (IEC 61966-2-1): light in [0, 1] to encoded values."""
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def retake(
    image: Num[np.ndarray, "height width 3"],
    stops: float,
    full_well: float = 4000.0,
    read_noise: float = 4.0,
    bits: int = 12,
    seed: int = 0,
) -> UInt8[np.ndarray, "height width 3"]:
    """Photograph an image again with another exposure.

    Parameters
    ----------
    image : (height, width, 3) sRGB, uint8, uint16 or float in [0, 1]
    stops : change of exposure in EV; -4 is a sixteenth of the light
    full_well : electrons at white
    read_noise : standard deviation of the read-out, in electrons
    bits : of the analogue-to-digital converter
    seed : of the noise

    Returns
    -------
    (height, width, 3) uint8, sRGB

    Raises
    ------
    InputError
        `stops` is not a finite number.

    Notes
    -----
    light = decode(image) 2^stops; electrons ~ Poisson(light full_well) + N(0, read_noise^2);
    clipped at 0 and at the full well, quantised to `bits` bits, encoded as sRGB, rounded to 8
    bits. Colour filter array, lens and white balance are left out.

    Examples
    --------
    >>> import numpy as np
    >>> gray = np.full((64, 64, 3), 0.5)
    >>> round(float(retake(gray, -4).mean() / 255), 2)
    0.12
    """
    if not np.isfinite(stops):
        raise InputError(f"stops={stops} is not allowed: a finite number of EV")
    rng = np.random.default_rng(seed)
    light = srgb_to_linear(as_float(image)) * 2.0**stops
    electrons = rng.poisson(light * full_well) + rng.normal(0, read_noise, light.shape)
    steps = 2**bits - 1
    raw = np.rint(np.clip(electrons / full_well, 0, 1) * steps) / steps
    result: np.ndarray = np.rint(linear_to_srgb(raw) * 255).astype(np.uint8)
    return result
