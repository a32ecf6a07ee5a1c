"""Oracle: scaled_dot_product_attention in float64 with a boolean mask, and its gradients."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_mask
from vitcod import InputError, LayerPlan, native, sparse_attention
from vitcod.layout import CostModel
from vitcod.ops import _attention

SETS = [
    name
    for name in ("avx512", "avx2", "portable")
    if native._native is not None and native._native.instructions(name)
]
SHAPES = [  # batch, heads, queries, keys, dim, value dim
    (2, 3, 197, 197, 64, 64),
    (1, 2, 33, 50, 20, 24),
    (2, 2, 49, 196, 16, 32),
    (1, 1, 5, 7, 3, 1),
    (1, 2, 40, 40, 80, 96),
    (1, 2, 17, 17, 32, 64),
]


@pytest.fixture(params=[*SETS, "torch"])
def instructions(request, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, request.param)
    return request.param


def expected(q, k, v, keep, bias=None, scale=None):
    zero = torch.zeros(keep.shape, dtype=torch.float64)
    added = zero.masked_fill(~torch.from_numpy(keep), -torch.inf)[None]
    if bias is not None:
        added = added + bias
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)


def tensors(batch, heads, queries, keys, dim, value_dim):
    shapes = ((queries, dim), (keys, dim), (keys, value_dim))
    return [torch.randn(batch, heads, *s, requires_grad=True) for s in shapes]


@pytest.mark.native
@pytest.mark.parametrize("kind", ["csr", "lanes"])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.95])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients(instructions, shape, density, kind):
    keep = random_mask(*shape[1:4], density)
    plan = LayerPlan.from_mask(keep)
    if instructions != "torch":
        plan._cache["native"] = plan.native_layout(CostModel(), [kind] * shape[1])
    q, k, v = tensors(*shape)
    out = sparse_attention(q, k, v, plan)
    weight = torch.randn_like(out)
    out.backward(weight)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    reference = expected(*doubles, keep)
    reference.backward(weight.double())
    assert (out - reference).abs().max() <= 2e-6
    for x, y in zip((q, k, v), doubles):
        assert (x.grad - y.grad).abs().max() <= 5e-6
    with torch.no_grad():  # the direct path
        assert (sparse_attention(q, k, v, plan) - reference).abs().max() <= 2e-6


@pytest.mark.native
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 20, 30), (1, 3, 1, 30), (2, 1, 20, 1)])
def test_bias_and_its_gradient(instructions, shape):
    keep = random_mask(3, 20, 30, 0.3)
    order = np.stack([np.random.default_rng(h).permutation(20) for h in range(3)])
    plan = LayerPlan(LayerPlan.from_mask(keep).keep, order.astype(np.int32))
    q, k, v = tensors(2, 3, 20, 30, 16, 16)
    bias = torch.randn(shape, requires_grad=True)
    sparse_attention(q, k, v, plan, bias=bias).square().sum().backward()
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v, bias)]
    expected(*doubles[:3], keep, doubles[3]).square().sum().backward()
    for x, y in zip((q, k, v, bias), doubles):
        assert (x.grad - y.grad).abs().max() <= 2e-5


@pytest.mark.native
@pytest.mark.parametrize("block", [16, 64])
def test_column_blocks(instructions, block):
    if instructions == "torch":
        pytest.skip("blocks belong to the compiled kernels")
    keep = random_mask(2, 150, 400, 0.6)
    keep[0, 3] = False
    keep[0, 3, 399] = True  # a row whose first blocks are empty
    plan = LayerPlan.from_mask(keep)
    plan._cache["native"] = plan.native_layout(CostModel(block=block), ["csr", "csr"])
    q, k, v = (x.detach() for x in tensors(1, 2, 150, 400, 64, 48))
    reference = expected(q.double(), k.double(), v.double(), keep)
    assert (sparse_attention(q, k, v, plan) - reference).abs().max() <= 2e-6


@pytest.mark.native
def test_strided_views_of_a_fused_projection(instructions):
    for heads in (3, 12):
        keep = random_mask(heads, 197, 197, 0.1)
        qkv = torch.randn(2, 197, 3, heads, 64)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = sparse_attention(q, k, v, LayerPlan.from_mask(keep))
        assert (out - expected(q.double(), k.double(), v.double(), keep)).abs().max() <= 2e-6
        assert out.transpose(1, 2).is_contiguous()


@pytest.mark.native
@pytest.mark.parametrize("kind", ["csr", "lanes"])
def test_one_key_gives_its_value_exactly(instructions, kind):
    keep = np.zeros((2, 40, 40), bool)
    chosen = np.random.default_rng(0).integers(40, size=(2, 40))
    np.put_along_axis(keep, chosen[..., None], True, 2)
    plan = LayerPlan.from_mask(keep)
    if instructions != "torch":
        plan._cache["native"] = plan.native_layout(CostModel(), [kind] * 2)
    q, k, v = (x.detach() for x in tensors(1, 2, 40, 40, 32, 32))
    out = sparse_attention(q, k, v, plan)
    for h in range(2):
        assert torch.equal(out[0, h], v[0, h, chosen[h]])


@pytest.mark.native
@pytest.mark.parametrize("kind", ["csr", "lanes"])
def test_large_logits_stay_finite(instructions, kind):
    keep = random_mask(1, 64, 64, 0.4)
    plan = LayerPlan.from_mask(keep)
    if instructions != "torch":
        plan._cache["native"] = plan.native_layout(CostModel(), [kind])
    q, k, v = tensors(1, 1, 64, 64, 16, 16)
    out = sparse_attention(q, k, v, plan, scale=1e4)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.native
def test_permutation_equivariance(instructions):
    keep = random_mask(2, 60, 60, 0.2)
    p = torch.randperm(60)
    q, k, v = (x.detach() for x in tensors(1, 2, 60, 60, 64, 64))
    out = sparse_attention(q, k, v, LayerPlan.from_mask(keep))
    moved = keep[:, p.numpy()][:, :, p.numpy()]
    again = sparse_attention(q[:, :, p], k[:, :, p], v[:, :, p], LayerPlan.from_mask(moved))
    assert (again - out[:, :, p]).abs().max() < 2e-6


@pytest.mark.native
def test_masked_keys_change_no_bit(instructions):
    if instructions == "torch":
        pytest.skip("the masked product of the fallback sums in another order")
    keep = random_mask(2, 60, 60, 0.2)
    q, k, v = (x.detach() for x in tensors(1, 2, 60, 60, 64, 64))
    out = sparse_attention(q, k, v, LayerPlan.from_mask(keep))
    wide = np.concatenate([keep, np.zeros((2, 60, 9), bool)], 2)
    more = torch.full((1, 2, 9, 64), 1e30)
    k2, v2 = torch.cat([k, more], 2), torch.cat([v, more], 2)
    assert torch.equal(sparse_attention(q, k2, v2, LayerPlan.from_mask(wide)), out)


@pytest.mark.native
def test_density_one_is_dense_attention():
    q, k, v = (x.detach() for x in tensors(1, 2, 30, 30, 64, 64))
    plan = LayerPlan.from_mask(np.ones((2, 30, 30), bool))
    assert torch.equal(sparse_attention(q, k, v, plan), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.native
def test_heads_of_half_a_percent_and_all_in_one_layer(instructions):
    keep = np.zeros((2, 200, 200), bool)
    keep[0, :, 7] = True
    keep[1] = True
    q, k, v = (x.detach() for x in tensors(1, 2, 200, 200, 64, 64))
    out = sparse_attention(q, k, v, LayerPlan.from_mask(keep))
    assert (out - expected(q.double(), k.double(), v.double(), keep)).abs().max() <= 2e-6


@pytest.mark.native
def test_threads_do_not_change_a_bit(instructions):
    keep = random_mask(3, 197, 197, 0.1)
    q, k, v = (x.detach() for x in tensors(2, 3, 197, 197, 64, 64))
    plan, before = LayerPlan.from_mask(keep), torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(sparse_attention(q, k, v, plan))
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.native
def test_a_row_whose_bias_masks_every_key_is_zero(instructions):
    keep = random_mask(1, 6, 6, 0.5)
    q, k, v = tensors(1, 1, 6, 6, 16, 16)
    bias = torch.zeros(1, 1, 6, 6)
    bias[..., 2, :] = -torch.inf
    out = sparse_attention(q, k, v, LayerPlan.from_mask(keep), bias=bias)
    out.sum().backward()
    assert torch.equal(out[0, 0, 2], torch.zeros(16))
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.native
@pytest.mark.parametrize("kind", ["csr", "lanes"])
def test_nan_reaches_the_output(instructions, kind):
    plan = LayerPlan.from_mask(np.tri(20, dtype=bool)[None])
    if instructions != "torch":
        plan._cache["native"] = plan.native_layout(CostModel(), [kind])
    q, k, v = (x.detach() for x in tensors(1, 1, 20, 20, 16, 16))
    v[0, 0, 5] = torch.nan
    out = sparse_attention(q, k, v, plan)
    assert out[0, 0, 5:].isnan().all()
    if kind == "csr" and instructions != "torch":  # the others multiply masked slots by zero
        assert not out[0, 0, :5].isnan().any()


@pytest.mark.native
@pytest.mark.parametrize("kind", ["csr", "lanes"])
@pytest.mark.parametrize("block", [0, 16])
def test_nan_of_queries_and_keys_reaches_the_output(instructions, kind, block):
    keep = random_mask(1, 20, 40, 0.4)
    keep[:, :, 0] = True
    plan = LayerPlan.from_mask(keep)
    if instructions != "torch":
        model = CostModel(block=block)
        plan._cache["native"] = plan.native_layout(model, [kind])
    q, k, v = (x.detach() for x in tensors(1, 1, 20, 40, 16, 16))
    bad = q.clone()
    bad[0, 0, 3, 2] = torch.nan
    out = sparse_attention(bad, k, v, plan)[0, 0]
    assert out[3].isnan().all()
    assert out[[0, 1, 2, 4]].isfinite().all()
    bad = k.clone()
    bad[0, 0, 0, 2] = torch.nan
    assert sparse_attention(q, bad, v, plan).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_single(instructions, dtype):
    keep = random_mask(2, 50, 50, 0.2)
    plan = LayerPlan.from_mask(keep)
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors(1, 2, 50, 50, 32, 32))
    out = sparse_attention(q, k, v, plan)
    out.sum().backward()
    assert out.dtype == q.grad.dtype == dtype
    reference = expected(q.double(), k.double(), v.double(), keep)
    assert (out - reference).abs().max() < 4 * torch.finfo(dtype).eps


def test_batch_of_zero(instructions):
    q, k, v = (x.detach() for x in tensors(0, 2, 5, 5, 8, 8))
    out = sparse_attention(q, k, v, LayerPlan.from_mask(random_mask(2, 5, 5, 0.5)))
    assert out.shape == (0, 2, 5, 8)


@pytest.mark.native
@pytest.mark.parametrize("with_bias", [False, True])
def test_operator_registrations(with_bias):
    plan = LayerPlan.from_mask(random_mask(2, 9, 9, 0.5))
    q, k, v = tensors(1, 2, 9, 9, 16, 16)
    bias = torch.randn(1, 2, 9, 9, requires_grad=True) if with_bias else None
    torch.library.opcheck(_attention, (q, k, v, bias, plan.number, 0.25))


def test_gradcheck_in_double():
    plan = LayerPlan.from_mask(random_mask(2, 5, 6, 0.5))
    q, k, v = (x.detach().double().requires_grad_() for x in tensors(1, 2, 5, 6, 4, 3))
    bias = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: sparse_attention(*x[:3], plan, bias=x[3]), (q, k, v, bias)
    )


def test_compiles_without_a_graph_break():
    plan = LayerPlan.from_mask(random_mask(2, 9, 9, 0.5))
    q, k, v = (x.detach() for x in tensors(1, 2, 9, 9, 16, 16))
    compiled = torch.compile(
        lambda *x: sparse_attention(*x, plan) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.allclose(compiled(q, k, v), sparse_attention(q, k, v, plan) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (1, 2, 6, 8)}, r"plan made for 5 queries and 5 keys, got 6.*plan.resize"),
        ({"q": (1, 3, 5, 8)}, "q has 3.*the plan 2"),
        ({"q": (2, 5, 8)}, "q has shape"),
        ({"k": (2, 2, 5, 8)}, "batches differ"),
        ({"k": (1, 2, 5, 4)}, "q has 8 channels and k 4"),
        ({"v": (1, 2, 5, 2000)}, "v has head dimension 2000: 1 to 1024"),
        ({"v": (1, 2, 5, 0)}, "v has head dimension 0"),
        ({"bias": (1, 2, 5, 3)}, "bias is"),
    ],
)
def test_bad_shapes_are_named(change, message):
    plan = LayerPlan.from_mask(random_mask(2, 5, 5, 0.5))
    shapes = {"q": (1, 2, 5, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 8), **change}
    x = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(InputError, match=message):
        sparse_attention(x["q"], x["k"], x["v"], plan, bias=x.get("bias"))


def test_integers_are_refused():
    x = torch.zeros(1, 1, 3, 8, dtype=torch.int32)
    with pytest.raises(InputError, match="float32"):
        sparse_attention(x, x, x, LayerPlan.from_mask(np.ones((1, 3, 3), bool)))


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "sse9")
    with pytest.raises(InputError, match=r"VITCOD_INSTRUCTIONS='sse9'.*avx512"):
        native.instruction_set()


def test_works_without_the_compiled_part_and_says_so_once():
    code = (
        "import sys; sys.modules['vitcod._native'] = None\n"
        "import numpy as np, torch, vitcod\n"
        "x = torch.ones(1, 1, 4, 8)\n"
        "p = vitcod.LayerPlan.from_mask(np.eye(4, dtype=bool))\n"
        "for _ in range(3): assert torch.equal(vitcod.sparse_attention(x, x, x, p), x)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != native.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("runs without its compiled part") == 1


@pytest.mark.native
@pytest.mark.skipif(native._native is None, reason="no compiled part")
def test_a_layout_refuses_arrays_that_do_not_fit():
    def build(ptr, idx, order):
        arrays = np.array(ptr, np.int64), np.array(idx, np.int32), np.array(order, np.int32)
        return native.make_layout(1, 2, 2, *arrays, np.zeros(1, np.int32), 0)

    build([0, 1, 2], [0, 1], [0, 1])
    for bad in (
        ([0, 1, 2], [0, 2], [0, 1]),
        ([0, 1, 3], [0, 1], [0, 1]),
        ([0, 1, 2], [0, 1], [0, 0]),
        ([0, 2, 2], [1, 0], [0, 1]),
        ([0, 1], [0, 1], [0, 1]),
    ):
        with pytest.raises(ValueError):
            build(*bad)
