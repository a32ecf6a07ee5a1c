import numpy as np
import pytest
import torch
from noiser import InputError, SelfRegressionModel, TrainingLog, noise_image, train, train_many
from noiser.training import loss_and_gradient, total_variation
from torch import nn


def torch_loss(weights, x, tv_weight):
    w1, b1, w2, b2 = weights
    h = nn.functional.conv2d(x, w1, b1, padding=1)
    h = nn.functional.gelu(nn.functional.instance_norm(h, eps=1e-5))
    y = torch.tanh(nn.functional.conv2d(h, w2, b2, padding=1))
    down, right = y.diff(dim=2), y.diff(dim=3)
    tv = (down.square().sum() + right.square().sum()) / y.numel()
    l1 = (y - x).abs().mean()
    return l1, tv, l1 + tv_weight * tv


@pytest.mark.parametrize("tv_weight", [0.0, 1.0, 2.5])
def test_gradient_equals_automatic_differentiation(tv_weight):
    arrays = SelfRegressionModel.initialise(7, seed=4).arrays()
    x = noise_image(np.random.default_rng(5), size=24)
    l1, tv, gradients = loss_and_gradient(arrays, x, tv_weight)
    weights = [torch.from_numpy(a).double().requires_grad_() for a in arrays]
    expected_l1, expected_tv, loss = torch_loss(
        weights, torch.from_numpy(x)[None].double(), tv_weight
    )
    loss.backward()
    assert abs(l1 - float(expected_l1)) < 1e-6
    assert abs(tv - float(expected_tv)) < 1e-6
    for found, weight in zip(gradients, weights):
        scale = float(weight.grad.abs().max()) + 1e-12
        if found.shape == (7,):
            # The bias before a normalisation has no effect.
            assert scale < 1e-10
            assert not found.any()
        else:
            assert np.abs(found - weight.grad.numpy()).max() < 2e-5 * scale + 1e-8


def test_adam_steps_equal_those_of_torch():
    arrays = SelfRegressionModel.initialise(5, seed=6).arrays()
    weights = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    optimiser = torch.optim.Adam(weights, lr=2e-4, betas=(0.5, 0.999))
    rng = np.random.default_rng([6, 1])
    for _ in range(30):
        optimiser.zero_grad()
        x = torch.from_numpy(noise_image(rng, size=20))[None]
        torch_loss(weights, x, 1.0)[2].backward()
        optimiser.step()
    model = train(channels=5, steps=30, size=20, seed=6)
    for name in ("conv1_weight", "conv2_weight", "conv2_bias"):
        index = ["conv1_weight", "conv1_bias", "conv2_weight", "conv2_bias"].index(name)
        assert np.abs(getattr(model, name) - weights[index].detach().numpy()).max() < 2e-5


def test_total_variation_of_a_step_edge():
    y = np.zeros((1, 4, 4))
    y[:, :, 2:] = 3.0
    assert total_variation(y)[0] == pytest.approx(4 * 9 / 16)


def test_losses_go_to_those_of_the_independent_log():
    # Published log of an independent implementation: 0.6953 and 0.0836 after 2000 steps of 104^2.
    # Smaller noise images, fewer of them and a larger step reach the same level.
    log = TrainingLog()
    train(steps=700, size=64, learning_rate=6e-4, seed=0, log=log)
    l1, tv = log.final()
    assert abs(l1 - 0.6953) < 0.015
    assert abs(tv - 0.0836) < 0.008
    assert log.l1[0] > 0.8


def test_one_seed_gives_one_model():
    a, b, c = (train(steps=5, size=16, seed=s) for s in (1, 1, 2))
    assert a.to_json() == b.to_json() != c.to_json()


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"channels": 0}, {"channels": 999}, {"size": 2}, {"sigma": -1.0},
        {"seed": -1}, {"learning_rate": 0.0}, {"tv_weight": -0.1}, {"noise": "pink"},
    ],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(InputError, match="is not allowed"):
        train(**{"steps": 1, **options})


def test_many_seeds_at_once_are_the_single_trainings():
    recipe = {"channels": 5, "steps": 30, "size": 24}
    together = train_many(range(4), jobs=3, **recipe)
    for seed, model in enumerate(together):
        assert model.to_json() == train(seed=seed, **recipe).to_json()
    with pytest.raises(InputError, match="jobs=0"):
        train_many([1], jobs=0)


@pytest.mark.stress
def test_the_shipped_weights_come_from_the_command(tmp_path):
    """Equal bytes on the instruction set that they were made with; else equal pictures."""
    from importlib.resources import files

    from noiser import cli, enhance
    from noiser.native import instruction_set
    from skimage import data

    with pytest.raises(SystemExit):
        cli.main(["train", "--seed", "0", "-o", str(tmp_path / "srm18.json")])
    shipped = files("noiser").joinpath("data/srm18.json").read_bytes()
    made = (tmp_path / "srm18.json").read_bytes()
    if instruction_set() == "avx512":
        assert made == shipped
    dark = data.astronaut() // 8
    model = SelfRegressionModel.load(tmp_path / "srm18.json")
    ours = enhance(dark, "paper", model=model).astype(int)
    assert np.abs(ours - enhance(dark, "paper")).max() <= 2
