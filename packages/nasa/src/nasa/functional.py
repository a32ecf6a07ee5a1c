"""Adder and shift convolutions as functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from nasa import ops as _ops  # noqa: F401  (registers the operators)
from nasa._shapes import Conv2dShape, pair

ACTIVATION_BITS = (16, 16)
"""Integer and fractional bits of a shift layer's input (DeepShift's fixed point)."""


def _geometry(
    stride: int | Sequence[int], padding: int | Sequence[int], dilation: int | Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    return (
        list(pair("stride", stride, 1)),
        list(pair("padding", padding, 0)),
        list(pair("dilation", dilation, 1)),
    )


def adder_conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "f c_per_group r s"],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    exact: bool = False,
) -> Float[Tensor, "n f oh ow"]:
    """Adder convolution, ``y = -sum |x - w|`` (Eq. 3 and 4 of the paper; AdderNet).

    The gradients are AdderNet's: ``dy/dw = x - w`` and ``dy/dx = clamp(w - x, -1, 1)``. Padding
    counts as x = 0 and contributes -abs(w). The adaptive scaling of the weight's gradient is the
    layer's business (:class:`nasa.nn.AdderConv2d`).

    Parameters
    ----------
    x : (n, c, h, w) tensor
    weight : (f, c / groups, r, s) tensor
    stride, padding, dilation : int or two ints
    groups : int
    exact : bool
        Accumulate the absolute differences themselves. The default uses
        ``-|a - b| = a + b - 2 max(a, b)``, which is faster and cancels where x and w are much
        larger than their difference.

    Returns
    -------
    (n, f, oh, ow) tensor

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    TypeError
        If x and weight differ in dtype.

    Examples
    --------
    >>> import torch
    >>> x, w = torch.ones(1, 1, 3, 3), torch.zeros(2, 1, 3, 3)
    >>> adder_conv2d(x, w).flatten().tolist()
    [-9.0, -9.0]
    """
    _same_dtype(x, weight)
    Conv2dShape.of(x, weight, stride, padding, dilation, groups)
    result: Tensor = torch.ops.nasa.adder_conv2d(
        x, weight, *_geometry(stride, padding, dilation), groups, exact
    )
    return result


def sad_conv2d(
    x: Int8[Tensor, "n c h w"],
    weight: Int8[Tensor, "f c_per_group r s"],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Int[Tensor, "n f oh ow"]:
    """Adder convolution over int8 with int32 results, bit-exact; both need one shared scale.

    Examples
    --------
    >>> import torch
    >>> x, w = torch.full((1, 1, 1, 1), 100, dtype=torch.int8), torch.full((1, 1, 1, 1), -100)
    >>> sad_conv2d(x, w.to(torch.int8)).item()
    -200
    """
    Conv2dShape.of(x, weight, stride, padding, dilation, groups)
    result: Tensor = torch.ops.nasa.sad_conv2d(
        x, weight, *_geometry(stride, padding, dilation), groups
    )
    return result


def conv2d_int8(
    x: Int8[Tensor, "n c h w"],
    weight: Int8[Tensor, "f c_per_group r s"],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Int[Tensor, "n f oh ow"]:
    """Convolution over int8 with int32 results, bit-exact.

    A shift layer whose exponents lie in [-6, 0] is this one, with the weights ``s * 2**(p + 6)``.
    """
    Conv2dShape.of(x, weight, stride, padding, dilation, groups)
    result: Tensor = torch.ops.nasa.conv2d_int8(
        x, weight, *_geometry(stride, padding, dilation), groups
    )
    return result


def exponent_range(weight_bits: int) -> tuple[int, int]:
    """Return the exponents that ``weight_bits`` bits (one for the sign) hold: [-(2^(b-1) - 1), 0].

    Examples
    --------
    >>> exponent_range(6)
    (-31, 0)
    """
    if not 2 <= weight_bits <= 8:
        raise ValueError(f"weight_bits={weight_bits}: allowed are 2 to 8")
    return -(2 ** (weight_bits - 1) - 1), 0


def quantize_power_of_two(
    weight: Float[Tensor, ...],
    weight_bits: int = 6,
    *,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ...]:
    """Round to ``sign(w) * 2**round(log2 |w|)``; the gradient passes straight through (Eq. 2).

    Magnitudes are clamped into the range of :func:`exponent_range` first; zeros stay zero.

    Parameters
    ----------
    weight : tensor of any shape
    weight_bits : int
        Bits of a weight, one of them its sign.
    stochastic : bool
        Round up with a probability equal to the fraction instead of to the nearest.
    generator : torch.Generator, optional
        Source of the stochastic rounding.

    Examples
    --------
    >>> import torch
    >>> quantize_power_of_two(torch.tensor([0.3, -0.8, 0.0, 5.0])).tolist()
    [0.25, -1.0, 0.0, 1.0]
    """
    low, high = exponent_range(weight_bits)
    with torch.no_grad():
        magnitude = weight.abs().clamp(2.0**low, 2.0**high)
        exponent = torch.log2(magnitude)
        if stochastic:
            draw = torch.rand(exponent.shape, generator=generator, device=weight.device)
            rounded = torch.floor(exponent + draw.to(exponent.dtype))
        else:
            rounded = torch.round(exponent)
        quantized = torch.sign(weight) * torch.exp2(rounded)
    return weight + (quantized - weight).detach()


def fixed_point(
    x: Float[Tensor, ...], bits: tuple[int, int] = ACTIVATION_BITS
) -> Float[Tensor, ...]:
    """Round down to a fixed point number and clamp; the gradient passes straight through.

    Parameters
    ----------
    x : tensor of any shape
    bits : (int, int)
        Integer bits (with the sign) and fractional bits; DeepShift's are (16, 16).
    """
    whole, fraction = bits
    with torch.no_grad():
        rounded = torch.floor(x * 2.0**fraction) * 2.0**-fraction
        rounded = rounded.clamp(-(2.0 ** (whole - 1)), 2.0 ** (whole - 1) - 1)
    return x + (rounded - x).detach()


def shift_conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "f c_per_group r s"],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    weight_bits: int = 6,
    quantize_input: bool = True,
) -> Float[Tensor, "n f oh ow"]:
    """Shift convolution in the Q form: weights are rounded to signed powers of two (Eq. 1 and 2).

    Parameters
    ----------
    x : (n, c, h, w) tensor
    weight : (f, c / groups, r, s) tensor
        Latent weights; gradients reach them through the rounding.
    stride, padding, dilation : int or two ints
    groups : int
    weight_bits : int
        Bits of a quantised weight.
    quantize_input : bool
        Round the input to DeepShift's fixed point first.

    Returns
    -------
    (n, f, oh, ow) tensor

    Examples
    --------
    >>> import torch
    >>> x, w = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.3)
    >>> shift_conv2d(x, w).item()
    0.25
    """
    _same_dtype(x, weight)
    Conv2dShape.of(x, weight, stride, padding, dilation, groups)
    quantized = quantize_power_of_two(weight, weight_bits)
    activations = fixed_point(x) if quantize_input else x
    return torch.nn.functional.conv2d(
        activations, quantized, None, *_geometry(stride, padding, dilation), groups
    )


def _same_dtype(x: Tensor, weight: Tensor) -> None:
    if x.dtype != weight.dtype or not x.is_floating_point():
        raise TypeError(
            f"x is {x.dtype} and weight is {weight.dtype}: both must be the same floating type"
        )
