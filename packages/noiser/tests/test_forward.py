import numpy as np
import pytest
import torch
from noiser import SelfRegressionModel, forward
from torch import nn


def torch_network(model, padding):
    """Build the network as an ordinary torch module in float64: the oracle."""
    mode = {"reflect": "reflect", "zeros": "zeros"}[padding]
    network = nn.Sequential(
        nn.Conv2d(3, model.channels, 3, padding=1, padding_mode=mode),
        nn.InstanceNorm2d(model.channels, affine=False, eps=1e-5),
        nn.GELU(),
        nn.Conv2d(model.channels, 3, 3, padding=1, padding_mode=mode),
        nn.Tanh(),
    ).double()
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), model.arrays()):
            parameter.copy_(torch.from_numpy(value))
    return network


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("shape", [(96, 112), (3, 40), (17, 2)])
def test_equals_torch_in_double_precision(photograph, padding, shape):
    model = SelfRegressionModel.initialise(18, seed=2)
    image = photograph[: shape[0], : shape[1]]
    x = torch.from_numpy(2 * image.astype(np.float64) / 255 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = (torch_network(model, padding)(x)[0].permute(1, 2, 0).numpy() + 1) / 2
    assert np.abs(forward(model, image, padding) - expected).max() < 1e-12


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_bands_do_not_change_a_bit(model, photograph, kind, padding):
    scale = {"uint8": 1, "uint16": 200, "float32": 1 / 255}[kind]
    image = (photograph * scale).astype(kind)
    whole = forward(model, image, padding, tile=len(image))
    for tile in (1, 2, 7, 95):
        assert np.array_equal(forward(model, image, padding, tile), whole)


@pytest.mark.parametrize(("gain", "offset"), [(0.1, 0.0), (0.2, 0.1), (0.5, 0.5), (1.0, -0.2)])
def test_gain_and_offset_of_the_exposure_vanish(model, photograph, gain, offset):
    image = photograph / 255
    changed = gain * image + offset
    difference = np.abs(forward(model, image, eps=1e-12) - forward(model, changed, eps=1e-12))
    assert difference.max() < 1e-6


def test_zero_padding_breaks_the_invariance(model, photograph):
    # The pitfall that mirrored borders avoid: zero is mid-gray in the range [-1, 1].
    image = photograph / 255
    a, b = (forward(model, x, "zeros", eps=1e-12) for x in (image, 0.1 * image))
    assert np.abs(a - b).max() > 10 / 255


def test_statistics_per_tile_would_be_wrong(model, photograph):
    whole = forward(model, photograph)
    half = np.concatenate([forward(model, photograph[:48]), forward(model, photograph[48:])])
    assert np.abs(whole - half).max() > 5 / 255


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (2, 1), (1, 2), (2, 2)])
def test_tiny_images_stay_finite(model, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    out = forward(model, image)
    assert out.shape == image.shape
    assert np.isfinite(out).all()
    assert 0 <= out.min() <= out.max() <= 1
