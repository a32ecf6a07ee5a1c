import numpy as np
import pytest
from noiser import InputError, enhance, metrics
from noiser.camera import retake
from noiser.filters import box_mean, guided_filter
from noiser.tone import exponent_for_mean


def test_box_mean_equals_a_uniform_filter(photograph):
    from scipy import ndimage

    plane = photograph[..., 0] / 255
    inside = ndimage.uniform_filter(plane, 9)[4:-4, 4:-4]
    assert np.abs(box_mean(plane, 4)[4:-4, 4:-4] - inside).max() < 1e-12


def test_guided_filter_keeps_edges_and_removes_noise():
    rng = np.random.default_rng(0)
    step = np.zeros((60, 80))
    step[:, 40:] = 1.0
    noisy = step + rng.normal(0, 0.03, step.shape)
    smooth = guided_filter(noisy, 6, 0.01)
    assert np.std(smooth[:, 8:30]) < 0.006
    assert np.abs(smooth - step).max() < 0.15


def test_the_reduced_filter_stays_near_the_full_one(photograph):
    y = metrics.luma(photograph)
    from noiser import filters

    reduced = guided_filter(y, 16, 0.01)
    mean = filters.box_mean(y, 16)
    variance = filters.box_mean(y * y, 16) - mean**2
    slope = variance / (variance + 0.01)
    full = filters.box_mean(slope, 16) * y + filters.box_mean(mean - slope * mean, 16)
    assert np.abs(reduced - full).mean() < 0.01


@pytest.mark.parametrize("mean", [0.2, 0.45, 0.7])
def test_exponent_reaches_the_mean(photograph, mean):
    values = metrics.luma(photograph)
    assert np.mean(values ** exponent_for_mean(values, mean)) == pytest.approx(mean, abs=2e-3)


def test_plus_is_better_than_the_network_in_both_directions():
    from skimage import data

    originals = [np.asarray(f())[::2, ::2] for f in (data.astronaut, data.coffee, data.chelsea)]
    for stops in (-4, 2):
        shots = [retake(original, stops, seed=1) for original in originals]
        plus, paper, none = (
            np.mean([metrics.psnr(f(s), o) for s, o in zip(shots, originals)])
            for f in (lambda s: enhance(s, "plus"), lambda s: enhance(s, "paper"), lambda s: s)
        )
        assert plus > paper
        assert plus > none + 3


def test_target_chroma_contrast_and_black_point_do_what_they_say(photograph):
    dark = retake(photograph, -3, seed=0)
    for target in (0.3, 0.6):
        out = enhance(dark, "plus", target=target)
        assert out.mean() / 255 == pytest.approx(target, abs=0.02)
    gray, kept = (enhance(dark, "plus", chroma=c) for c in (0.0, 1.0))
    assert metrics.colour_cast(gray) < metrics.colour_cast(kept)
    flat, steep = (enhance(dark, "plus", contrast=c) for c in (0.2, 0.8))
    assert flat.std() < steep.std()
    assert (enhance(dark, "plus", black_point=0.1) == 0).mean() > 0.08


def test_denoising_removes_noise(photograph):
    from noiser.assess import noise_deviation

    # 60 electrons at white in the dark shot: the noise is what one sees.
    dark = retake(photograph, -4, full_well=1000, seed=0)
    noisy, clean = (enhance(dark, "plus", denoise=d) for d in ("off", "auto"))
    before, after = (noise_deviation(metrics.luma(x)) for x in (noisy, clean))
    assert after < 0.7 * before
    assert metrics.ssim(clean, photograph) > metrics.ssim(noisy, photograph)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("method", ["auto", "plus", "closed_form", "paper"])
def test_tiny_images(shape, method):
    image = np.random.default_rng(0).integers(0, 30, (*shape, 3)).astype(np.uint8)
    out = enhance(image, method, denoise="auto" if method == "plus" else "off")
    assert out.shape == image.shape
    assert out.mean() > image.mean()


@pytest.mark.parametrize(
    "dial",
    [
        {"target": 0}, {"target": 1.0}, {"target": "bright"}, {"contrast": 2}, {"chroma": -1},
        {"black_point": 0.5}, {"denoise": "much"}, {"denoise": 3}, {"padding": "edge"},
        {"tile": 0}, {"threads": 0}, {"strength": float("nan")},
    ],
)  # fmt: skip
def test_dials_out_of_range(photograph, dial):
    with pytest.raises(InputError, match=next(iter(dial))):
        enhance(photograph, "plus", **dial)
