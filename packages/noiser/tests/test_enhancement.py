import numpy as np
import pytest
from noiser import InputError, enhance, train
from noiser.enhancement import METHODS


@pytest.fixture(scope="module")
def trained():
    return train(channels=8, steps=300, size=48, learning_rate=1e-3, seed=0)


def test_dark_and_bright_versions_of_a_scene_come_out_alike(trained, photograph):
    dark, bright = photograph / 255 * 0.1, photograph / 255 * 0.4 + 0.6
    a, b = (enhance(x, "paper", model=trained) for x in (dark, bright))
    assert abs(dark.mean() - bright.mean()) > 0.5
    assert np.abs(a - b).mean() < 0.02
    assert 0.35 < a.mean() < 0.65


def test_output_keeps_shape_and_type(trained, photograph):
    for image in (photograph, photograph.astype(np.uint16) * 257, photograph / 255):
        out = enhance(image, "paper", model=trained)
        assert out.dtype == image.dtype
        assert out.shape == image.shape


def test_16_bits_are_not_reduced_to_8():
    ramp = np.arange(65536, dtype=np.uint16).reshape(64, 1024)
    out = enhance(np.stack([ramp] * 3, axis=2), method="closed_form")
    assert len(np.unique(out)) > 40_000


def test_strength_goes_from_the_image_to_the_effect(trained, photograph):
    outs = [enhance(photograph / 255, "paper", model=trained, strength=s) for s in (0.0, 0.5, 1.0)]
    assert np.array_equal(outs[0], photograph / 255)
    assert np.abs(outs[1] - (outs[0] + outs[2]) / 2).max() < 1e-6


@pytest.mark.parametrize("value", [0, 7, 255])
def test_one_single_colour_comes_back(trained, value):
    image = np.full((8, 9, 3), value, np.uint8)
    for method in METHODS:
        assert np.array_equal(enhance(image, method, model=trained), image)


def test_bad_options(photograph):
    with pytest.raises(InputError, match="strength=2"):
        enhance(photograph, method="closed_form", strength=2)
    with pytest.raises(InputError, match="method='magic'"):
        enhance(photograph, method="magic")
