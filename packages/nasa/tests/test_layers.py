import math

import pytest
import torch
from nasa.nn import AdderConv2d, ShiftConv2d, rescale_gradients_


def test_gradient_norm_is_eta_times_root_of_size():
    layer = AdderConv2d(4, 8, 3, padding=1)
    layer(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert math.isclose(
        layer.weight.grad.norm(), 0.2 * math.sqrt(layer.weight.numel()), rel_tol=1e-5
    )


def test_scaling_after_averaging_differs_from_averaging_scaled_gradients():
    """Data-parallel training must normalise the averaged gradient: scaling="step" leaves it raw."""
    torch.manual_seed(0)
    layer = AdderConv2d(2, 3, 1, scaling="step")
    grads = []
    for scale in (1.0, 100.0):
        layer.weight.grad = None
        (layer(torch.randn(1, 2, 4, 4)) * torch.randn(1, 3, 4, 4) * scale).sum().backward()
        grads.append(layer.weight.grad.clone())
    layer.weight.grad = (grads[0] + grads[1]) / 2
    direction = layer.weight.grad / layer.weight.grad.norm()
    rescale_gradients_(layer.modules())
    assert torch.allclose(layer.weight.grad, direction * 0.2 * math.sqrt(6), atol=1e-6)


def test_zero_gradient_stays_zero():
    layer = AdderConv2d(2, 3, 1)
    (layer(torch.randn(1, 2, 4, 4)) * 0).sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


def test_ps_mode_weights_are_signed_powers_of_two_or_zero():
    torch.manual_seed(0)
    layer = ShiftConv2d(3, 5, 3, mode="ps", weight_bits=5)
    weight = layer.quantized_weight()
    nonzero = weight[weight != 0].abs()
    assert torch.equal(torch.log2(nonzero), torch.log2(nonzero).round())
    assert set(torch.sign(weight).unique().tolist()) == {-1.0, 0.0, 1.0}
    layer(torch.randn(1, 3, 5, 5)).sum().backward()
    assert layer.sign.grad.abs().sum() > 0
    assert layer.exponent.grad.abs().sum() > 0


def test_training_a_shift_layer_moves_its_latent_weights():
    torch.manual_seed(0)
    layer = ShiftConv2d(3, 4, 3, padding=1)
    target = torch.randn(8, 4, 6, 6)
    x = torch.randn(8, 3, 6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdderConv2d(3, 4, 3, groups=2), "groups=2"),
        (lambda: AdderConv2d(3, 4, 0), "kernel_size=0"),
        (lambda: AdderConv2d(3, 4, 3, scaling="often"), "scaling='often'"),
        (lambda: ShiftConv2d(3, 4, 3, mode="p"), "mode='p'"),
        (lambda: ShiftConv2d(3, 4, 3, weight_bits=9), "weight_bits=9"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_describes_itself():
    assert "weight_bits=6" in repr(ShiftConv2d(3, 4, 3))
    assert "stride=(2, 2)" in repr(AdderConv2d(3, 4, 3, 2))
