"""The CUDA kernels: compiled wherever nvcc is, run wherever a GPU and a build with them is."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from nasa._native_loader import cuda
from nasa.functional import adder_conv2d
from test_operators import adder_reference

SOURCE = Path(__file__).parent.parent / "csrc" / "adder_cuda.cu"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_compiles_for_hopper(tmp_path):
    target = tmp_path / "kernels.cubin"
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cubin", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 0


@pytest.mark.skipif(not torch.cuda.is_available() or cuda() is None, reason="no GPU or no kernels")
@pytest.mark.parametrize("geometry", [(1, 1, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (3, 0, 1, 4)])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel"),  # every tile of the kernels, and the depthwise ones
    [(8, 12, 3), (20, 40, 3), (36, 68, 1), (72, 132, 3), (4, 8, 3)],
)
def test_equals_the_reference_on_a_gpu(monkeypatch, geometry, channels, filters, kernel):
    # The weight's gradient is cuDNN's convolution, which rounds to TF32 unless told otherwise.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    groups = geometry[3]
    x = torch.randn(3, channels, 13, 11)
    w = torch.randn(filters, channels // groups, kernel, kernel)
    truth = adder_reference(x, w, *geometry)
    xg, wg = (t.cuda().requires_grad_() for t in (x, w))
    y = adder_conv2d(xg, wg, *geometry)
    assert torch.allclose(y.cpu().double(), truth, atol=1e-4)
    grad = torch.randn_like(y)
    y.backward(grad)
    xc, wc = (t.double().requires_grad_() for t in (x, w))  # float64 runs on torch
    adder_conv2d(xc, wc, *geometry).backward(grad.cpu().double())
    # each term of the input's gradient is at most |grad|: a few roundings of their sum are allowed
    xs = x.double().requires_grad_()
    torch.nn.functional.conv2d(xs, torch.ones_like(w).double(), None, *geometry).backward(
        grad.cpu().double().abs()
    )
    assert ((xg.grad.cpu() - xc.grad).abs() <= 8 * 2.0**-24 * xs.grad + 1e-6).all()
    assert torch.allclose(wg.grad.cpu().double(), wc.grad, atol=1e-3)
