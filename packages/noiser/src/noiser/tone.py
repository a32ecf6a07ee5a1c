"""The method "plus": the idea of the paper as a tone curve, with what the network lacks.

Stages: (1) a power takes the skew out of the histogram; (2) z-score and tanh light the image, once
per channel (gray world, as the network does) and once on the luma alone (colours kept); (3) on the
luma the curve acts on a smooth base, and the detail is added back; (4) both are mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from noiser.assess import noise_deviation
from noiser.filters import guided_filter

if TYPE_CHECKING:
    from jaxtyping import Float

LUMA = np.array([0.299, 0.587, 0.114])
BINS = 4096
# eps of the base: variance above which a structure counts as an edge.
BASE_EPS = 0.01
# Half a step of an 8-bit image: flat images must not amplify their rounding.
DEVIATION_FLOOR = 0.5 / 255
# Brightest factor by which the colours of a pixel may be scaled.
MOST_GAIN = 16.0
# Luma below which that factor stops to grow: colours of nearly black pixels are mostly noise.
GAIN_FLOOR = 0.02


@dataclass(frozen=True)
class ToneCurve:
    """All that "plus" has measured on an image; what remains is a map from RGB to RGB.

    Parameters
    ----------
    exponent : of the power that takes the skew out
    channel_mean, channel_deviation : (3,) after the power
    luma_mean, luma_deviation : of the luma after the power
    slope : factor before the tanh
    chroma : share of the curve that keeps the colours, 0 ... 1
    middle : value that the mean becomes
    detail : share of the detail that goes back on the lit base
    """

    exponent: float
    channel_mean: Float[np.ndarray, " 3"]
    channel_deviation: Float[np.ndarray, " 3"]
    luma_mean: float
    luma_deviation: float
    slope: float
    chroma: float
    middle: float
    detail: float

    def on_luma(self, base: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Light the luma (after the power)."""
        z = (base - self.luma_mean) / self.luma_deviation
        return np.asarray(self.middle + 0.5 * np.tanh(self.slope * z))

    def combine(
        self, powered: Float[np.ndarray, "*shape 3"], lit: Float[np.ndarray, "*shape"]
    ) -> Float[np.ndarray, "*shape 3"]:
        """Mix the gray-world result with the one that keeps the colours.

        Parameters
        ----------
        powered : RGB after the power
        lit : wanted luma
        """
        z = (powered - self.channel_mean) / self.channel_deviation
        gray_world = self.middle + 0.5 * np.tanh(self.slope * z)
        gain = np.minimum(lit / np.maximum(powered @ LUMA, GAIN_FLOOR), MOST_GAIN)
        kept = np.minimum(powered * gain[..., None], 1)
        mixed = (1 - self.chroma) * gray_world + self.chroma * kept
        return np.asarray(np.clip(mixed, 0, 1))

    def map_colours(self, rgb: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
        """Apply everything that needs no neighbours: what a look-up table can hold."""
        powered = np.clip(rgb, 0, 1) ** self.exponent
        return self.combine(powered, self.on_luma(powered @ LUMA))


def exponent_for_mean(values: Float[np.ndarray, "*shape"], mean: float) -> float:
    """Exponent in 2**-5 ... 2**5 that brings the mean of `values` to `mean`, from a histogram."""
    counts, _ = np.histogram(values, bins=BINS, range=(0, 1))
    return exponent_of_histogram(counts, mean)


def exponent_of_histogram(counts: np.ndarray, mean: float) -> float:
    """Do the same from the counts of equal bins between 0 and 1."""
    centres = (np.arange(counts.size) + 0.5) / counts.size
    low, high = -5.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        if float(counts @ centres**2.0**middle) / counts.sum() > mean:
            low = middle
        else:
            high = middle
    return float(2.0 ** ((low + high) / 2))


class Dials(NamedTuple):
    """What the brightness of an image decides about its curve; see `ToneCurve`."""

    mean: float  # of the luma after the power
    slope: float
    chroma: float
    middle: float
    detail: float

    def of_curve(self) -> dict[str, float]:
        """Those that a `ToneCurve` takes as they are."""
        return {name: value for name, value in self._asdict().items() if name != "mean"}


def dials(mean_luma: float, contrast: float, chroma: float) -> Dials:
    """Choose the constants of the curve.

    Parameters
    ----------
    mean_luma : of the image
    contrast, chroma : 0 ... 1; 0.5 is the measured default

    Notes
    -----
    Dark images take a steeper curve, a lower mean and more detail than bright ones: one set of
    constants below a mean luma of 0.25, one above 0.75, linear between. They, the radius and eps of
    the base and the floor of the gain were chosen on every second scene of 60 real exposure
    brackets; benchmarks/bench_brackets.py reports the other half apart.
    """
    brightness = min(max((mean_luma - 0.25) / 0.5, 0.0), 1.0)
    share = 0.65 - 0.1 * brightness
    return Dials(
        mean=0.34 + 0.16 * brightness,
        slope=(0.8 - 0.3 * brightness) * contrast / 0.5,
        chroma=share * chroma / 0.5
        if chroma <= 0.5
        else share + (1 - share) * (chroma - 0.5) / 0.5,
        middle=0.46 + 0.02 * brightness,
        detail=0.9 - 0.15 * brightness,
    )


def base_radius(shape: tuple[int, ...]) -> int:
    """Radius of the base in pixels: 8 % of the longer side."""
    return max(2, round(0.08 * max(shape[:2])))


def measure_curve(
    rgb: Float[np.ndarray, "height width 3"], contrast: float, chroma: float
) -> tuple[ToneCurve, Float[np.ndarray, "height width 3"]]:
    """Choose the curve for an image.

    Parameters
    ----------
    rgb : (height, width, 3) in [0, 1]
    contrast, chroma : see `dials`

    Returns
    -------
    curve, image after its power
    """
    y = rgb @ LUMA
    dial = dials(float(y.mean()), contrast, chroma)
    exponent = exponent_for_mean(y, dial.mean)
    powered = rgb**exponent
    y = powered @ LUMA
    curve = ToneCurve(
        exponent=exponent,
        channel_mean=powered.mean(axis=(0, 1)),
        channel_deviation=np.maximum(powered.std(axis=(0, 1)), DEVIATION_FLOOR),
        luma_mean=float(y.mean()),
        luma_deviation=max(float(y.std()), DEVIATION_FLOOR),
        **dial.of_curve(),
    )
    return curve, powered


def denoise_deviation(y: Float[np.ndarray, "height width"], denoise: str | float) -> float:
    """Noise to remove, as a standard deviation: 0 for "off", estimated for "auto"."""
    if denoise == "off":
        return 0.0
    return noise_deviation(y) if denoise == "auto" else float(denoise)


def light(
    curve: ToneCurve,
    powered: Float[np.ndarray, "height width 3"],
    denoise: str | float = "off",
) -> Float[np.ndarray, "height width 3"]:
    """Apply the curve to the base of the luma, return the detail, and mix.

    Parameters
    ----------
    curve : of this image
    powered : image after the curve's power
    denoise : "off", "auto", or a standard deviation of the noise after the power, 0 ... 1

    Returns
    -------
    (height, width, 3) in [0, 1]
    """
    y = powered @ LUMA
    sigma = denoise_deviation(y, denoise)
    if sigma > 0:
        # Twice the noise's variance: structures below it are smoothed away.
        smooth = guided_filter(y, 3, 2 * sigma**2)
        planes = [guided_filter(powered[..., c] - y, 6, 4 * sigma**2) for c in range(3)]
        powered = np.clip(np.stack(planes, axis=2) + smooth[..., None], 0, 1)
        y = powered @ LUMA
    base = guided_filter(y, base_radius(y.shape), BASE_EPS)
    lit = np.clip(curve.on_luma(base) + curve.detail * (y - base), 0, 1)
    return curve.combine(powered, lit)
