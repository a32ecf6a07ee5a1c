"""The operators against float64, integers, and AdderNet's definition of their gradients."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nasa._native_loader import available
from nasa.functional import (
    adder_conv2d,
    conv2d_int8,
    fixed_point,
    quantize_power_of_two,
    sad_conv2d,
    shift_conv2d,
)
from torch.library import opcheck
from torch.nn import functional as F

pytestmark = pytest.mark.native
KERNELS = available()


def patches(x, kernel, stride, padding, dilation, groups):
    columns = F.unfold(x, kernel, dilation, padding, stride)
    return columns.view(x.shape[0], groups, -1, columns.shape[-1])


def reference(x, w, stride, padding, dilation, groups):
    """-sum |x - w| by unfolding; differentiable by autograd through the surrogates below."""
    u = patches(x, w.shape[2:], stride, padding, dilation, groups)
    v = w.reshape(1, groups, w.shape[0] // groups, -1, 1)
    return u[:, :, None], v


def adder_reference(x, w, stride, padding, dilation, groups):
    u, v = reference(x.double(), w.double(), stride, padding, dilation, groups)
    y = -(u - v).abs().sum(3)
    height = (x.shape[2] + 2 * padding - dilation * (w.shape[2] - 1) - 1) // stride + 1
    return y.reshape(x.shape[0], w.shape[0], height, -1)


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_group = draw(st.integers(1, 5))
    filters = groups * draw(st.integers(1, 9))
    if draw(st.booleans()) and draw(st.booleans()):  # depthwise
        groups, per_group = per_group * groups, 1
        filters = groups * draw(st.integers(1, 2))
    kernel = draw(st.integers(1, 5))
    dilation = draw(st.integers(1, 2))
    padding = draw(st.integers(0, 4))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    height, width = (draw(st.integers(least, least + 20)) for _ in range(2))
    stride = draw(st.integers(1, 3))
    batch = draw(st.integers(1, 3))
    x = (batch, groups * per_group, height, width)
    return x, (filters, per_group, kernel, kernel), stride, padding, dilation, groups


def check_case(case, seed, isa, monkeypatch):
    monkeypatch.setenv("NASA_ISA", isa)
    shape_x, shape_w, *geometry = case
    source = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(s, generator=source) for s in (shape_x, shape_w))
    truth = adder_reference(x, w, *geometry)
    scale = truth.abs().max().clamp_min(1)
    for exact in (False, True):
        assert (adder_conv2d(x, w, *geometry, exact=exact) - truth).abs().max() <= 3e-6 * scale
    # AdderNet's gradients are the true gradients of these two functions at the same point:
    # d/dx of -huber(x - w) is clamp(w - x, -1, 1), d/dw of -(x - w)^2 / 2 is x - w.
    grad = torch.randn(truth.shape, generator=source)
    xd, wd = x.double().requires_grad_(), w.double().requires_grad_()
    u, v = reference(xd, wd, *geometry)
    g = grad.double().reshape(x.shape[0], geometry[3], -1, 1, u.shape[-1])
    huber = F.huber_loss(u.expand_as(u - v), v.expand_as(u - v), reduction="none", delta=1.0)
    (gx,) = torch.autograd.grad((-huber * g).sum(), xd, retain_graph=True)
    (gw,) = torch.autograd.grad((-0.5 * (u - v) ** 2 * g).sum(), wd)
    xf, wf = x.clone().requires_grad_(), w.clone().requires_grad_()
    adder_conv2d(xf, wf, *geometry).backward(grad)
    assert (xf.grad - gx).abs().max() <= 1e-5 * gx.abs().max().clamp_min(1)
    assert (wf.grad - gw).abs().max() <= 1e-5 * gw.abs().max().clamp_min(1)
    xi = torch.randint(-128, 128, shape_x, generator=source, dtype=torch.int8)
    wi = torch.randint(-128, 128, shape_w, generator=source, dtype=torch.int8)
    assert torch.equal(sad_conv2d(xi, wi, *geometry).double(), adder_reference(xi, wi, *geometry))
    products = F.conv2d(xi.double(), wi.double(), None, *geometry)
    assert torch.equal(conv2d_int8(xi, wi, *geometry).double(), products)


@pytest.mark.parametrize("isa", KERNELS)
@given(case=convolutions(), seed=st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_every_kernel_equals_the_references(isa, case, seed):
    with pytest.MonkeyPatch.context() as patch:
        check_case(case, seed, isa, patch)


@pytest.mark.stress
@pytest.mark.parametrize("isa", KERNELS)
@given(case=convolutions(), seed=st.integers(0, 2**20))
@settings(max_examples=3000, deadline=None)
def test_every_kernel_equals_the_references_many_times(isa, case, seed):
    with pytest.MonkeyPatch.context() as patch:
        check_case(case, seed, isa, patch)


def test_result_does_not_depend_on_the_number_of_threads():
    x, w = torch.randn(4, 32, 15, 15), torch.randn(24, 32, 3, 3)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        xg = x.clone().requires_grad_()
        y = adder_conv2d(xg, w, 2, 1)
        y.sum().backward()
        found.append((y.detach(), xg.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, found[0][0]) and torch.equal(b, found[0][1]) for a, b in found)


def test_equals_cdist_in_float64():
    x, w = torch.randn(2, 6, 5, 5), torch.randn(7, 6, 1, 1)
    rows = x.double().permute(0, 2, 3, 1).reshape(-1, 6)
    truth = -torch.cdist(rows, w.double().view(7, 6), p=1).view(2, 5, 5, 7).permute(0, 3, 1, 2)
    assert torch.allclose(adder_conv2d(x, w).double(), truth, atol=1e-5)


def test_shift_invariance_and_sign():
    """f(x + c, w + c) = f(x, w), and -y is a sum of magnitudes."""
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    y = adder_conv2d(x, w, exact=True)
    assert torch.allclose(adder_conv2d(x + 2, w + 2, exact=True), y, atol=1e-4)
    assert (y <= 0).all()


def test_permuting_input_channels_of_both_changes_nothing():
    x, w = torch.randn(1, 5, 6, 6), torch.randn(4, 5, 3, 3)
    order = torch.randperm(5)
    same = adder_conv2d(x[:, order], w[:, order], exact=True)
    assert torch.allclose(same, adder_conv2d(x, w, exact=True), atol=1e-5)


def test_exact_form_keeps_small_differences_of_large_numbers():
    x, w = torch.full((1, 64, 1, 1), 4096.0), torch.full((1, 64, 1, 1), 4096.001)
    truth = float(adder_reference(x, w, 1, 0, 1, 1))
    assert abs(adder_conv2d(x, w, exact=True).item() - truth) < 1e-6


@pytest.mark.parametrize(
    "name", ["adder_conv2d", "adder_conv2d_grad_input", "adder_conv2d_grad_weight"]
)
def test_opcheck(name):
    x = torch.randn(2, 4, 8, 8, requires_grad=name == "adder_conv2d")
    w = torch.randn(6, 2, 3, 3, requires_grad=name == "adder_conv2d")
    geometry = ([2, 2], [1, 1], [1, 1], 2)
    arguments = (x, w, *geometry, False)
    if name != "adder_conv2d":
        arguments = (torch.randn(2, 6, 4, 4), x, w, *geometry)
    opcheck(getattr(torch.ops.nasa, name).default, arguments)


@pytest.mark.parametrize("name", ["sad_conv2d", "conv2d_int8"])
def test_opcheck_integers(name):
    x = torch.randint(-128, 128, (2, 4, 8, 8), dtype=torch.int8)
    w = torch.randint(-128, 128, (6, 2, 3, 3), dtype=torch.int8)
    opcheck(getattr(torch.ops.nasa, name).default, (x, w, [2, 2], [1, 1], [1, 1], 2))


def test_gradcheck_of_the_quantisers_on_their_straight_through_form():
    """The straight-through estimators have the identity as gradient."""
    w = torch.randn(20, dtype=torch.float64, requires_grad=True)
    for function in (quantize_power_of_two, fixed_point):
        (gradient,) = torch.autograd.grad((function(w) * torch.arange(20)).sum(), w)
        assert torch.equal(gradient, torch.arange(20, dtype=torch.float64))


def test_compiles_without_graph_breaks():
    from nasa.nn import AdderConv2d

    layer, x = AdderConv2d(4, 6, 3), torch.randn(2, 4, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_power_of_two_equals_a_convolution_with_those_weights():
    x, w = torch.randn(2, 3, 7, 7), torch.randn(4, 3, 3, 3)
    powers = torch.sign(w) * 2.0 ** torch.log2(w.abs().clamp(2.0**-31, 1)).round()
    truth = F.conv2d(x.double(), powers.double(), None, 2, 1)
    assert torch.allclose(shift_conv2d(x, w, 2, 1, quantize_input=False).double(), truth, atol=1e-5)


def test_exponents_are_clamped_without_touching_the_parameter():
    w = torch.tensor([3.0, 1e-12, -0.0, -0.7])
    before = w.clone()
    assert quantize_power_of_two(w, 4).tolist() == [1.0, 2.0**-7, 0.0, -0.5]
    assert torch.equal(w, before)


def test_stochastic_rounding_is_unbiased_in_the_exponent():
    w = torch.full((20000,), 2.0**-2.25)
    source = torch.Generator().manual_seed(0)
    exponents = torch.log2(quantize_power_of_two(w, stochastic=True, generator=source))
    assert set(exponents.tolist()) == {-3.0, -2.0}
    assert abs(exponents.mean().item() + 2.25) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 0}, "stride=0"),
        ({"padding": -1}, "padding=-1"),
        ({"groups": 2}, "groups=2"),
        ({"dilation": 9}, "smaller than the kernel"),
    ],
)
def test_bad_geometry_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        adder_conv2d(torch.zeros(1, 3, 6, 6), torch.zeros(4, 3, 3, 3), **arguments)


def test_mixed_types_are_refused():
    with pytest.raises(TypeError, match="same floating type"):
        adder_conv2d(torch.zeros(1, 3, 6, 6), torch.zeros(4, 3, 3, 3).double())
    with pytest.raises(TypeError, match=r"int8"):
        sad_conv2d(torch.zeros(1, 3, 6, 6), torch.zeros(4, 3, 3, 3))


def test_missing_extension_warns_once_and_computes_the_same():
    code = """
