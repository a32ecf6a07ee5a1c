"""Meta-gradients against torch's Hessian, finite differences and a per-UE loop."""

from __future__ import annotations

import pytest
import torch
from perfeds2 import FlatModel, InputError, MetaGradient
from torch import nn


def setup(dtype=torch.float64, ues=5, batch=6):
    g = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=dtype) * 0.5
    model = FlatModel(module)
    w = torch.randn(ues, model.size, generator=g, dtype=dtype) * 0.5

    def draw():
        x = torch.randn(ues, batch, 4, generator=g, dtype=dtype)
        return x, torch.randint(0, 3, (ues, batch), generator=g)

    return model, w, draw(), draw(), draw()


def of(batch, i):
    return batch[0][i], batch[1][i]


def test_exact_equals_identity_minus_alpha_hessian_times_gradient():
    model, w, inner, outer, hess = setup()
    alpha = 0.3
    found = MetaGradient(model, alpha)(w, inner, outer, hess)
    for i in range(len(w)):
        g_in = torch.autograd.functional.jacobian(lambda u, i=i: model.loss(u, of(inner, i)), w[i])
        v = torch.autograd.functional.jacobian(
            lambda u, i=i: model.loss(u, of(outer, i)), w[i] - alpha * g_in
        )
        h = torch.autograd.functional.hessian(lambda u, i=i: model.loss(u, of(hess, i)), w[i])
        expected = v - alpha * h @ v
        torch.testing.assert_close(found[i], expected, rtol=1e-11, atol=1e-13)


def test_same_batches_give_the_derivative_of_the_adapted_loss():
    """With D_in = D_h the exact estimator is the gradient of w -> f(w - a f'(w; D_in); D_o)."""
    model, w, inner, outer, _ = setup()
    found = MetaGradient(model, 0.2)(w, inner, outer, inner)
    for i in range(2):

        def value(u, i=i):
            step = torch.func.grad(model.loss)(u, of(inner, i))
            return model.loss(u - 0.2 * step, of(outer, i))

        for j in range(0, model.size, 7):
            e = torch.zeros(model.size, dtype=w.dtype)
            e[j] = 1e-5
            slope = (value(w[i] + e) - value(w[i] - e)) / 2e-5
            assert float(found[i, j]) == pytest.approx(float(slope), rel=1e-7, abs=1e-9)


def test_hessian_free_converges_to_exact_and_first_order_does_not():
    model, w, *batches = setup()
    exact = MetaGradient(model, 0.3)(w, *batches)
    errors = [
        float((MetaGradient(model, 0.3, "hf", d)(w, *batches) - exact).norm())
        for d in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[1] < errors[0] / 50  # second order in the width
    assert errors[2] < 1e-6
    assert float((MetaGradient(model, 0.3, "fo")(w, *batches) - exact).norm()) > 1e-2


def test_first_order_is_the_gradient_at_the_adapted_point():
    """Per-FedAvg (FO) as PFLlib computes it: two SGD steps, the second from the adapted weights."""
    model, w, inner, outer, hess = setup()
    found = MetaGradient(model, 0.3, "fo")(w, inner, outer, hess)
    for i in range(len(w)):
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        for p, value in zip(net.parameters(), model.unflatten(w[i]).values()):
            p.data = value.clone()
        sgd = torch.optim.SGD(net.parameters(), lr=0.3)
        sgd.zero_grad()
        nn.functional.cross_entropy(net(inner[0][i]), inner[1][i]).backward()
        sgd.step()
        sgd.zero_grad()
        nn.functional.cross_entropy(net(outer[0][i]), outer[1][i]).backward()
        expected = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
        torch.testing.assert_close(found[i], expected, rtol=1e-11, atol=1e-13)


def test_alpha_zero_is_the_plain_gradient_for_every_estimator():
    model, w, inner, outer, hess = setup()
    plain = torch.stack([torch.func.grad(model.loss)(w[i], of(outer, i)) for i in range(len(w))])
    for name in ("exact", "fo", "hf"):
        found = MetaGradient(model, 0.0, name)(w, inner, outer, hess)
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("estimator", ["exact", "fo", "hf"])
def test_vectorised_equals_the_loop(dtype, error, estimator):
    model, w, *batches = setup(dtype)
    meta = MetaGradient(model, 0.2, estimator, 1e-2)
    found = meta(w, *batches)
    loop = torch.stack([meta.single(w[i], *(of(b, i) for b in batches)) for i in range(len(w))])
    slack = 100 if estimator == "hf" else 1  # the difference quotient amplifies rounding
    assert float((found - loop).abs().max()) <= error * slack


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 64])
def test_same_bits_for_any_chunk(chunk):
    model, w, *batches = setup(torch.float32)
    meta = MetaGradient(model, 0.2)
    assert torch.equal(meta(w, *batches, chunk=chunk), meta(w, *batches, chunk=5))


def test_buffers_are_refused():
    with pytest.raises(InputError, match="running_mean"):
        FlatModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_unknown_estimator():
    with pytest.raises(InputError, match="estimator = 'maml'"):
        MetaGradient(FlatModel(nn.Linear(2, 2)), 0.1, "maml")


@pytest.mark.parametrize("kind", ["cnn", "chargru"])
def test_other_models_have_exact_vectorised_gradients(kind):
    from perfeds2.models import CharGRU, SmallCNN

    g = torch.Generator().manual_seed(1)
    if kind == "cnn":
        module, x = SmallCNN(6, 3, 2), torch.randn(3, 4, 36, generator=g, dtype=torch.float64)
    else:
        module, x = CharGRU(5, 4), torch.randint(0, 5, (3, 4, 6), generator=g)
    model = FlatModel(module.double())
    y = torch.randint(0, 3, (3, 4), generator=g)
    w = model.initial() + 0.1 * torch.randn(3, model.size, generator=g, dtype=torch.float64)
    meta = MetaGradient(model, 0.2)
    found = meta(w, (x, y), (x, y), (x, y))
    for i in range(3):
        torch.testing.assert_close(found[i], meta.single(w[i], *[(x[i], y[i])] * 3))

        def value(u, i=i):
            return model.loss(u - 0.2 * torch.func.grad(model.loss)(u, (x[i], y[i])), (x[i], y[i]))

        e = torch.zeros(model.size, dtype=torch.float64)
        e[3] = 1e-5
        slope = float((value(w[i] + e) - value(w[i] - e)) / 2e-5)
        assert float(found[i, 3]) == pytest.approx(slope, rel=1e-6, abs=1e-9)
