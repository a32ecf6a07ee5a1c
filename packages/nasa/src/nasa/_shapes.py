"""Arguments of a two-dimensional convolution, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """Return ``value`` as (rows, columns), or raise where it is not one or two allowed integers."""
    numbers = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(numbers) != 2 or min(numbers) < least:
        raise ValueError(f"{name}={value!r}: give one integer or two, each at least {least}")
    return numbers[0], numbers[1]


@dataclass(frozen=True)
class Conv2dShape:
    """Sizes of one convolution: input (n, c, h, w), weight (f, c / groups, r, s)."""

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int]
    groups: int
    out: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor,
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
    ) -> Conv2dShape:
        """Check the arguments of a convolution and return its sizes."""
        if x.dim() != 4 or weight.dim() != 4:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}: "
                "both need four axes, (n, c, h, w) and (f, c / groups, r, s)"
            )
        strides, pads = pair("stride", stride, 1), pair("padding", padding, 0)
        dilations = pair("dilation", dilation, 1)
        n, c, h, w = x.shape
        f, cg, r, s = weight.shape
        if groups < 1 or c != cg * groups or f % groups:
            raise ValueError(
                f"groups={groups} does not fit x with {c} channels and weight "
                f"{tuple(weight.shape)}: "
                f"x needs {cg} * groups channels, and the {f} filters must divide into the groups"
            )
        out = (
            torch.sym_max(0, (h + 2 * pads[0] - dilations[0] * (r - 1) - 1) // strides[0] + 1),
            torch.sym_max(0, (w + 2 * pads[1] - dilations[1] * (s - 1) - 1) // strides[1] + 1),
        )
        if out[0] < 1 or out[1] < 1:
            raise ValueError(
                f"x of {h} x {w} with padding={pads} is smaller than the kernel {r} x {s} "
                f"with dilation={dilations}"
            )
        return cls(n, c, h, w, f, (r, s), groups, out, strides, pads, dilations)

    def numbers(self) -> list[int]:
        """Return the sixteen numbers that the compiled kernels take."""
        return [
            self.batch, self.channels, self.height, self.width, self.filters, *self.kernel,
            self.groups, *self.out, *self.stride, *self.padding, *self.dilation,
        ]  # fmt: skip
