"""Baselines and servers against their defining equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from perfeds2 import ExperimentConfig, InputError, Simulation
from perfeds2.config import MethodConfig, ServerConfig
from perfeds2.methods import ClientMethod
from perfeds2.objective import FlatModel
from perfeds2.server import VersionStore, aggregate, staleness_weights
from torch import nn


@pytest.fixture
def setting():
    g = torch.Generator().manual_seed(0)
    model = FlatModel(nn.Linear(3, 2).double())
    w = torch.randn(2, model.size, generator=g, dtype=torch.float64)
    s = torch.randn(2, model.size, generator=g, dtype=torch.float64)

    def draw():
        x = torch.randn(2, 3, 5, 3, generator=g, dtype=torch.float64)
        return x, torch.randint(0, 2, (2, 3, 5), generator=g)

    return model, w, s, (draw(), draw(), draw())


def gradient(model, w, batch, i, t):
    return torch.func.grad(model.loss)(w, (batch[0][i, t], batch[1][i, t]))


def run(model, w, s, batches, **settings):
    method = ClientMethod(model, MethodConfig(**settings))
    state = s if method.personal else s[:, :0]
    return method, *method.updates(w, state, *batches)


def test_fedavg_accumulates_local_steps(setting):
    model, w, s, batches = setting
    _, g, _ = run(model, w, s, batches, name="fedavg", local_steps=3, local_step=0.2)
    v = w[1].clone()
    for t in range(3):
        v = v - 0.2 * gradient(model, v, batches[1], 1, t)
    torch.testing.assert_close(g[1], (w[1] - v) / 0.2)


def test_fedprox_pulls_back_to_the_received_weights(setting):
    model, w, s, batches = setting
    _, g, _ = run(model, w, s, batches, name="fedprox", local_steps=2, local_step=0.2, proximal=0.7)
    v = w[0] - 0.2 * gradient(model, w[0], batches[1], 0, 0)
    v2 = v - 0.2 * (gradient(model, v, batches[1], 0, 1) + 0.7 * (v - w[0]))
    torch.testing.assert_close(g[0], (w[0] - v2) / 0.2)


def test_pfedme_uploads_the_moreau_gradient(setting):
    """At the prox, grad f(theta) + lambda (theta - w) = 0, and g is lambda (w - theta)."""
    model, w, s, batches = setting
    one = (batches[0][0][:, :1].repeat(1, 400, 1, 1), batches[0][1][:, :1].repeat(1, 400, 1))
    method = ClientMethod(
        model, MethodConfig(name="pfedme", alpha=0.1, proximal=2.0, local_steps=400)
    )
    g, _ = method.updates(w, s[:, :0], one, one, one)
    theta = w[0] - g[0] / 2.0
    stationary = gradient(model, theta, one, 0, 0) + 2.0 * (theta - w[0])
    assert float(stationary.abs().max()) < 1e-10


def test_ditto_and_apfl_move_their_personal_models(setting):
    model, w, s, batches = setting
    _, g, mine = run(model, w, s, batches, name="ditto", local_step=0.2, proximal=0.5)
    torch.testing.assert_close(g[0], gradient(model, w[0], batches[1], 0, 0))
    pull = gradient(model, s[0], batches[0], 0, 0) + 0.5 * (s[0] - w[0])
    torch.testing.assert_close(mine[0], s[0] - 0.2 * pull)
    _, _, mine = run(model, w, s, batches, name="apfl", local_step=0.2, mix=0.25)
    mixed = 0.25 * s[0] + 0.75 * w[0]
    torch.testing.assert_close(
        mine[0], s[0] - 0.2 * 0.25 * gradient(model, mixed, batches[0], 0, 0)
    )


def test_fedrep_shares_the_body_and_keeps_the_head():
    model = FlatModel(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    method = ClientMethod(model, MethodConfig(name="fedrep"))
    assert int(method.head_mask.sum()) == 4 * 2 + 2
    w = torch.randn(1, model.size, dtype=torch.float64)
    x = torch.randn(1, 1, 5, 3, dtype=torch.float64)
    batch = (x, torch.zeros(1, 1, 5, dtype=torch.long))
    g, mine = method.updates(w, w.clone(), batch, batch, batch)
    assert (g[0][method.head_mask] == 0).all()
    assert (mine[0][~method.head_mask] == w[0][~method.head_mask]).all()
    assert (mine[0][method.head_mask] != w[0][method.head_mask]).any()


@pytest.mark.parametrize(
    "name", ["perfedavg", "fedavg", "fedprox", "pfedme", "ditto", "apfl", "fedrep"]
)
@pytest.mark.parametrize("participants", [20, 6, 1])
def test_every_method_learns_in_every_form(name, participants):
    config = ExperimentConfig.from_dict(
        {
            "model": {"kind": "mlp", "hidden": 16},
            "method": {"name": name, "local_steps": 2, "proximal": 1.0, "local_step": 0.5},
            "schedule": {"participants": participants},
            "server": {"step": 0.5 if participants > 1 else 0.1},
            "train": {"rounds": 20 if participants > 1 else 60, "eval_every": 20},
        }
    )
    result = Simulation(config).run()
    assert result.loss[-1] < result.loss[0]
    assert result.accuracy[-1] > 0.4


class TestServer:
    def test_average_in_closed_form(self):
        w, g = torch.zeros(2), torch.tensor([[1.0, 0.0], [3.0, 2.0]])
        new = aggregate(w, g, g, np.array([0, 1]), np.array([5, 5]), ServerConfig(step=0.5))
        assert new.tolist() == [-1.0, -0.5]

    def test_data_weights_and_staleness_weights(self):
        w, g = torch.zeros(1), torch.ones(2, 1)
        config = ServerConfig(step=1.0, data_weighted=True)
        new = aggregate(w, g, g, np.array([0, 0]), np.array([1, 3]), config)
        assert new.tolist() == [-1.0]
        config = ServerConfig(step=1.0, staleness_weight="polynomial", weight_exponent=1.0)
        new = aggregate(w, g, g, np.array([0, 1]), np.array([1, 1]), config)
        assert new.tolist() == [-0.75]

    def test_fedasync_mixes_the_models(self):
        w, sent, g = torch.zeros(1), torch.tensor([[4.0]]), torch.tensor([[1.0]])
        config = ServerConfig(rule="fedasync", step=0.5)
        assert aggregate(w, sent, g, np.array([0]), np.array([1]), config).tolist() == [1.5]

    def test_weights_of_the_papers(self):
        tau = np.array([0, 1, 4, 5, 8])
        hinge = ServerConfig(staleness_weight="hinge", weight_exponent=10.0, hinge_from=4.0)
        np.testing.assert_allclose(staleness_weights(tau, hinge), [1, 1, 1, 1 / 11, 1 / 41])
        buff = ServerConfig(staleness_weight="fedbuff")
        np.testing.assert_allclose(staleness_weights(tau, buff), 1 / np.sqrt(1 + tau))

    def test_no_updates(self):
        with pytest.raises(InputError, match="updates"):
            aggregate(torch.zeros(1), torch.zeros(0, 1), torch.zeros(0, 1), np.zeros(0),
                      np.zeros(0), ServerConfig())  # fmt: skip

    def test_store_forgets(self):
        store = VersionStore()
        for k in range(5):
            store.put(k, torch.full((1,), float(k)))
        assert store.stack(np.array([3, 3, 1])).tolist() == [[3.0], [3.0], [1.0]]
        store.evict(lambda v: v > 3)
        assert len(store) == 1
