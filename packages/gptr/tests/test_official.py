"""The published graph, against a literal float64 transcription of its description."""

import numpy as np
import pytest
import torch
from gptr.explain import official_collapse
from gptr.gestalt.official import NODES, OfficialEncoder
from gptr.model.gptr import official_inputs


def norm(x):
    return x / np.maximum(np.sqrt((x**2).sum(0, keepdims=True)), 1e-12)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attention(x, w, b, wo, bo, heads, keys=None, values=None):
    keys = x if keys is None else keys
    values = x if values is None else values
    d = x.shape[1]
    q, k, v = (
        t @ w[i * d : (i + 1) * d].T + b[i * d : (i + 1) * d]
        for i, t in enumerate((x, keys, values))
    )
    out = np.zeros_like(x)
    size = d // heads
    for h in range(heads):
        s = slice(h * size, (h + 1) * size)
        out[:, s] = softmax(q[:, s] @ k[:, s].T / np.sqrt(size), 1) @ v[:, s]
    return out @ wo.T + bo


def layer_norm(x, w, b):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * w + b


def transcription(P, X, pos, patch, canny, layers, heads, queries):
    """One image, as section 1 of the description reads."""
    lin = lambda x, n: x @ P[n + ".weight"].T + P[n + ".bias"]  # noqa: E731
    mha = lambda x, n, h, k=None, v=None: attention(  # noqa: E731
        x, P[n + ".in_proj_weight"], P[n + ".in_proj_bias"], P[n + ".out_proj.weight"],
        P[n + ".out_proj.bias"], h, k, v,
    )  # fmt: skip
    c = norm(lin(patch[:, :9], "graph.color_proj"))
    p = norm(lin(patch[:, 9:], "graph.pos_proj"))
    e = [norm(lin(canny[:, 16 * k : 16 * k + 16], "graph.canny_tdlr_proj")) for k in range(4)]
    outputs, first = [], None
    for layer in range(layers):
        S = softmax(P[f"graph.pool.{layer}"], 1)
        c = norm(S.T @ (softmax(c @ c.T, 1) @ c))
        p = norm(S.T @ (softmax(p @ p.T, 1) @ p))
        s = np.zeros(len(e[0]))
        for i in range(len(s)):
            best = []
            for a, b in ((0, 1), (2, 3)):
                M = np.stack((e[a][i], e[b][i]))
                G = softmax(M @ M.T, 1)
                best += [G[0, 1], G[1, 0]]
            s[i] = max(best)
        A = np.tile(s, (len(s), 1))
        f = norm(S.T @ (A @ np.concatenate(e, 1)))
        e = np.split(f, 4, 1)
        token = lin(f, "graph.canny_proj")
        if first is None:
            first = c + p + token
        T = np.concatenate(
            (P["graph.weight_Wco"] * c, P["graph.weight_Wpo"] * p, P["graph.weight_Wc"] * token)
        )
        T = mha(T, "graph.self_attn_0", 4)
        X = X + softmax(X @ T.T, 1) @ T
        n = f"layers.{layer}."
        X = layer_norm(
            X + mha(X + pos, n + "self_attn", heads, X + pos, X),
            P[n + "norm1.weight"],
            P[n + "norm1.bias"],
        )
        ff = lin(np.maximum(lin(X, n + "linear1"), 0), n + "linear2")
        X = layer_norm(X + ff, P[n + "norm2.weight"], P[n + "norm2.bias"])
        outputs.append(X)
    memory = layer_norm(sum(outputs), P["norm.weight"], P["norm.bias"])
    Z = np.concatenate((first, memory))
    Z = mha(Z, "self_attn", 1)[queries:]
    score = softmax(lin(Z, "proj_1")[:, 0], 0)
    return memory, Z[np.argsort(-score, kind="stable")[:queries]]


@pytest.mark.parametrize(("layers", "batch"), [(2, 1), (4, 3), (6, 2)])
def test_official_equals_the_description(layers, batch):
    torch.manual_seed(layers)
    d, heads, queries, N = 64, 4, 20, 30
    net = OfficialEncoder(d, heads, 96, layers, queries=queries).double().eval()
    g = torch.Generator().manual_seed(1)
    X, pos = (torch.randn(batch, N, d, generator=g, dtype=torch.float64) for _ in range(2))
    patch = torch.rand(batch, 196, 13, generator=g, dtype=torch.float64)
    canny = (torch.rand(batch, 196, 64, generator=g) > 0.8).double()
    with torch.no_grad():
        memory, content = net(X, pos, patch, canny)
    P = {k: v.numpy() for k, v in net.state_dict().items()}
    for b in range(batch):
        M, C = transcription(
            P,
            X[b].numpy(),
            pos[b].numpy(),
            patch[b].numpy(),
            canny[b].numpy(),
            layers,
            heads,
            queries,
        )
        assert np.abs(memory[b].numpy() - M).max() < 1e-9
        assert np.abs(content[b].numpy() - C).max() < 1e-9


def test_float32_of_full_width_stays_within_1e_5():
    torch.manual_seed(0)
    net = OfficialEncoder(256, 8, 512, 6).eval()
    g = torch.Generator().manual_seed(2)
    X, pos = (torch.randn(2, 49, 256, generator=g) for _ in range(2))
    patch, canny = torch.rand(2, 196, 13, generator=g), torch.rand(2, 196, 64, generator=g)
    with torch.no_grad():
        single = net(X, pos, patch, canny)[0]
        double = net.double()(X.double(), pos.double(), patch.double(), canny.double())[0]
    assert (single - double).abs().max() < 1e-5


def test_scorer_gets_no_gradient():
    """Known fault 6 of the published code, kept by this mode."""
    net = OfficialEncoder(32, 4, 32, 2, queries=5)
    memory, content = net(
        torch.randn(1, 9, 32), torch.randn(1, 9, 32), torch.rand(1, 196, 13), torch.rand(1, 196, 64)
    )
    (memory.sum() + content.sum()).backward()
    assert net.proj_1.weight.grad is None


def test_it_collapses_on_a_drawing(drawing):
    assert max(official_collapse([drawing]).values()) < 1e-3


def test_inputs_have_the_described_layout(drawing):
    patch, canny = official_inputs([drawing])
    assert patch.shape == (1, NODES[0], 13)
    assert canny.shape == (1, NODES[0], 64)
    assert torch.allclose(patch[0, 0, 9:], torch.tensor([0, 0, 1 / 14, 1 / 14]))


def test_depth_is_checked():
    with pytest.raises(ValueError, match="layers=7"):
        OfficialEncoder(layers=7)
