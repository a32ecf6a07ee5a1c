"""One call from a badly exposed image to an enhanced one of the same type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from noiser.assess import correction
from noiser.backends import Backend, check_backend, run_backend
from noiser.environment import available_cores
from noiser.errors import InputError
from noiser.fast_tone import fast_curve, fast_light, reduced_luma
from noiser.image_array import Padding, check_image, check_padding, full_scale
from noiser.lift import lift_exponent
from noiser.metrics import as_float, luma
from noiser.native import histograms, instruction_set, lookup
from noiser.network import INSTANCE_NORM_EPS, SelfRegressionModel
from noiser.passes import apply_network, check_threads, collect_statistics
from noiser.statistics import PatchStatistics, check_tile
from noiser.tone import BINS, LUMA, ToneCurve, exponent_for_mean, light, measure_curve

if TYPE_CHECKING:
    from jaxtyping import Float, Num

Method = Literal["auto", "plus", "paper", "closed_form"]
METHODS: tuple[str, ...] = get_args(Method)
Denoise = Literal["off", "auto"] | float


@cache
def pretrained() -> SelfRegressionModel:
    """Return the network that ships with the package: `noiser train --seed 0`, noise alone."""
    text = files("noiser").joinpath("data/srm18.json").read_text(encoding="utf-8")
    return SelfRegressionModel.from_json(text, "srm18")


@dataclass(frozen=True)
class Settings:
    """Dials of the enhancement.

    Parameters
    ----------
    method : "paper", the self-regression network with whole-image normalisation;
        "closed_form", per-channel z-score and tanh, no network; "plus", a tone curve with
        de-skewing, kept colours and returned detail; "auto", "plus" as far as the exposure needs
        it and by five stops of light at most, unless `target` says how bright
    strength : 0 returns the image, 1 the full effect
    target : wanted mean of the result in (0, 1), or "auto" for what the method gives
    contrast : 0 ... 1, slope of the tone curve of "plus" and "closed_form"; 0.5 is neutral
    chroma : 0 ... 1, from gray world to kept colours, of "plus"; 0.5 is neutral
    black_point : fraction of the darkest values that become black, 0 ... 0.2; None for none
    denoise : "off", "auto", or a standard deviation in 0 ... 0.5, of "plus"
    padding : border rule of the network
    tile : rows treated at a time by the network; the result does not depend on it
    threads : None for all cores of the process

    Raises
    ------
    InputError
        A dial is out of range.
    """

    method: Method = "auto"
    strength: float = 1.0
    target: float | Literal["auto"] = "auto"
    contrast: float = 0.5
    chroma: float = 0.5
    black_point: float | None = None
    denoise: Denoise = "off"
    padding: Padding = "reflect"
    tile: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r} is not allowed: one of {', '.join(METHODS)}")
        for name in ("strength", "contrast", "chroma"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= 1):
                raise InputError(f"{name}={value!r} is not allowed: a number in [0, 1]")
        if self.target != "auto" and not (_is_number(self.target) and 0 < self.target < 1):
            raise InputError(
                f"target={self.target!r} is not allowed: 'auto' or a number between 0 and 1"
            )
        if self.black_point is not None and not (
            _is_number(self.black_point) and 0 <= self.black_point <= 0.2
        ):
            raise InputError(
                f"black_point={self.black_point!r} is not allowed: None or a number in [0, 0.2]"
            )
        if self.denoise not in ("off", "auto") and not (
            _is_number(self.denoise) and 0 <= float(self.denoise) <= 0.5
        ):
            raise InputError(
                f"denoise={self.denoise!r} is not allowed: 'off', 'auto' or a number in [0, 0.5]"
            )
        check_padding(self.padding)
        check_tile(self.tile)
        if self.threads is not None:
            check_threads(self.threads)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Enhancer:
    """Enhance many images with one model and one set of dials.

    Parameters
    ----------
    model : a network, or None for the one that ships with the package
    settings : the dials
    backend : what runs the network of the method "paper": "auto" (the package's own kernel),
        "torch" or "onnx"

    Raises
    ------
    InputError
        The back end is unknown, or is asked for beside a method that has no network.

    Examples
    --------
    >>> import numpy as np
    >>> dark = np.random.default_rng(0).integers(0, 40, (32, 48, 3)).astype(np.uint8)
    >>> enhancer = Enhancer(settings=Settings(method="paper"))
    >>> enhancer.statistics(dark)
    PatchStatistics(1536 pixels, mean RGB 0.077, 0.077, 0.076)
    >>> enhancer(dark).dtype.name
    'uint8'
    """

    model: SelfRegressionModel | None = None
    settings: Settings = Settings()
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        check_backend(self.backend)
        if self.backend != "auto" and self.settings.method != "paper":
            raise InputError(
                f"backend={self.backend!r} is not allowed with method={self.settings.method!r}:"
                " only the method paper has a network"
            )

    @property
    def network(self) -> SelfRegressionModel:
        """The network in use."""
        return pretrained() if self.model is None else self.model

    @property
    def _threads(self) -> int:
        return available_cores() if self.settings.threads is None else self.settings.threads

    def __call__(self, image: Num[np.ndarray, "height width 3"]) -> np.ndarray:
        """Enhance one image; see `enhance`."""
        check_image(image)
        settings = self.settings
        strength = settings.strength
        if settings.method == "auto":
            strength *= correction(self._mean_luma(image))
        if strength == 0 or is_one_colour(image):
            return image.copy()
        plain = strength == 1 and settings.target == "auto" and settings.black_point is None
        if plain and settings.method == "closed_form" and image.dtype == np.uint8:
            return zscore_of(image, *_channel_moments(image), settings.contrast, self._threads)
        if plain and settings.method == "paper" and self.backend == "auto":
            return self.run_network(image, self.statistics(image), np.empty_like(image))
        fast = settings.method in ("plus", "auto") and settings.denoise == "off"
        if fast and instruction_set() != "numpy":
            # Floats are treated with the 65536 levels that a power table can hold.
            levels = image if image.dtype.kind == "u" else to_type(image, np.dtype(np.uint16))
            levels = np.ascontiguousarray(levels)
            curve, small = fast_curve(levels, settings.contrast, settings.chroma, self._threads)
            power = self._lift(image, curve)
            exact = settings.target == "auto" and settings.black_point is None and power == 1
            same_type = exact and image.dtype.name != "float64"
            out = np.empty(image.shape, image.dtype if same_type else np.float32)
            lit = fast_light(levels, curve, small, strength if exact else 1.0, self._threads, out)
            if exact:
                return lit.astype(image.dtype, copy=False)
            value = self._finish(lit.astype(np.float64) ** power)
        else:
            value = self._finish(self._light(image))
        if strength < 1:
            before = as_float(image)
            value = before + strength * (value - before)
        return to_type(value, image.dtype)

    def statistics(self, image: Num[np.ndarray, "height width 3"]) -> PatchStatistics:
        """Measure what the network's normalisation needs, in one pass."""
        settings = self.settings
        return collect_statistics(image, settings.padding, settings.tile, self._threads)

    def run_network(
        self,
        image: Num[np.ndarray, "height width 3"],
        statistics: PatchStatistics,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Apply the network with given statistics; see `apply_network`."""
        settings = self.settings
        return apply_network(
            self.network, image, statistics, settings.padding, settings.tile, self._threads,
            INSTANCE_NORM_EPS, out,
        )  # fmt: skip

    def curve(self, image: Num[np.ndarray, "height width 3"]) -> ToneCurve:
        """Measure the tone curve of the method "plus"."""
        dials = (self.settings.contrast, self.settings.chroma)
        if image.dtype.kind == "u" and instruction_set() != "numpy":
            return fast_curve(np.ascontiguousarray(image), *dials, self._threads)[0]
        return measure_curve(as_float(image), *dials)[0]

    def run_curve(
        self, image: Num[np.ndarray, "height width 3"], curve: ToneCurve
    ) -> Num[np.ndarray, "height width 3"]:
        """Apply a given tone curve in full, with base and detail of this image.

        Parameters
        ----------
        image : (height, width, 3) uint8, uint16 or float in [0, 1]
        curve : of this image, or of a shot that it belongs to

        Returns
        -------
        image of the same shape and type
        """
        if image.dtype.kind == "u" and instruction_set() != "numpy":
            image = np.ascontiguousarray(image)
            small = reduced_luma(image, curve.exponent, self._threads)[0]
            return fast_light(image, curve, small, 1.0, self._threads, np.empty_like(image))
        powered = np.clip(as_float(image), 0, 1) ** curve.exponent
        return to_type(light(curve, powered), image.dtype)

    def map_colours(
        self, image: Num[np.ndarray, "height width 3"], rgb: Float[np.ndarray, "*shape 3"]
    ) -> Float[np.ndarray, "*shape 3"]:
        """Send colours through the curve that was measured on an image: no neighbours, no network.

        Parameters
        ----------
        image : where mean, deviation and skew are measured
        rgb : colours in [0, 1]

        Returns
        -------
        colours in [0, 1]

        Raises
        ------
        InputError
            The method is "paper", which looks at neighbours.
        """
        check_image(image)
        if self.settings.method == "paper":
            raise InputError(
                "method='paper' is not allowed here: the network looks at neighbours, a table"
                " cannot; use closed_form or plus"
            )
        if self.settings.method == "closed_form":
            return _zscore_curve(image, rgb, self.settings.contrast)
        strength = correction(self._mean_luma(image)) if self.settings.method == "auto" else 1.0
        curve = self.curve(image)
        lit = curve.map_colours(rgb) ** self._lift(image, curve)
        return np.asarray(rgb + strength * (lit - rgb))

    def _lift(self, image: np.ndarray, curve: ToneCurve) -> float:
        """Power that "auto" needs to leave a scene that is dark by nature dark."""
        limited = self.settings.method == "auto" and self.settings.target == "auto"
        return lift_exponent(image, curve.map_colours) if limited else 1.0

    @staticmethod
    def _mean_luma(image: np.ndarray) -> float:
        if image.dtype.kind == "f" or instruction_set() == "numpy":
            return float(luma(image).mean())
        counts, _ = histograms(np.ascontiguousarray(image), BINS)
        levels = np.arange(counts.shape[1]) / full_scale(image.dtype)
        return float(LUMA @ (counts @ levels)) / int(counts[0].sum())

    def _light(self, image: np.ndarray) -> np.ndarray:
        settings = self.settings
        if self.backend != "auto":
            return run_backend(self.backend, self.network, image, settings.padding)
        if settings.method == "paper":
            return self.run_network(image, self.statistics(image)).astype(np.float64)
        if settings.method == "closed_form":
            return _zscore_curve(image, as_float(image), settings.contrast)
        value = np.clip(as_float(image), 0, 1)
        curve, powered = measure_curve(value, settings.contrast, settings.chroma)
        return light(curve, powered, settings.denoise) ** self._lift(value, curve)

    def _finish(self, value: np.ndarray) -> np.ndarray:
        black = self.settings.black_point
        if black is not None:
            level = min(float(np.quantile(value, black)), 0.95)
            value = np.clip((value - level) / (1 - level), 0, 1)
        if self.settings.target != "auto":
            value = value ** exponent_for_mean(value, float(self.settings.target))
        return value


def is_one_colour(image: Num[np.ndarray, "height width 3"]) -> bool:
    """Whether all pixels are equal, so that there is nothing to enhance."""
    return all(bool((row == image[0, 0]).all()) for row in image)


def to_type(value: Float[np.ndarray, "*shape"], dtype: np.dtype) -> Num[np.ndarray, "*shape"]:
    """Clip to [0, 1] and convert: integers take their full scale, rounded."""
    value = np.clip(value, 0, 1)
    if dtype.kind == "f":
        return value.astype(dtype)
    return np.asarray(np.rint(value * full_scale(dtype)), dtype=dtype)


def _channel_moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, full scale 1."""
    if image.dtype == np.uint8:
        counts = np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)])
        levels = np.arange(256) / 255
        mean = counts @ levels / counts[0].sum()
        square = counts @ levels**2 / counts[0].sum()
        return mean, np.sqrt(np.maximum(square - mean**2, 0))
    value = as_float(image)
    return value.mean(axis=(0, 1)), value.std(axis=(0, 1))


