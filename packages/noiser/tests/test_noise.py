import numpy as np
import pytest
from noiser import InputError, noise_image
from scipy import stats


def test_clamped_gaussian_saturates_as_the_normal_distribution_says():
    image = noise_image(np.random.default_rng(0), size=400)
    expected = 2 * stats.norm.sf(1 / 3)
    assert abs((np.abs(image) == 1).mean() - expected) < 0.003
    assert abs(image.mean()) < 0.005


def test_pure_color_has_one_colour_and_palette_has_many():
    rng = np.random.default_rng(1)
    pure = noise_image(rng, "pure_color", 64)
    palette = noise_image(rng, "palette", 64, clamp=False)
    assert (pure == pure[:, :1, :1]).all()
    colours = len(np.unique(palette.reshape(3, -1).T, axis=0))
    assert 10 < colours <= 65


def test_mean_shift_moves_each_channel():
    image = noise_image(
        np.random.default_rng(2), "mean_shift", 300, sigma=0.2, mean=(0.3, 0.0, -0.4)
    )
    assert np.allclose(image.mean(axis=(1, 2)), [0.3, 0, -0.4], atol=0.004)


@pytest.mark.parametrize(
    "options",
    [{"kind": "pink"}, {"size": 4}, {"sigma": 0.0}, {"sigma": float("nan")}, {"mean": (0, 0, 2)}],
)
def test_bad_options(options):
    with pytest.raises(InputError, match="is not allowed"):
        noise_image(np.random.default_rng(0), **options)
