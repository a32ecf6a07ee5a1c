"""NIQE: distance of an image's local statistics from those of pristine photographs.

Features and distance are those of the paper; the parameters are this package's own, fitted on the
photographs that scikit-image ships. Values compare images with each other; they are not those of
the authors' parameters. Fit others with ``python -m noiser.niqe PHOTOS... -o FILE``.

References
----------
Mittal, Soundararajan, Bovik: Making a "completely blind" image quality analyzer, IEEE Signal
Processing Letters 20(3), 2013.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from noiser.errors import InputError
from noiser.metrics import gaussian_blur, luma

if TYPE_CHECKING:
    from jaxtyping import Float, Num

PATCH = 96
FEATURES = 36
# Patches this sharp, relative to the sharpest of an image, stand for a pristine photograph.
SHARP = 0.75
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10.001, 0.001)
_GAMMA = np.vectorize(math.gamma)
_RATIOS = _GAMMA(2 / _SHAPES) ** 2 / (_GAMMA(1 / _SHAPES) * _GAMMA(3 / _SHAPES))


@dataclass(frozen=True, eq=False)
class NiqeModel:
    """Multivariate Gaussian of the features of pristine photographs.

    Parameters
    ----------
    mean : (36,)
    covariance : (36, 36)
    source : what it was fitted on, in words
    """

    mean: Float[np.ndarray, " 36"]
    covariance: Float[np.ndarray, "36 36"]
    source: str = ""

    def to_json(self) -> str:
        """Return the parameters as JSON."""
        content = {
            "schema_version": 1,
            "source": self.source,
            "mean": [float(f"{v:.9g}") for v in self.mean],
            "covariance": [[float(f"{v:.9g}") for v in row] for row in self.covariance],
        }
        return dumps(content) + "\n"

    @staticmethod
    def from_json(text: str) -> NiqeModel:
        """Read what `to_json` wrote."""
        try:
            content = loads(text)
            mean = np.array(content["mean"], float)
            covariance = np.array(content["covariance"], float)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"model is no NIQE parameter file ({error})") from error
        if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
            raise InputError(
                f"model has shapes {mean.shape} and {covariance.shape}: must be (36,) and (36, 36)"
            )
        return NiqeModel(mean, covariance, str(content.get("source", "")))


@cache
def shipped() -> NiqeModel:
    """Return the parameters that ship with the package."""
    return NiqeModel.from_json(files("noiser").joinpath("data/niqe.json").read_text("utf-8"))


def fit_asymmetric_gaussian(values: Float[np.ndarray, "*shape"]) -> tuple[float, float, float]:
    """Fit a zero-mean asymmetric generalised Gaussian by moment matching.

    Parameters
    ----------
    values : samples

    Returns
    -------
    shape, left scale, right scale : 2 and sqrt(2) sigma for a normal distribution, 1 and the mean
        distance for a Laplace distribution; not a number where one side has no samples

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal(size=100_000)
    >>> [round(v, 1) for v in fit_asymmetric_gaussian(draws)]
    [2.0, 1.4, 1.4]
    """
    flat = values.ravel()
    negative, positive = flat[flat < 0], flat[flat > 0]
    if not negative.size or not positive.size:
        return math.nan, math.nan, math.nan
    left = math.sqrt(float(np.mean(negative**2)))
    right = math.sqrt(float(np.mean(positive**2)))
    balance = left / right
    ratio = float(np.mean(np.abs(flat))) ** 2 / float(np.mean(flat**2))
    wanted = ratio * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    shape = float(_SHAPES[np.argmin((_RATIOS - wanted) ** 2)])
    scale = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    return shape, left * scale, right * scale


def _normalised(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean-subtracted contrast-normalised values, and the local deviation; plane in 0 ... 255."""
    mean = gaussian_blur(plane, 7 / 6, radius=3)
    deviation = np.sqrt(np.abs(gaussian_blur(plane * plane, 7 / 6, radius=3) - mean * mean))
    return (plane - mean) / (deviation + 1), deviation


def _patch_features(patch: np.ndarray) -> list[float]:
    shape, left, right = fit_asymmetric_gaussian(patch)
    found = [shape, (left + right) / 2]
    for step in _NEIGHBOURS:
        shape, left, right = fit_asymmetric_gaussian(patch * np.roll(patch, step, axis=(0, 1)))
        finite = math.isfinite(shape)
        spread = math.gamma(2 / shape) / math.gamma(1 / shape) if finite else math.nan
        found += [shape, (right - left) * spread, left, right]
    return found