def _zscore_curve(
    image: Num[np.ndarray, "height width 3"], rgb: Float[np.ndarray, "*shape 3"], slope: float
) -> Float[np.ndarray, "*shape 3"]:
    return _compress(rgb, *_channel_moments(image), slope)


def _compress(rgb: np.ndarray, mean: np.ndarray, deviation: np.ndarray, slope: float) -> np.ndarray:
    z = (rgb - mean) / np.maximum(deviation, 1e-6)
    return np.asarray(0.5 + 0.5 * np.tanh(slope * z))


def zscore_of(
    image: Num[np.ndarray, "height width 3"],
    mean: Float[np.ndarray, " 3"],
    deviation: Float[np.ndarray, " 3"],
    slope: float,
    threads: int | None = None,
) -> Num[np.ndarray, "height width 3"]:
    """Apply the closed form with given moments of the channels.

    Parameters
    ----------
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    mean, deviation : of red, green and blue, full scale 1
    slope : factor before the tanh
    threads : for 8-bit images, which go through a table; None for all cores

    Returns
    -------
    image of the same shape and type
    """
    if image.dtype == np.uint8:
        levels = np.repeat(np.arange(256)[:, None] / 255, 3, axis=1)
        table = to_type(_compress(levels, mean, deviation, slope), image.dtype).T
        return lookup(
            image, np.ascontiguousarray(table), available_cores() if threads is None else threads
        )
    return to_type(_compress(as_float(image), mean, deviation, slope), image.dtype)


