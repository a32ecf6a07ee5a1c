"""AdamW, norms and copies on flat CPU tensors: compiled kernels, or torch where there are none."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from elixir._native_loader import isa, native
from elixir.memory.simulated import window

_TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
BLOCK = 2048
"""Elements that share one scale of 8-bit moments."""
CUT = 20
"""Bits of an fp32 number below its first three mantissa bits."""


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
    first: int = 0,
) -> None:
    """AdamW with 8-bit moments in blocks of 2048: logarithmic codes, eight to an octave.

    Codes round up or down by a hash of (element, step), so that the moments keep their mean: with
    rounding to the nearest a second moment, which changes by 0.1 % per step, would never move. One
    call with one ``step`` always gives the same bits.

    Parameters
    ----------
    first
        Index in its parameter of the tensors' first element (a rank's part).
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
            first,
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
    quantize_(m, v, exp_avg, exp_avg_sq, scales, step=step, first=first)
    if low is not None:
        low.copy_(parameter)


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.int32).long()


def _floats(bits: Tensor) -> Tensor:
    return bits.int().view(torch.float32)


def _dither(n: int, first: int, step: int) -> Tensor:
    """Return the 32-bit hashes of elements ``first ... first + n - 1`` in a step."""
    low = 0xFFFFFFFF
    h = ((torch.arange(first, first + n) & low) * 0x9E3779B1 & low) ^ (step * 0x85EBCA6B & low)
    h ^= h >> 16
    h = (h & 0xFFFF) * 0x7FEB352D + (((h >> 16) * 0x7FEB352D & 0xFFFF) << 16) & low
    return h ^ (h >> 15)


def dequantize(
    exp_avg: Tensor, exp_avg_sq: Tensor, scales: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return 8-bit moments as fp32."""
    n = exp_avg.numel()
    found = []
    for codes, scale, top in ((exp_avg, scales[0], 127), (exp_avg_sq, scales[1], 255)):
        code = codes.long().abs()
        wide = (_bits(scale) >> CUT).repeat_interleave(BLOCK)[:n]
        place = code + wide - top
        found.append(_floats(torch.where((code > 0) & (place > 0), place << CUT, 0)))
    return torch.where(exp_avg < 0, -found[0], found[0]), found[1]


def quantize_(
    m: Tensor,
    v: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    scales: tuple[Tensor, Tensor],
    *,
    step: int | None = None,
    first: int = 0,
) -> None:
    """Write fp32 moments as 8-bit codes.

    To the nearest code; with ``step`` up or down with the probability that keeps the mean, by a
    hash of (``first`` + index, step). What :func:`dequantize` returned is written back exactly.
    """
    n, rest = m.numel(), (1 << CUT) - 1
    hashes = None if step is None else _dither(n, first, step)
    for source, codes, scale, top, least in (
        (m.abs(), exp_avg, scales[0], 127, 0),
        (v, exp_avg_sq, scales[1], 255, 1),
    ):
        bits = _bits(source)
        most = torch.nn.functional.pad(bits, (0, -n % BLOCK)).view(-1, BLOCK).amax(1)
        place = (most + rest) >> CUT
        scale.copy_(_floats(place << CUT))
        noise: int | Tensor = 1 << (CUT - 1)
        if hashes is not None:
            noise = hashes & rest if top == 127 else hashes >> (32 - CUT)
        code = ((bits + noise) >> CUT) - place.repeat_interleave(BLOCK)[:n] + top
        code = torch.where(bits > 0, code.clamp(least, top), 0)
        codes.copy_(torch.where(m < 0, -code, code) if top == 127 else code)


def square_sum(gradient: Tensor) -> tuple[float, bool]:
    """Return the sum of squares in fp64 (fixed order) and whether an infinity or NaN occurs."""
    module, gradient = native(), window(gradient)
    if module is not None and gradient.device.type == "cpu" and gradient.is_contiguous():
        total, bad = module.norm(
            gradient.data_ptr(), _TYPES[gradient.dtype], gradient.numel(), threads(), isa()
        )
        return total, bad
    total = float(gradient.double().square().sum())
    return total, not bool(torch.isfinite(gradient).all())


def copy_(target: Tensor, source: Tensor, until: float = 0.0) -> None:
    """Copy contiguous bytes between CPU tensors without holding the interpreter.

    Returns not before ``until`` on the clock of :func:`time.perf_counter`.
    """
    module = native()
    if module is not None and target.device.type == source.device.type == "cpu":
        module.copy(target.data_ptr(), source.data_ptr(), target.nbytes, threads(), until)
        return
    target.copy_(source)
    if (left := until - time.perf_counter()) > 0:
        time.sleep(left)