def features(
    image: Num[np.ndarray, "height width 3"], stride: int = PATCH
) -> tuple[Float[np.ndarray, "patches 36"], Float[np.ndarray, " patches"]]:
    """Features of all patches at two scales, and the sharpness of each.

    Parameters
    ----------
    image : (height, width, 3), at least 96 x 96 pixels
    stride : pixels from one patch to the next, even; 96 for patches that do not overlap

    Returns
    -------
    features, sharpness

    Raises
    ------
    InputError
        The image is too small.
    """
    height, width = image.shape[:2]
    if min(height, width) < PATCH:
        raise InputError(f"image has shape {image.shape}: NIQE needs at least 96 x 96 pixels")
    plane = np.rint(luma(image) * 255)
    half = np.asarray(
        Image.fromarray(plane.astype(np.float32)).resize(
            (width // 2, height // 2), Image.Resampling.BICUBIC
        ),
        np.float64,
    )
    levels = [(1, *_normalised(plane)), (2, *_normalised(half))]
    rows, sharpness = [], []
    for top in range(0, height - PATCH + 1, stride):
        for left in range(0, width - PATCH + 1, stride):
            row: list[float] = []
            for scale, values, deviation in levels:
                size = PATCH // scale
                y, x = min(top // scale, len(values) - size), left // scale
                x = min(x, values.shape[1] - size)
                window = (slice(y, y + size), slice(x, x + size))
                row += _patch_features(values[window])
                if scale == 1:
                    sharpness.append(float(deviation[window].mean()))
            rows.append(row)
    return np.array(rows), np.array(sharpness)


def niqe(image: Num[np.ndarray, "height width 3"], model: NiqeModel | None = None) -> float:
    """Naturalness without a reference: lower is better.

    Parameters
    ----------
    image : (height, width, 3), at least 96 x 96 pixels
    model : parameters; None for those that ship with the package

    Returns
    -------
    Mahalanobis-like distance of the image's features from those of pristine photographs; not a
    number where the image is flat. It rises with blur, noise and blocking, and falls for noise that
    is amplified: read it beside a measure of noise.

    Raises
    ------
    InputError
        The image is too small.
    """
    model = shipped() if model is None else model
    found, _ = features(image)
    found = found[np.isfinite(found).all(axis=1)]
    if not len(found):
        return math.nan
    covariance = np.cov(found.T) if len(found) > 1 else np.zeros_like(model.covariance)
    difference = found.mean(axis=0) - model.mean
    pooled = np.linalg.pinv((model.covariance + covariance) / 2)
    return math.sqrt(max(float(difference @ pooled @ difference), 0.0))


def fit(
    images: Iterable[Num[np.ndarray, "height width 3"]], stride: int = 32, source: str = ""
) -> NiqeModel:
    """Fit the parameters on pristine photographs.

    Parameters
    ----------
    images : photographs without visible noise, blur or compression
    stride : pixels from one patch to the next
    source : for the file

    Raises
    ------
    InputError
        There are fewer than 72 sharp patches.
    """
    kept = []
    for image in images:
        found, sharpness = features(image, stride)
        sharp = sharpness > SHARP * sharpness.max()
        kept.append(found[sharp & np.isfinite(found).all(axis=1)])
    rows = np.concatenate(kept) if kept else np.empty((0, FEATURES))
    if len(rows) < 2 * FEATURES:
        raise InputError(
            f"images have {len(rows)} sharp patches: at least {2 * FEATURES} are needed; name more"
            " photographs"
        )
    return NiqeModel(rows.mean(axis=0), np.cov(rows.T), source)


def main(arguments: Sequence[str]) -> int:
    """Fit on files: ``python -m noiser.niqe PHOTOS... -o FILE``."""
    from noiser.files import write_atomically
    from noiser.images import read_picture

    words = list(arguments)
    if len(words) < 3 or words[-2] != "-o":
        print("usage: python -m noiser.niqe PHOTOS... -o FILE", file=sys.stderr)
        return 2
    paths = [Path(word) for word in words[:-2]]
    try:
        model = fit(
            (read_picture(p).pixels for p in paths), source=", ".join(p.name for p in paths)
        )
        write_atomically(words[-1], model.to_json().encode())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(words[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
