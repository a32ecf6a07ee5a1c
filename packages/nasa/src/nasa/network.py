"""The network of one architecture."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasa.arch import Architecture
from nasa.hw.layer import OperatorType
from nasa.nn import AdderConv2d, ShiftConv2d
from nasa.space import Candidate, Cell


def make_convolution(
    operator: OperatorType,
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
) -> nn.Module:
    """Return a layer of the given type with "same" padding and no bias."""
    if operator == "adder":
        return AdderConv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)
    if operator == "shift":
        return ShiftConv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)
    layer = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch norm, ReLU."""
    convolution = make_convolution("conv", in_channels, out_channels, kernel, stride)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project, all of one operator type."""

    def __init__(self, cell: Cell, candidate: Candidate) -> None:
        super().__init__()
        assert candidate.operator is not None
        operator, middle = candidate.operator, cell.in_channels * candidate.expansion
        self.expand = make_convolution(operator, cell.in_channels, middle, 1)
        self.norm1 = nn.BatchNorm2d(middle)
        self.depthwise = make_convolution(
            operator, middle, middle, candidate.kernel, cell.stride, middle
        )
        self.norm2 = nn.BatchNorm2d(middle)
        self.project = make_convolution(operator, middle, cell.out_channels, 1)
        self.norm3 = nn.BatchNorm2d(cell.out_channels)
        self.residual = cell.keeps_shape

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = torch.relu(self.norm1(self.expand(x)))
        y = torch.relu(self.norm2(self.depthwise(y)))
        y = self.norm3(self.project(y))
        return x + y if self.residual else y


class HybridNet(nn.Module):
    """The network of an architecture: stem, cells, head, classifier.

    Parameters
    ----------
    architecture : Architecture

    Examples
    --------
    >>> import torch
    >>> from nasa import Architecture, SearchSpace
    >>> net = Architecture(SearchSpace.from_yaml("digits"), (0, 2, 4, 5)).build()
    >>> net(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        space = architecture.space
        self.architecture = architecture
        self.stem = conv_norm(space.image[0], space.stem_channels, 3, space.stem_stride)
        self.cells = nn.ModuleList(
            make_cell(cell, candidate)
            for cell, candidate in zip(space.cells, architecture.candidates, strict=True)
        )
        self.head = conv_norm(space.cells[-1].out_channels, space.head_channels, 1)
        self.classifier = nn.Linear(space.head_channels, space.classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        logits: Tensor = self.classifier(self.head(x).mean((2, 3)))
        return logits


def make_cell(cell: Cell, candidate: Candidate) -> nn.Module:
    """Return a block, an identity, or the 1x1 convolution of a skip that changes shape."""
    if not candidate.is_skip:
        return Block(cell, candidate)
    if cell.keeps_shape:
        return nn.Identity()
    return conv_norm(cell.in_channels, cell.out_channels, 1, cell.stride)


def operator_of(module: nn.Module) -> OperatorType | None:
    """Return the operator type of a layer with a kernel, or None."""
    if isinstance(module, AdderConv2d):
        return "adder"
    if isinstance(module, ShiftConv2d):
        return "shift"
    return "conv" if isinstance(module, nn.Conv2d | nn.Linear) else None
