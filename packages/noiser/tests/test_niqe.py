"""NIQE: moment fits against distributions with known parameters, order of damages, the file."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from noiser import InputError, metrics
from noiser.metrics import gaussian_blur
from noiser.niqe import NiqeModel, features, fit, fit_asymmetric_gaussian, niqe, shipped
from PIL import Image
from scipy import ndimage, stats


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 4.0])
def test_a_generalised_gaussian_is_recovered(shape):
    """Scipy's distribution has density proportional to exp(-|x|^shape), of scale 1."""
    draws = stats.gennorm(shape).rvs(400_000, random_state=0)
    found, left, right = fit_asymmetric_gaussian(draws)
    assert found == pytest.approx(shape, rel=0.03)
    assert left == pytest.approx(1, rel=0.03)
    assert right == pytest.approx(1, rel=0.03)


def test_an_asymmetric_one_is_recovered():
    """Sides of scales 1 and 3 in the proportion 1 : 3 make one continuous density."""
    rng = np.random.default_rng(0)
    draws = np.abs(rng.normal(size=400_000))
    left = rng.random(400_000) < 0.25
    draws = np.where(left, -draws, 3 * draws)
    shape, low, high = fit_asymmetric_gaussian(draws)
    assert shape == pytest.approx(2, rel=0.03)
    assert low == pytest.approx(math.sqrt(2), rel=0.03)
    assert high == pytest.approx(3 * math.sqrt(2), rel=0.03)


def test_local_statistics_equal_scipys(photograph):
    """The window of the paper: 7 x 7, sigma 7/6."""
    plane = np.rint(metrics.luma(photograph) * 255)
    ours = gaussian_blur(plane, 7 / 6, radius=3)
    theirs = ndimage.gaussian_filter(plane, 7 / 6, mode="reflect", radius=3)
    assert np.abs(ours - theirs).max() < 1e-9


def test_damages_cost():
    from skimage import data

    image = data.rocket()  # not among the photographs of the fit
    value = image / 255
    rng = np.random.default_rng(0)
    blurred = np.stack([gaussian_blur(value[..., c], 2.0) for c in range(3)], axis=2)
    slightly = np.stack([gaussian_blur(value[..., c], 1.0) for c in range(3)], axis=2)
    noisy = np.clip(value + rng.normal(0, 0.08, value.shape), 0, 1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=8)
    blocky = np.asarray(Image.open(buffer))
    clean = niqe(image)
    assert clean < niqe(slightly) < niqe(blurred)
    assert niqe(noisy) > 1.2 * clean
    assert niqe(blocky) > 1.2 * clean
    assert metrics.niqe(image) == clean


def test_flat_and_small_images():
    assert math.isnan(niqe(np.full((96, 96, 3), 80, np.uint8)))
    with pytest.raises(InputError, match="96 x 96"):
        niqe(np.zeros((95, 200, 3), np.uint8))


def test_patches_are_counted(photograph):
    image = np.tile(photograph, (3, 3, 1))[:200, :300]
    found, sharpness = features(image)
    assert found.shape == (2 * 3, 36)
    assert sharpness.shape == (6,)
    again, _ = features(image[:96, 96:192])
    assert again.shape == (1, 36)


def test_the_shipped_parameters_come_from_the_command(tmp_path):
    """Regression: the file is what the module writes for the photographs that it names."""
    from pathlib import Path

    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photographs = [str(folder / name) for name in shipped().source.split(", ")]
    command = [sys.executable, "-m", "noiser.niqe", *photographs, "-o", str(tmp_path / "n.json")]
    subprocess.run(command, check=True, capture_output=True)
    again = NiqeModel.from_json((tmp_path / "n.json").read_text())
    assert np.allclose(again.mean, shipped().mean, rtol=1e-6)
    assert np.allclose(again.covariance, shipped().covariance, rtol=1e-5, atol=1e-9)


def test_bad_files_and_too_few_patches(photograph):
    with pytest.raises(InputError, match="NIQE"):
        NiqeModel.from_json("{}")
    with pytest.raises(InputError, match="shapes"):
        NiqeModel.from_json('{"mean": [1], "covariance": [[1]]}')
    with pytest.raises(InputError, match="sharp patches"):
        fit([photograph])
