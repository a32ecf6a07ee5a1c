import numpy as np
import pytest
from noiser import assess, enhance, metrics
from noiser.assess import noise_deviation
from noiser.camera import retake
from scipy import stats


def test_noise_deviation_of_known_noise():
    rng = np.random.default_rng(0)
    for sigma in (0.01, 0.05):
        plane = np.linspace(0, 1, 200)[None] + rng.normal(0, sigma, (200, 200))
        assert noise_deviation(plane) == pytest.approx(sigma, rel=0.05)


def test_skewness_equals_scipy(photograph):
    expected = stats.skew(metrics.luma(photograph).ravel())
    assert assess(photograph).skewness == pytest.approx(expected, abs=1e-9)


def test_dark_bright_and_good_shots_are_told_apart(photograph):
    scale = 0.45 / (photograph.mean() / 255)
    good = np.clip(photograph * scale, 0, 255).astype(np.uint8)
    assert assess(good).recommendation == "leave"
    assert assess(retake(good, -4)).recommendation == "lift"
    assert assess(retake(good, 3)).recommendation == "lower"
    report = assess(photograph)
    assert report.under + report.over + report.well == pytest.approx(1)


def test_auto_leaves_good_shots_alone_to_the_last_bit(photograph):
    scale = 0.45 / (photograph.mean() / 255)
    good = np.clip(photograph * scale, 0, 255).astype(np.uint8)
    assert np.array_equal(enhance(good), good)
    dark = retake(good, -4)
    assert np.array_equal(enhance(dark), enhance(dark, "plus"))
