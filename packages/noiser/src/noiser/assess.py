"""How an image is exposed, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from noiser.image_array import check_image
from noiser.metrics import colour_cast, luma

if TYPE_CHECKING:
    from jaxtyping import Float, Num

# Mean luma where an image begins to count as under- or over-exposed, and where it surely is.
UNDER = (0.32, 0.24)
OVER = (0.60, 0.68)


@dataclass(frozen=True)
class ExposureReport:
    """Exposure of one image.

    Parameters
    ----------
    mean : mean luma, 0 ... 1
    under, over, well : fractions of pixels with a luma below 0.1, above 0.9, between
    cast : largest minus smallest channel mean
    noise_sigma : standard deviation of the noise of the luma, 0 ... 1
    skewness : of the luma
    strength : how much `method="auto"` corrects, 0 ... 1
    recommendation : "leave", "lift" or "lower"
    """

    mean: float
    under: float
    over: float
    well: float
    cast: float
    noise_sigma: float
    skewness: float
    strength: float
    recommendation: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def noise_deviation(plane: Float[np.ndarray, "height width"]) -> float:
    """Estimate the standard deviation of the noise of a plane.

    Parameters
    ----------
    plane : (height, width)

    Returns
    -------
    estimate in the unit of the plane; 0 for planes below 3 x 3 pixels

    References
    ----------
    Immerkaer: Fast noise variance estimation, Computer Vision and Image Understanding 64(2), 1996.
    """
    if min(plane.shape) < 3:
        return 0.0
    across = plane[:, :-2] - 2 * plane[:, 1:-1] + plane[:, 2:]
    both = across[:-2] - 2 * across[1:-1] + across[2:]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(both).mean())


def correction(mean_luma: float) -> float:
    """How far the method "auto" corrects an image of that mean luma: 0 not at all, 1 in full.

    Notes
    -----
    The thresholds are this package's choice: a mean luma of 0.32 ... 0.60 is left alone, below
    0.24 and above 0.68 the correction is full, with a ramp between.
    """
    lift = (UNDER[0] - mean_luma) / (UNDER[0] - UNDER[1])
    lower = (mean_luma - OVER[0]) / (OVER[1] - OVER[0])
    return float(np.clip(max(lift, lower), 0, 1))


def assess(image: Num[np.ndarray, "height width 3"]) -> ExposureReport:
    """Judge the exposure of an image.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]

    Returns
    -------
    ExposureReport

    Raises
    ------
    InputError
        The image is not allowed.

    Examples
    --------
    >>> import numpy as np
    >>> dark = np.random.default_rng(0).integers(0, 30, (40, 40, 3)).astype(np.uint8)
    >>> assess(dark).recommendation
    'lift'
    """
    check_image(image)
    y = luma(image)
    mean = float(y.mean())
    deviation = float(y.std())
    skewness = float(((y - mean) ** 3).mean() / deviation**3) if deviation > 1e-9 else 0.0
    under, over = float((y < 0.1).mean()), float((y > 0.9).mean())
    strength = correction(mean)
    return ExposureReport(
        mean=mean,
        under=under,
        over=over,
        well=1 - under - over,
        cast=colour_cast(image),
        noise_sigma=noise_deviation(y),
        skewness=skewness,
        strength=strength,
        recommendation="leave" if strength == 0 else "lift" if mean < UNDER[0] else "lower",
    )
