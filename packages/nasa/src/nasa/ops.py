"""The operators behind ``torch.library``: schema, compiled and torch kernels, fake, autograd.

``nasa::adder_conv2d`` (AdderNet, Eq. 3 of the paper) and its two gradients, ``nasa::sad_conv2d``
(the adder over int8) and ``nasa::conv2d_int8`` (what a shift convolution is once its weights are
integers). float32 on the CPU runs in the compiled kernels; everything else runs on torch.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from nasa._native_loader import cuda, isa, native
from nasa._shapes import Conv2dShape

_CHUNK = 1 << 24  # elements of the largest intermediate that the torch kernels make


def _geometry(
    x: Tensor, w: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Conv2dShape:
    return Conv2dShape.of(x, w, stride, padding, dilation, groups)


def _compiled(*tensors: Tensor) -> Any:
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return native() if plain else None


def _on_cuda(name: str, z: Conv2dShape, out: Tensor, *inputs: Tensor) -> bool:
    """Run a CUDA kernel into ``out``; False where there is none for these tensors."""
    plain = all(t.device.type == "cuda" and t.dtype == torch.float32 for t in inputs)
    library = cuda() if plain else None
    if library is None:
        return False
    kept = [t.detach().contiguous() for t in inputs]
    numbers = (ctypes.c_int64 * 16)(*z.numbers())
    with torch.cuda.device(out.device):
        stream = torch.cuda.current_stream().cuda_stream
        addresses = [t.data_ptr() for t in (*kept, out)]
        code = getattr(library, f"nasa_cuda_{name}")(numbers, *addresses, stream)
    if code:
        raise RuntimeError(f"the CUDA kernel {name} failed to start: error {code}")
    return True


def _unfold(x: Tensor, z: Conv2dShape) -> Tensor:
    """Return the patches, (n, groups, c / groups * r * s, pixels)."""
    columns = torch.nn.functional.unfold(x, z.kernel, z.dilation, z.padding, z.stride)
    return columns.view(z.batch, z.groups, -1, columns.shape[-1])


@torch.library.custom_op("nasa::adder_conv2d", mutates_args=())
def adder_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    exact: bool,
) -> Tensor:
    """Return -sum |x - w|, (n, f, oh, ow)."""
    z = _geometry(x, weight, stride, padding, dilation, groups)
    y = x.new_empty((z.batch, z.filters, *z.out))
    if y.numel() == 0:
        return y
    module = _compiled(x, weight)
    if module is not None:
        x, weight = x.detach().contiguous(), weight.detach().contiguous()
        addresses = (x.data_ptr(), weight.data_ptr(), y.data_ptr())
        module.adder_forward(z.numbers(), *addresses, exact, torch.get_num_threads(), isa())
        return y
    if _on_cuda("adder_forward", z, y, x, weight):
        return y
    columns = _unfold(x, z).transpose(2, 3)
    kernels = weight.reshape(z.groups, z.filters // z.groups, -1)
    out = y.view(z.batch, z.groups, z.filters // z.groups, -1)
    for g in range(z.groups):
        out[:, g] = -torch.cdist(columns[:, g].contiguous(), kernels[g], p=1.0).transpose(1, 2)
    return y


@adder_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    exact: bool,
) -> Tensor:
    torch._check(x.dtype == weight.dtype, lambda: f"x is {x.dtype}, weight is {weight.dtype}")
    z = _geometry(x, weight, stride, padding, dilation, groups)
    return x.new_empty((z.batch, z.filters, *z.out))


@torch.library.custom_op("nasa::adder_conv2d_grad_input", mutates_args=())
def adder_conv2d_grad_input(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return the sum of clamp(w - x, -1, 1) * grad over what each pixel reaches, as x."""
    z = _geometry(x, weight, stride, padding, dilation, groups)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if grad.numel() == 0:
        return out.zero_()
    module = _compiled(x, weight, grad)
    if module is not None:
        x, weight, grad = (t.detach().contiguous() for t in (x, weight, grad))
        addresses = (x.data_ptr(), weight.data_ptr(), grad.data_ptr(), out.data_ptr())
        module.adder_grad_input(z.numbers(), *addresses, torch.get_num_threads(), isa())
        return out
    if _on_cuda("adder_grad_input", z, out, x, weight, grad):
        return out
    columns = _unfold(x, z)
    fg = z.filters // z.groups
    kernels = weight.reshape(z.groups, fg, -1)
    grads = grad.reshape(z.batch, z.groups, fg, -1)
    total = torch.zeros_like(columns)
    step = max(1, _CHUNK // max(1, columns.numel() // z.groups))
    for g in range(z.groups):
        for f in range(0, fg, step):
            difference = kernels[g, f : f + step, :, None] - columns[:, g, None]
            total[:, g] += (difference.clamp_(-1, 1) * grads[:, g, f : f + step, None]).sum(1)
    folded = torch.nn.functional.fold(
        total.view(z.batch, -1, total.shape[-1]),
        (z.height, z.width),
        z.kernel,
        z.dilation,
        z.padding,
        z.stride,
    )
    return out.copy_(folded)


@adder_conv2d_grad_input.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("nasa::adder_conv2d_grad_weight", mutates_args=())
def adder_conv2d_grad_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return the sum of (x - w) * grad: the convolution's weight gradient less w times sum grad."""
    none = [False, True, False]
    _, cross, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, none
    )
    result: Tensor = cross - weight * grad.sum((0, 2, 3)).view(-1, 1, 1, 1)
    return result