def enhance(
    image: Num[np.ndarray, "height width 3"],
    method: Method = "auto",
    strength: float = 1.0,
    target: float | Literal["auto"] = "auto",
    contrast: float = 0.5,
    chroma: float = 0.5,
    black_point: float | None = None,
    denoise: Denoise = "off",
    padding: Padding = "reflect",
    tile: int | None = None,
    model: SelfRegressionModel | None = None,
    threads: int | None = None,
) -> Num[np.ndarray, "height width 3"]:
    """Enhance one image.

    Parameters
    ----------
    image : (height, width, 3) sRGB, uint8, uint16 or float in [0, 1]
    method, strength, target, contrast, chroma, black_point, denoise, padding, tile, threads
        see `Settings`
    model : network of the method "paper"; None for the one that ships with the package

    Returns
    -------
    image of the same shape and type; an image of one single colour comes back unchanged

    Raises
    ------
    InputError
        The image or a dial is not allowed.

    Examples
    --------
    >>> import noiser, numpy as np
    >>> dark = np.random.default_rng(0).integers(0, 40, (32, 48, 3)).astype(np.uint8)
    >>> light = noiser.enhance(dark)
    >>> light.dtype.name, light.shape, bool(abs(light.mean() / 255 - 0.5) < 0.1)
    ('uint8', (32, 48, 3), True)
    """
    settings = Settings(
        method, strength, target, contrast, chroma, black_point, denoise, padding, tile, threads
    )
    return Enhancer(model, settings)(image)
