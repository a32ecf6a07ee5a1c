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


def test_clahe_without_a_limit_is_equalisation_in_one_tile(photograph):
    plane = luma(photograph)
    one_tile = baselines.equalise_tiles(plane, 1e9, 1)
    expected = exposure.equalize_hist(np.rint(plane * 255).astype(np.uint8), nbins=256)
    assert np.abs(one_tile - expected).max() < 2 / 255


@pytest.mark.peer
def test_clahe_equals_opencv(photograph):
    cv2 = pytest.importorskip("cv2")
    plane = photograph[..., 1]
    expected = cv2.createCLAHE(2.0, (8, 8)).apply(plane)
    ours = baselines.equalise_tiles(plane / 255, 2.0, 8) * 255
    assert np.abs(ours - expected).max() <= 1


def test_lines_are_solved_exactly():
    rng = np.random.default_rng(0)
    plane, weights = rng.random((4, 9)), rng.random((4, 9))
    found = baselines._smooth_lines(plane, weights, 0.7)
    for row, weight, result in zip(plane, weights, found):
        matrix = np.eye(9)
        for x in range(8):
            matrix[x : x + 2, x : x + 2] += 0.7 * weight[x] * np.array([[1, -1], [-1, 1]])
        assert np.allclose(result, np.linalg.solve(matrix, row))


@pytest.mark.parametrize("method", [baselines.lime, baselines.msrcr, baselines.clahe])
def test_local_methods_lighten_and_stay_in_range(photograph, method):
    dark = (photograph * 0.15).astype(np.uint8)
    out = method(dark)
    assert out.shape == dark.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert out.mean() > 1.3 * dark.mean() / 255
