import noiser.metrics as ours
import numpy as np
import pytest
from noiser import InputError
from skimage import color, metrics


def test_psnr_equals_scikit_image(photograph):
    other = (photograph * 0.8).astype(np.uint8)
    expected = metrics.peak_signal_noise_ratio(photograph, other)
    assert ours.psnr(other, photograph) == pytest.approx(expected, abs=1e-9)
    assert ours.psnr(photograph, photograph) == np.inf


def test_ssim_equals_scikit_image(photograph):
    rng = np.random.default_rng(0)
    other = np.clip(photograph * 0.7 + rng.normal(0, 9, photograph.shape), 0, 255)
    other = other.astype(np.uint8)
    expected = metrics.structural_similarity(
        ours.luma(other), ours.luma(photograph), data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert ours.ssim(other, photograph) == pytest.approx(expected, abs=1e-9)


def test_luma_is_bt601(photograph):
    expected = color.rgb2yuv(photograph)[..., 0]
    assert np.abs(ours.luma(photograph) - expected).max() < 1e-3


def test_gt_mean_has_the_mean_of_the_reference(photograph):
    scaled = ours.gt_mean((photograph * 0.3).astype(np.uint8), (photograph * 0.5).astype(np.uint8))
    assert abs(scaled.mean() - (photograph * 0.5).astype(np.uint8).mean() / 255) < 1e-3


def test_shapes_must_agree(photograph):
    for function in (ours.psnr, ours.ssim, ours.gt_mean):
        with pytest.raises(InputError, match="must be equal"):
            function(photograph, photograph[1:])


def test_entropy_equals_scikit_image(photograph):
    from skimage.measure import shannon_entropy

    levels = np.rint(ours.luma(photograph) * 255).astype(np.uint8)
    assert ours.discrete_entropy(photograph) == pytest.approx(shannon_entropy(levels), abs=1e-9)


def test_lightness_order_is_kept_by_monotone_curves_only(photograph):
    value = photograph / 255
    assert ours.lightness_order_error(value**0.5, value) == 0
    assert ours.lightness_order_error(1 - value, value) > 0.8
    noise = np.random.default_rng(0).random(value.shape)
    assert ours.lightness_order_error(noise, value) == pytest.approx(0.5, abs=0.05)