@adder_conv2d_grad_weight.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.geometry, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad[:2]
    ops = torch.ops.nasa
    gx = ops.adder_conv2d_grad_input(grad, x, weight, *ctx.geometry) if need_x else None
    gw = ops.adder_conv2d_grad_weight(grad, x, weight, *ctx.geometry) if need_weight else None
    return gx, gw, None, None, None, None, None


adder_conv2d.register_autograd(_backward, setup_context=_setup)


def _integer(
    name: str, x: Tensor, weight: Tensor, z: Conv2dShape, absolute_difference: bool
) -> Tensor:
    """Run an int8 kernel; the result is int32 and channels-last."""
    shape, layout = (z.batch, z.filters, *z.out), torch.channels_last
    y = torch.empty(shape, dtype=torch.int32, device=x.device, memory_format=layout)
    if y.numel() == 0:
        return y
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise TypeError(f"x is {x.dtype} and weight is {weight.dtype}: both must be torch.int8")
    module = native() if x.device.type == "cpu" else None
    if module is not None:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
        addresses = (x.data_ptr(), weight.data_ptr(), y.data_ptr())
        getattr(module, name)(z.numbers(), *addresses, torch.get_num_threads(), isa())
        return y
    # float64 holds every sum of int8 products of a layer exactly
    wide, kernels = x.double(), weight.double()
    if absolute_difference:
        geometry = [list(z.stride), list(z.padding), list(z.dilation)]
        return y.copy_(torch.ops.nasa.adder_conv2d(wide, kernels, *geometry, z.groups, True))
    geometry_ = (z.stride, z.padding, z.dilation, z.groups)
    return y.copy_(torch.nn.functional.conv2d(wide, kernels, None, *geometry_))


@torch.library.custom_op("nasa::sad_conv2d", mutates_args=())
def sad_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return -sum |x - w| of int8 tensors as int32."""
    return _integer(
        "sad_int8", x, weight, _geometry(x, weight, stride, padding, dilation, groups), True
    )


@torch.library.custom_op("nasa::conv2d_int8", mutates_args=())
def conv2d_int8(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return sum x * w of int8 tensors as int32."""
    z = _geometry(x, weight, stride, padding, dilation, groups)
    return _integer("conv_int8", x, weight, z, False)


def _fake_integer(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    z = _geometry(x, weight, stride, padding, dilation, groups)
    shape, layout = (z.batch, z.filters, *z.out), torch.channels_last
    return torch.empty(shape, dtype=torch.int32, device=x.device, memory_format=layout)


sad_conv2d.register_fake(_fake_integer)
conv2d_int8.register_fake(_fake_integer)
