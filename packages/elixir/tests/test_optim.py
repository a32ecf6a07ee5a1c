"""Oracle: AdamW in float64; torch's casts; every instruction set gives the same bits."""

import math
import os

import elixir
import pytest
import torch
from elixir._native_loader import available, native
from elixir.optim import AdamW, adamw8_, adamw_, square_sum
from elixir.optim.kernels import dequantize, quantize_
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.native
SETS = available()


def reference(p, grads, lr, betas, eps, wd, scale=1.0):
    """Decoupled AdamW in float64 (torch's semantics)."""
    p = p.double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        g = g.double() * scale
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        d = v.sqrt() / math.sqrt(1 - betas[1] ** t) + eps
        p = p * (1 - lr * wd) - lr / (1 - betas[0] ** t) * m / d
    return p


@pytest.fixture(params=SETS)
def isa(request, monkeypatch):
    monkeypatch.setenv("ELIXIR_ISA", request.param)
    return request.param


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 5000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 99),
)
def test_error_against_float64_is_torchs(n, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    p0 = torch.randn(n, generator=g)
    grads = [
        (torch.randn(n, generator=g) * 10 ** torch.empty(n).uniform_(-4, 0, generator=g)).to(dtype)
        for _ in range(8)
    ]
    truth = reference(p0, grads, 1e-2, (0.9, 0.999), 1e-8, 0.1)
    p, m, v = p0.clone(), torch.zeros(n), torch.zeros(n)
    for t, gradient in enumerate(grads, start=1):
        adamw_(p, m, v, gradient, lr=1e-2, weight_decay=0.1, step=t)
    theirs = torch.nn.Parameter(p0.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, fused=True)
    for gradient in grads:
        theirs.grad = gradient.float()
        optimizer.step()
    error = (p.double() - truth).abs().max()
    assert error <= 1.5 * (theirs.detach().double() - truth).abs().max() + 1e-7


def test_instruction_sets_agree_to_the_bit(monkeypatch):
    results = []
    for name in SETS[:-1]:  # the last one is torch, which is not compiled from the same loop
        monkeypatch.setenv("ELIXIR_ISA", name)
        torch.manual_seed(0)
        n = 70_001
        p, m, v = torch.randn(n), torch.zeros(n), torch.zeros(n)
        low = torch.zeros(n, dtype=torch.bfloat16)
        m8, v8 = torch.zeros(n, dtype=torch.int8), torch.zeros(n, dtype=torch.uint8)
        scales = (torch.zeros(-(-n // 2048)), torch.zeros(-(-n // 2048)))
        q = p.clone()
        for t in range(1, 4):
            g = torch.randn(n).bfloat16()
            adamw_(p, m, v, g, low, lr=1e-2, step=t, scale=0.5)
            adamw8_(q, m8, v8, scales, g, lr=1e-2, step=t)
        results.append([p, m, v, low, q, m8, v8, *scales, torch.tensor(square_sum(p)[0])])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


def test_position_and_threads_never_change_a_result():
    torch.manual_seed(0)
    n = 100_003
    p, g = torch.randn(n + 7), torch.randn(n + 7)
    outs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        a, m, v = p[:n].clone(), torch.zeros(n), torch.zeros(n)
        adamw_(a, m, v, g[:n].clone(), lr=1e-2, step=1)
        outs.append(a)
    torch.set_num_threads(1)
    assert torch.equal(outs[0], outs[1])
    for begin in (1, 3, 17):
        a, m, v = p[:n].clone(), torch.zeros(n), torch.zeros(n)
        adamw_(a[begin:], m[begin:], v[begin:], g[begin:n].clone(), lr=1e-2, step=1)
        assert torch.equal(a[begin:], outs[0][begin:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_equals_torchs_casts(isa, dtype):
    values = torch.tensor(
        [0.0, -0.0, 1e-8, 6e-8, 2.98e-8, 1e-5, 65504.0, 65519.0, 65520.0, 1e6, -1.5]
    )
    values = torch.cat([values, torch.randn(5000), torch.randn(5000) * 1e-6])
    n = values.numel()
    low = torch.zeros(n, dtype=dtype)
    zeros = torch.zeros(n)
    adamw_(
        values.clone(),
        zeros.clone(),
        zeros.clone(),
        torch.zeros(n, dtype=dtype),
        low,
        lr=0.0,
        weight_decay=0.0,
        step=1,
    )
    assert torch.equal(low, values.to(dtype))
    g = torch.randn(n).to(dtype)
    m = torch.zeros(n)
    adamw_(zeros.clone(), m, zeros.clone(), g, lr=0.0, betas=(0.0, 0.0), weight_decay=0.0, step=1)
    assert torch.equal(m, g.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norm_and_overflow_flag(isa, dtype):
    x = torch.randn(40_005).to(dtype)
    total, bad = square_sum(x)
    assert total == pytest.approx(float(x.double().square().sum()), rel=1e-12)
    assert not bad
    for wrong in (float("inf"), float("-inf"), float("nan")):
        y = x.clone()
        y[40_003] = wrong
        assert square_sum(y)[1]


def test_l2_and_maximize():
    p0, g = torch.randn(100), torch.randn(100)
    ours, theirs = p0.clone(), torch.nn.Parameter(p0.clone())
    adam = torch.optim.Adam([theirs], lr=1e-2, weight_decay=0.1)
    m, v = torch.zeros(100), torch.zeros(100)
    for t in range(1, 4):
        theirs.grad = g.clone()
        adam.step()
        adamw_(ours, m, v, g, lr=1e-2, weight_decay=0.1, step=t, decoupled=False)
    assert torch.allclose(ours, theirs, atol=1e-6)
    a, b = torch.nn.Parameter(p0.clone()), torch.nn.Parameter(p0.clone())
    a.grad, b.grad = g.clone(), g.clone()
    AdamW([a], lr=1e-2, maximize=True).step()
    torch.optim.AdamW([b], lr=1e-2, maximize=True).step()
    assert torch.allclose(a, b, atol=1e-6)


def test_eight_bit_moments_stay_close_and_never_blow_up(isa):
    torch.manual_seed(0)
    n = 5000
    p = torch.randn(n)
    q = p.clone()
    m, v = torch.zeros(n), torch.zeros(n)
    m8, v8 = torch.zeros(n, dtype=torch.int8), torch.zeros(n, dtype=torch.uint8)
    scales = (torch.zeros(3), torch.zeros(3))
    spread = 10 ** torch.empty(n).uniform_(-3, 0)
    for t in range(1, 30):
        g = torch.randn(n) * spread
        adamw_(p, m, v, g, lr=1e-3, weight_decay=0.0, step=t)
        adamw8_(q, m8, v8, scales, g, lr=1e-3, weight_decay=0.0, step=t)
    # v never falls below the least code while it is positive: no step is many times lr
    assert (p - q).abs().max() < 29 * 1e-3 * (1 + (255 / 127) ** 2)
    assert (p - q).abs().mean() < 3e-3


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5000), st.integers(0, 99))
def test_codes_round_trip(n, seed):
    g = torch.Generator().manual_seed(seed)
    m, v = torch.randn(n, generator=g), torch.randn(n, generator=g).square()
    m8, v8 = torch.zeros(n, dtype=torch.int8), torch.zeros(n, dtype=torch.uint8)
    blocks = -(-n // 2048)
    scales = (torch.zeros(blocks), torch.zeros(blocks))
    quantize_(m, v, m8, v8, scales)
    m2, v2 = dequantize(m8, v8, scales)
    # half a code is at most a sixteenth; m spans 127 / 8 octaves below the block's largest
    assert ((m - m2).abs() <= m.abs() / 16 + m.abs().max() * 2.0**-15).all()
    assert ((v - v2).abs() <= v / 16 + v.max() * 2.0**-30).all()
    assert ((v > 0) <= (v8 > 0)).all()
    quantize_(m2, v2, m8, v8, scales)  # as a checkpoint does
    for a, b in zip((m2, v2), dequantize(m8, v8, scales)):
        assert torch.equal(a, b)


def test_codes_keep_the_mean():
    """Oracle: the values themselves; 600 roundings of error below 1/8 each leave about 0.2 %."""
    torch.manual_seed(0)
    n, rounds = 4096, 600
    m, v = torch.empty(n).uniform_(-1, 1), torch.empty(n).uniform_(0.1, 1)
    m8, v8 = torch.zeros(n, dtype=torch.int8), torch.zeros(n, dtype=torch.uint8)
    scales = (torch.zeros(2), torch.zeros(2))
    sums = torch.zeros(n), torch.zeros(n)
    for step in range(rounds):
        quantize_(m, v, m8, v8, scales, step=step)
        for total, value in zip(sums, dequantize(m8, v8, scales)):
            total += value / rounds
    inside = (m.abs() > 0.01) & (m.abs() < 0.8)  # the block's largest has nothing above it
    assert ((sums[0] - m).abs()[inside] <= 0.02 * m.abs()[inside]).all()
    assert ((sums[1] - v).abs() <= 0.02 * v)[v < 0.8].all()
    assert abs((sums[1] / v)[v < 0.8].mean() - 1) < 1e-3


def test_compiled_codes_equal_the_reference():
    """Oracle: the same update by torch operators; codes may differ where fp32 rounds otherwise."""
    torch.manual_seed(0)
    n = 5001
    start = torch.randn(n)
    outs = []
    for name in ("", "torch"):
        os.environ["ELIXIR_ISA"] = name
        try:
            p, m8, v8 = start.clone(), torch.zeros(n, dtype=torch.int8), torch.zeros(n).byte()
            scales = (torch.zeros(3), torch.zeros(3))
            for t in range(1, 4):
                g = torch.randn(n, generator=torch.Generator().manual_seed(t))
                adamw8_(p, m8, v8, scales, g, lr=1e-3, step=t, first=77)
            outs.append((m8, v8))
        finally:
            del os.environ["ELIXIR_ISA"]
    for a, b in zip(*outs):
        assert (a != b).float().mean() < 1e-3


def test_bad_tensors_are_named():
    p = torch.zeros(4)
    with pytest.raises(ValueError, match="gradient"):
        adamw_(p, p.clone(), p.clone(), torch.zeros(4, dtype=torch.float64), lr=1.0, step=1)
    with pytest.raises(ValueError, match="exp_avg"):
        adamw_(p, torch.zeros(5), p.clone(), p.clone(), lr=1.0, step=1)
    with pytest.raises(ValueError, match="step=0"):
        adamw_(p, p.clone(), p.clone(), p.clone(), lr=1.0, step=0)
    with pytest.raises(ValueError, match="betas"):
        AdamW([torch.nn.Parameter(p)], betas=(1.0, 0.9))
    with pytest.raises(ValueError, match="lr"):
        AdamW([torch.nn.Parameter(p)], lr=-1.0)


def test_without_the_extension_everything_works_and_says_so_once(monkeypatch):
    import elixir._native_loader as loader

    monkeypatch.setattr(loader, "_tried", False)
    monkeypatch.setattr(loader, "_loaded", None)
    monkeypatch.setitem(__import__("sys").modules, "elixir._native", None)
    with pytest.warns(RuntimeWarning, match="compiled kernels are absent"):
        assert loader.native() is None
    p, m, v, g = torch.randn(10), torch.zeros(10), torch.zeros(10), torch.randn(10)
    truth = reference(p, [g], 1e-2, (0.9, 0.999), 1e-8, 0.01)
    adamw_(p, m, v, g, lr=1e-2, step=1)
    assert torch.allclose(p.double(), truth, atol=1e-6)
    assert elixir.planner.belady_loads([[0], [1], [0]], 1) == 3
    monkeypatch.undo()


def test_forced_instruction_sets(monkeypatch):
    monkeypatch.setenv("ELIXIR_ISA", "sse9")
    with pytest.raises(ValueError, match="ELIXIR_ISA='sse9'"):
        native()
    monkeypatch.setenv("ELIXIR_ISA", "torch")
    assert native() is None
    assert os.environ["ELIXIR_ISA"] == "torch"


def test_operators_pass_opcheck_and_gradcheck():
    from elixir.optim import adamw_op, square_sum_op

    p, m, v, g = torch.randn(33), torch.zeros(33), torch.zeros(33), torch.randn(33)
    torch.library.opcheck(adamw_op, (p, m, v, g, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1))
    torch.library.opcheck(square_sum_op, (torch.randn(5, 7, requires_grad=True),))
    x = torch.randn(17, dtype=torch.float32, requires_grad=True)
    assert torch.autograd.gradcheck(square_sum_op, (x,), eps=1e-2, atol=1e-2, rtol=1e-2)
