import numpy as np
import pytest
from noiser import baselines
from noiser.metrics import luma
from skimage import exposure


@pytest.mark.parametrize("method", [baselines.gamma, baselines.gray_world, baselines.gain])
def test_methods_that_aim_at_a_mean_reach_it(photograph, method):
    dark = (photograph * 0.1).astype(np.uint8)
    assert method(dark, 0.3).mean() == pytest.approx(0.3, abs=0.01)


def test_gray_world_makes_the_channel_means_equal(photograph):
    dark = (photograph * 0.1).astype(np.uint8)
    assert np.ptp(baselines.gray_world(dark, 0.3).mean(axis=(0, 1))) < 0.01


def test_histogram_equalisation_is_that_of_scikit_image_on_gray(photograph):
    gray = np.repeat(luma(photograph)[:, :, None], 3, axis=2)
    ours = baselines.histogram_equalisation(gray)[..., 0]
    expected = exposure.equalize_hist(gray[..., 0], nbins=256)
    assert np.abs(ours - expected).mean() < 0.01


def test_zscore_is_invariant_and_gray(photograph):
    value = photograph / 255
    a, b = baselines.zscore(value), baselines.zscore(0.2 * value + 0.1)
    assert np.abs(a - b).max() < 1e-9
    assert abs(a.mean() - 0.5) < 0.05
