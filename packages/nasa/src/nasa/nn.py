"""Adder and shift layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasa._shapes import pair
from nasa.functional import (
    adder_conv2d,
    exponent_range,
    fixed_point,
    quantize_power_of_two,
)

ETA = 0.2
"""Default of the adaptive scaling (AdderNet, section 3.3)."""


def _scaled(gradient: Tensor, eta: float) -> Tensor:
    """Return the gradient with the norm eta * sqrt(numel)."""
    norm = gradient.norm().clamp_min(1e-12)
    scaled: Tensor = gradient * (eta * math.sqrt(gradient.numel()) / norm)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    """Identity whose backward sets the norm of the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, eta: float) -> Tensor:
        ctx.eta = eta
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _scaled(gradients[0], ctx.eta), None


def adaptive_scale(weight: Float[Tensor, ...], eta: float = ETA) -> Float[Tensor, ...]:
    """Return the weight; its gradient is rescaled to the norm ``eta * sqrt(k)``, k its size.

    This is AdderNet's adaptive learning rate. Apply it to the slice that a layer uses: k is the
    number of active weights.

    Examples
    --------
    >>> import torch
    >>> w = torch.ones(100, requires_grad=True)
    >>> (adaptive_scale(w) * 7).sum().backward()
    >>> round(w.grad.norm().item(), 6)
    2.0
    """
    result: Tensor = _ScaleGradient.apply(weight, eta)
    return result


@torch.no_grad()
def rescale_gradients_(modules: Iterable[nn.Module]) -> None:
    """Rescale the weight gradients of those adder layers that leave it to this call.

    With ``scaling="step"`` a layer's gradient stays raw, so that data-parallel training averages
    raw gradients; call this after the all-reduce and before the optimizer's step.
    """
    for module in modules:
        if isinstance(module, AdderConv2d) and module.scaling == "step":
            gradient = module.weight.grad
            if gradient is not None:
                gradient.copy_(_scaled(gradient, module.eta))


class _Conv2d(nn.Module):
    """What both layers share: sizes, and the weight's shape."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int],
        dilation: int | tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride, self.padding = pair("stride", stride, 1), pair("padding", padding, 0)
        self.dilation, self.groups = pair("dilation", dilation, 1), groups

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight, (f, c / groups, r, s)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def extra_repr(self) -> str:
        """Describe the layer in the manner of ``nn.Conv2d``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}"
        )


class AdderConv2d(_Conv2d):
    """Adder layer, ``y = -sum |x - w|`` (AdderNet; Eq. 3 of the paper). A norm layer follows it.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        As in ``torch.nn.Conv2d``. There is no bias.
    eta : float
        Norm of the weight's gradient per square root of its size (adaptive scaling).
    scaling : {"backward", "step", "none"}
        Rescale in the backward pass, in :func:`rescale_gradients_`, or not at all.
    exact : bool
        See :func:`nasa.functional.adder_conv2d`.

    Examples
    --------
    >>> import torch
    >>> layer = AdderConv2d(3, 8, 3, padding=1)
    >>> layer(torch.zeros(2, 3, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        eta: float = ETA,
        scaling: Literal["backward", "step", "none"] = "backward",
        exact: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        if scaling not in ("backward", "step", "none"):
            raise ValueError(f"scaling={scaling!r}: allowed are backward, step, none")
        self.eta, self.scaling, self.exact = eta, scaling, exact
        self.weight = nn.Parameter(torch.empty(self.weight_shape))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights from N(0, 1)."""
        nn.init.normal_(self.weight, generator=generator)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f oh ow"]:
        """Apply the layer."""
        weight = (
            adaptive_scale(self.weight, self.eta) if self.scaling == "backward" else self.weight
        )
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return adder_conv2d(x, weight, *geometry, exact=self.exact)


class ShiftConv2d(_Conv2d):
    """Shift layer: a convolution whose weights are ``s * 2**p`` (DeepShift; Eq. 1 and 2).

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        As in ``torch.nn.Conv2d``. There is no bias.
    mode : {"q", "ps"}
        ``q`` rounds a latent weight (what hybrid networks use); ``ps`` trains the exponent p and
        the sign s themselves.
    weight_bits : int
        Bits of a weight, one of them its sign; exponents lie in [-(2**(bits - 1) - 1), 0].
    quantize_input : bool
        Round the input to 16.16 fixed point, as DeepShift does.

    Examples
    --------
    >>> import torch
    >>> layer = ShiftConv2d(3, 8, 3, padding=1, weight_bits=4)
    >>> exponents = torch.log2(layer.quantized_weight().abs())
    >>> bool((exponents == exponents.round()).all()), layer(torch.zeros(1, 3, 4, 4)).shape
    (True, torch.Size([1, 8, 4, 4]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        mode: Literal["q", "ps"] = "q",
        weight_bits: int = 6,
        quantize_input: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        if mode not in ("q", "ps"):
            raise ValueError(f"mode={mode!r}: allowed are q, ps")
        self.mode, self.weight_bits, self.quantize_input = mode, weight_bits, quantize_input
        exponent_range(weight_bits)
        if mode == "q":
            self.weight = nn.Parameter(torch.empty(self.weight_shape))
        else:
            self.exponent = nn.Parameter(torch.empty(self.weight_shape))
            self.sign = nn.Parameter(torch.empty(self.weight_shape))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw latent weights (kaiming uniform), or exponents and signs (uniform)."""
        if self.mode == "q":
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        else:
            low, _ = exponent_range(self.weight_bits)
            nn.init.uniform_(self.exponent, max(low, -10), -1, generator=generator)
            nn.init.uniform_(self.sign, -1, 1, generator=generator)

    def quantized_weight(self) -> Float[Tensor, "f c_per_group r s"]:
        """Return ``s * 2**p``, differentiable in the parameters (straight through)."""
        if self.mode == "q":
            return quantize_power_of_two(self.weight, self.weight_bits)
        low, high = exponent_range(self.weight_bits)
        p = self.exponent + (self.exponent.clamp(low, high).round() - self.exponent).detach()
        s = self.sign + (self.sign.round().sign() - self.sign).detach()
        return s * torch.exp2(p)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f oh ow"]:
        """Apply the layer."""
        activations = fixed_point(x) if self.quantize_input else x
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return nn.functional.conv2d(activations, self.quantized_weight(), None, *geometry)

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"{super().extra_repr()}, mode={self.mode!r}, weight_bits={self.weight_bits}"
