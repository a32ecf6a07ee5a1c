import numpy as np
import pytest
from noiser import InputError
from noiser.camera import linear_to_srgb, retake, srgb_to_linear
from skimage import color


def test_transfer_curve_is_that_of_scikit_image():
    value = np.random.default_rng(0).random((50, 60, 3))
    # rgb2xyz decodes sRGB and multiplies by a matrix; full primaries give the matrix.
    light = color.rgb2xyz(value) @ np.linalg.inv(color.rgb2xyz(np.eye(3)[None])[0])
    assert np.abs(srgb_to_linear(value) - light).max() < 1e-6
    assert np.abs(linear_to_srgb(srgb_to_linear(value)) - value).max() < 1e-6


def test_noise_has_the_variance_of_shot_and_read_noise():
    gray = np.full((200, 200, 3), 0.6)
    shot = srgb_to_linear(retake(gray, -1, full_well=1000, read_noise=5, bits=14) / 255) * 1000
    electrons = float(srgb_to_linear(np.array(0.6))) * 500
    assert shot.mean() == pytest.approx(electrons, rel=0.01)
    assert shot.var() == pytest.approx(electrons + 25, rel=0.05)


def test_bright_shots_clip_and_seeds_repeat(photograph):
    bright = retake(photograph, 4, seed=1)
    assert (bright == 255).mean() > 0.4
    assert np.array_equal(bright, retake(photograph, 4, seed=1))
    with pytest.raises(InputError, match="stops=nan"):
        retake(photograph, float("nan"))