import sys, warnings
sys.modules["nasa._native"] = None
import torch
from nasa.functional import adder_conv2d
x, w = torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    values = [adder_conv2d(x, w).item() for _ in range(3)]
print(values, len([s for s in seen if "compiled kernels are absent" in str(s.message)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[-18.0, -18.0, -18.0] 1"


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("NASA_ISA", "sse9")
    with pytest.raises(ValueError, match="NASA_ISA='sse9'"):
        adder_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))


def test_the_ceiling_probe_counts_what_it_accumulates(monkeypatch):
    from nasa._native_loader import native
    from nasa.checks import FORMULAS, instruction_ceilings, pointwise_shares

    module = native()
    widths = {"avx512": 16, "avx2": 8, "portable": 0}  # floats per register; portable has no probe
    for name in module.available():
        for formula in range(len(FORMULAS)):
            assert module.probe(formula, 7, name) == 7 * 10 * widths[name]
    with pytest.raises(ValueError, match="'portable': allowed are avx512 and avx2"):
        instruction_ceilings("portable")
    if module.isa() == "portable":
        return
    assert tuple(instruction_ceilings(repeats=1)) == FORMULAS
    rows = pointwise_shares(batch=1, repeats=1, rounds=1)
    assert [row["layer"] for row in rows] == [
        "64,384,1x1/1,16", "384,64,1x1/1,16", "112,672,1x1/1,8",
    ]  # fmt: skip
    assert all(row["share"] > 0 and row["operator share"] > 0 for row in rows)
    monkeypatch.setenv("NASA_ISA", "torch")
    with pytest.raises(ValueError, match="absent"):
        instruction_ceilings()
