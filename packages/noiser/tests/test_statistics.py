import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from noiser import InputError, SelfRegressionModel, fold, patch_statistics

MODES = {"reflect": "reflect", "zeros": "constant"}


def direct(image, padding):
    """Mean and covariance of the patches through numpy's sliding windows."""
    white = {"uint8": 255, "uint16": 65535}.get(image.dtype.name, 1)
    value = 2 * image.astype(np.float64) / white - 1
    padded = np.pad(value, ((1, 1), (1, 1), (0, 0)), mode=MODES[padding])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    patches = windows.reshape(-1, 27)
    return patches.mean(axis=0), np.cov(patches.T, bias=True)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
def test_equals_the_covariance_of_sliding_windows(photograph, padding, kind):
    image = photograph[:33, :41] / 255
    image = (image * 40000).astype(np.uint16) if kind == "uint16" else image
    image = photograph[:33, :41] if kind == "uint8" else image.astype(kind)
    found = patch_statistics(image, padding)
    mean, covariance = direct(image, padding)
    assert np.abs(found.mean - mean).max() < 1e-14
    assert np.abs(found.covariance - covariance).max() < 1e-14


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(2, 12), st.integers(2, 12), st.just(3)),
    ),
    st.integers(1, 13),
    st.sampled_from(["reflect", "zeros"]),
)
def test_bands_do_not_change_a_bit(image, tile, padding):
    whole, banded = (patch_statistics(image, padding, t) for t in (len(image), tile))
    assert np.array_equal(whole.mean, banded.mean)
    assert np.array_equal(whole.covariance, banded.covariance)


def test_bands_do_not_change_a_bit_of_floats(photograph):
    image = photograph.astype(np.float32) / 255
    whole = patch_statistics(image, tile=len(image))
    for tile in (1, 5, 64):
        assert np.array_equal(whole.covariance, patch_statistics(image, tile=tile).covariance)


def test_dark_integer_images_lose_nothing_to_cancellation():
    image = np.zeros((64, 64, 3), np.uint16)
    image[::2, ::2] = 1
    expected = direct(image, "reflect")[1]
    assert np.allclose(patch_statistics(image).covariance, expected, rtol=1e-5, atol=0)


def test_folding_gives_hidden_channels_mean_zero_and_variance_one(photograph):
    model = SelfRegressionModel.initialise(8, seed=1)
    folded = fold(model, patch_statistics(photograph), eps=0)
    value = 2 * photograph.astype(np.float64) / 255 - 1
    padded = np.pad(value, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    hidden = windows.reshape(-1, 27) @ folded.conv1_weight.T + folded.conv1_bias
    assert np.abs(hidden.mean(axis=0)).max() < 1e-12
    assert np.abs(hidden.var(axis=0) - 1).max() < 1e-12


def test_centre_moments_are_those_of_the_image(photograph):
    found = patch_statistics(photograph)
    assert np.allclose(found.channel_mean, photograph.mean(axis=(0, 1)) / 255, atol=1e-12)
    assert np.allclose(found.channel_deviation, photograph.std(axis=(0, 1)) / 255, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((1, 1, 3), np.uint8), "at least 2 pixels"),
        (np.zeros((4, 4), np.uint8), "height, width, 3"),
        (np.zeros((4, 4, 4), np.uint8), "height, width, 3"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.full((4, 4, 3), np.nan), "48 values"),
        ([[1, 2, 3]], "list"),
    ],
)
def test_images_that_cannot_be_used(image, word):
    with pytest.raises(InputError, match=word):
        patch_statistics(image)


def test_options_that_cannot_be_used(photograph):
    with pytest.raises(InputError, match="padding='same'"):
        patch_statistics(photograph, "same")
    with pytest.raises(InputError, match="tile=0"):
        patch_statistics(photograph, tile=0)
