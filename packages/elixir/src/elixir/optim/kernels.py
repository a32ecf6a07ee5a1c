"""AdamW, norms and copies on flat CPU tensors: compiled kernels, or torch where there are none."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from elixir._native_loader import isa, native

_TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
BLOCK = 2048
"""Elements that share one scale of 8-bit moments."""


def threads() -> int:
    """Return how many threads a kernel may use: torch's own number."""
    return torch.get_num_threads()


def _check(name: str, tensor: Tensor, n: int, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes or tensor.numel() != n or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: {tuple(tensor.shape)} {tensor.dtype}: must be contiguous with {n} elements "
            f"of {' or '.join(str(d) for d in dtypes)}"
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: lives on {tensor.device}: must live on the CPU")


def adamw_(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    low: Tensor | None = None,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    step: int,
    scale: float = 1.0,
    decoupled: bool = True,
) -> None:
    """Update a parameter in one pass over memory (28 bytes per element in fp32).

    ``g = scale * gradient``; ``m = b1 m + (1-b1) g``; ``v = b2 v + (1-b2) g g``;
    ``p = p (1 - lr wd) - lr/(1-b1^t) m / (sqrt(v)/sqrt(1-b2^t) + eps)``; ``low = round(p)``.
    All in fp32; the result does not depend on threads, instruction set, or position in a chunk.

    Parameters
    ----------
    parameter, exp_avg, exp_avg_sq
        fp32, n elements each; updated in place.
    gradient
        fp32, bfloat16 or float16, n elements.
    low
        Receives the rounded parameter (bfloat16 or float16), or None.
    scale
        Multiplies the gradient: clip coefficient over loss scale; negative to maximise.
    step
        Number of this update, from 1.
    decoupled
        AdamW's decay; False adds ``weight_decay * p`` to the gradient (Adam).

    Raises
    ------
    ValueError
        For a wrong dtype, size or device, or a step below 1.
    """
    n = parameter.numel()
    _check("parameter", parameter, n, (torch.float32,))
    _check("exp_avg", exp_avg, n, (torch.float32,))
    _check("exp_avg_sq", exp_avg_sq, n, (torch.float32,))
    _check("gradient", gradient, n, tuple(_TYPES))
    if low is not None:
        _check("low", low, n, (torch.bfloat16, torch.float16))
    if step < 1:
        raise ValueError(f"step={step}: must be at least 1")
    module = native()
    if module is not None:
        module.adamw(
            parameter.data_ptr(),
            exp_avg.data_ptr(),
            exp_avg_sq.data_ptr(),
            gradient.data_ptr(),
            _TYPES[gradient.dtype],
            0 if low is None else low.data_ptr(),
            0 if low is None else _TYPES[low.dtype],
            n,
            lr,
            betas[0],
            betas[1],
            eps,
            weight_decay,
            step,
            scale,
            decoupled,
            threads(),
            isa(),
        )
        return
    adamw_reference_(
        parameter,
        exp_avg,
        exp_avg_sq,
        gradient,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        scale=scale,
        decoupled=decoupled,
    )
    if low is not None:
        low.copy_(parameter)


def adamw_reference_(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    scale: float = 1.0,
    decoupled: bool = True,
) -> None:
    """Update by torch operators, in the parameter's own precision and on its device."""
    g = gradient.to(parameter.dtype) * scale
    if not decoupled:
        g = g + weight_decay * parameter
    exp_avg.mul_(betas[0]).add_(g, alpha=1 - betas[0])
    exp_avg_sq.mul_(betas[1]).add_((1 - betas[1]) * g * g)
    inverse = 1 / math.sqrt(1 - betas[1] ** step)
    denominator = exp_avg_sq.sqrt().mul_(inverse).add_(eps)
    if decoupled:
        parameter.mul_(1 - lr * weight_decay)
    parameter.sub_((lr / (1 - betas[0] ** step) * exp_avg).div_(denominator))


def adamw8_(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scales: tuple[Tensor, Tensor],
    gradient: Tensor,
    low: Tensor | None = None,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    step: int,
    scale: float = 1.0,
) -> None:
    """AdamW with 8-bit moments: 2048-element blocks, quadratic code for m, quartic for v.

    Parameters
    ----------
    exp_avg, exp_avg_sq
        int8 and uint8, n elements.
    scales
        Two fp32 tensors with ``ceil(n / 2048)`` largest magnitudes.

    Raises
    ------
    ValueError
        As for :func:`adamw_`.
    """
    n = parameter.numel()
    _check("parameter", parameter, n, (torch.float32,))
    _check("exp_avg", exp_avg, n, (torch.int8,))
    _check("exp_avg_sq", exp_avg_sq, n, (torch.uint8,))
    _check("gradient", gradient, n, tuple(_TYPES))
    for part in scales:
        _check("scales", part, -(-n // BLOCK), (torch.float32,))
    if low is not None:
        _check("low", low, n, (torch.bfloat16, torch.float16))
    if step < 1:
        raise ValueError(f"step={step}: must be at least 1")
    module = native()
    if module is not None:
        module.adamw8(
            parameter.data_ptr(),
            exp_avg.data_ptr(),
            exp_avg_sq.data_ptr(),
            scales[0].data_ptr(),
            scales[1].data_ptr(),
            gradient.data_ptr(),
            _TYPES[gradient.dtype],
            0 if low is None else low.data_ptr(),
            0 if low is None else _TYPES[low.dtype],
            n,
            lr,
            betas[0],
            betas[1],
            eps,
            weight_decay,
            step,
            scale,
            True,
            threads(),
            isa(),
        )
        return
    m, v = dequantize(exp_avg, exp_avg_sq, scales)
    adamw_reference_(
        parameter,
        m,
        v,
        gradient,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        scale=scale,
    )
    quantize_(m, v, exp_avg, exp_avg_sq, scales)
    if low is not None:
        low.copy_(parameter)


def dequantize(
    exp_avg: Tensor, exp_avg_sq: Tensor, scales: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return 8-bit moments as fp32."""
    n = exp_avg.numel()
    wide = [s.repeat_interleave(BLOCK)[:n] for s in scales]
    c, d = exp_avg.float(), exp_avg_sq.float()
    return c * c.abs() * (wide[0] / 127.0**2), (d * d) ** 2 * (wide[1] / 255.0**4)


def quantize_(
    m: Tensor, v: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, scales: tuple[Tensor, Tensor]
) -> None:
    """Write fp32 moments as 8-bit codes."""
    n = m.numel()
    for part, source in zip(scales, (m.abs(), v), strict=True):
        padded = torch.nn.functional.pad(source, (0, -n % BLOCK))
        part.copy_(padded.view(-1, BLOCK).amax(1))
    wide = [s.repeat_interleave(BLOCK)[:n].clamp_min(1e-45) for s in scales]
    code = ((m.abs() / wide[0]).clamp_max(1).sqrt() * 127 + 0.5).floor()
    exp_avg.copy_(code * m.sign())
    vcode = ((v / wide[1]).clamp_max(1).sqrt().sqrt() * 255 + 0.5).floor()
    exp_avg_sq.copy_(torch.where((vcode < 1) & (v > 0), 1, vcode))


def square_sum(gradient: Tensor) -> tuple[float, bool]:
    """Return the sum of squares in fp64 (fixed order) and whether an infinity or NaN occurs."""
    module = native()
    if module is not None and gradient.device.type == "cpu" and gradient.is_contiguous():
        total, bad = module.norm(
            gradient.data_ptr(), _TYPES[gradient.dtype], gradient.numel(), threads(), isa()
        )
        return total, bad
    total = float(gradient.double().square().sum())
    return total, not bool(torch.isfinite(gradient).all())


def copy_(target: Tensor, source: Tensor) -> None:
    """Copy contiguous bytes between CPU tensors without holding the interpreter."""
    module = native()
    if module is not None and target.device.type == source.device.type == "cpu":
        module.copy(target.data_ptr(), source.data_ptr(), target.nbytes, threads())
    else:
        target.copy_(source)
