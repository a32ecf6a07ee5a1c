"""The limit of what "auto" lifts."""

from __future__ import annotations

import numpy as np
import pytest
from noiser import Enhancer, enhance
from noiser.camera import linear_to_srgb, retake
from noiser.enhancement import Settings
from noiser.lift import MOST_LIFT, lift_exponent, mean_luminance


def test_luminance_is_that_of_linear_light() -> None:
    gray = np.full((4, 4, 3), 0.18)
    assert mean_luminance(linear_to_srgb(gray)) == pytest.approx(0.18, abs=1e-6)


def test_a_curve_within_the_limit_is_left_alone() -> None:
    image = np.random.default_rng(0).uniform(0, 0.1, (20, 30, 3))
    assert lift_exponent(image, lambda rgb: rgb) == 1
    bright = np.random.default_rng(0).uniform(0.4, 1, (20, 30, 3))
    assert lift_exponent(bright, np.ones_like) == 1


@pytest.mark.parametrize("most", [0.6, 0.9])
def test_a_curve_beyond_it_is_held_at_five_stops(most: float) -> None:
    image = np.random.default_rng(0).uniform(0, 0.05, (20, 30, 3))

    def curve(rgb: np.ndarray) -> np.ndarray:
        return most * (rgb / 0.05) ** 0.3

    pixels = image.reshape(-1, 3)
    power = lift_exponent(image, curve)
    assert power > 1
    stops = np.log2(mean_luminance(curve(pixels) ** power) / mean_luminance(pixels))
    assert stops == pytest.approx(MOST_LIFT, abs=1e-6)


@pytest.mark.parametrize("denoise", ["off", "auto"])
@pytest.mark.parametrize("kind", ["uint8", "float64"])
def test_a_night_sky_stays_darker_with_auto(kind: str, denoise: str) -> None:
    data = pytest.importorskip("skimage.data")
    night = np.asarray(data.rocket())[..., :3]
    shot = retake(night, -4.3)
    image = shot if kind == "uint8" else shot / 255
    auto, plus = (enhance(image, m, denoise=denoise) for m in ("auto", "plus"))
    scale = 255 if kind == "uint8" else 1
    before = mean_luminance(shot / 255)
    assert np.log2(mean_luminance(plus / scale) / before) > MOST_LIFT + 0.7
    # The limit looks at the curve: base, detail and denoising come after it.
    lowest = MOST_LIFT - (0.25 if denoise == "off" else 0.5)
    assert lowest < np.log2(mean_luminance(auto / scale) / before) < MOST_LIFT + 0.1
    told = enhance(image, "auto", target=0.4, denoise=denoise)
    assert told.mean() / scale == pytest.approx(0.4, abs=0.05)


def test_the_table_of_colours_has_the_limit_too() -> None:
    data = pytest.importorskip("skimage.data")
    shot = retake(np.asarray(data.rocket())[..., :3], -4.3)
    colours = np.linspace(0, 0.3, 30).reshape(10, 3)
    auto, plus = (
        Enhancer(settings=Settings(m)).map_colours(shot, colours) for m in ("auto", "plus")
    )
    assert auto.mean() < 0.9 * plus.mean()
