"""The supernet: every candidate of every cell, with shared weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasa.arch import Architecture
from nasa.functional import adder_conv2d, shift_conv2d
from nasa.hw.layer import OperatorType
from nasa.network import Block, HybridNet, conv_norm, make_convolution
from nasa.nn import adaptive_scale
from nasa.space import Candidate, Cell, SearchSpace


class SharedBlock(nn.Module):
    """One weight set per (type, kernel): smaller expansions use its first channels.

    Batch norm affine parameters and running statistics are sliced likewise, as the authors' code
    does.
    """

    def __init__(self, cell: Cell, operator: OperatorType, kernel: int, largest: int) -> None:
        super().__init__()
        middle = cell.in_channels * largest
        self.operator, self.in_channels, self.stride = operator, cell.in_channels, cell.stride
        self.padding = kernel // 2
        self.expand = make_convolution(operator, cell.in_channels, middle, 1)
        self.norm1 = nn.BatchNorm2d(middle)
        self.depthwise = make_convolution(operator, middle, middle, kernel, cell.stride, middle)
        self.norm2 = nn.BatchNorm2d(middle)
        self.project = make_convolution(operator, middle, cell.out_channels, 1)
        self.norm3 = nn.BatchNorm2d(cell.out_channels)
        self.residual = cell.keeps_shape

    def _convolve(
        self, x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Tensor:
        if self.operator == "adder":
            return adder_conv2d(x, adaptive_scale(weight), stride, padding, 1, groups)
        if self.operator == "shift":
            return shift_conv2d(x, weight, stride, padding, 1, groups)
        return nn.functional.conv2d(x, weight, None, stride, padding, 1, groups)

    def forward(self, x: Tensor, expansion: int) -> Tensor:
        """Apply the block with the first ``expansion`` times ``in_channels`` channels."""
        m = self.in_channels * expansion
        y = self._convolve(x, _weight(self.expand)[:m])
        y = torch.relu(_sliced_norm(self.norm1, y))
        y = self._convolve(y, _weight(self.depthwise)[:m], self.stride, self.padding, m)
        y = torch.relu(_sliced_norm(self.norm2, y))
        y = _sliced_norm(self.norm3, self._convolve(y, _weight(self.project)[:, :m]))
        return x + y if self.residual else y


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _sliced_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    c = x.shape[1]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    momentum = norm.momentum
    if norm.training:
        norm.num_batches_tracked += 1
        if momentum is None:  # cumulative average, used while recalibrating
            momentum = 1.0 / float(norm.num_batches_tracked)
    return nn.functional.batch_norm(
        x,
        norm.running_mean[:c],
        norm.running_var[:c],
        norm.weight[:c],
        norm.bias[:c],
        norm.training,
        momentum or 0.0,
        norm.eps,
    )


class SuperCell(nn.Module):
    """All candidates of one cell."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        blocks = [c for c in cell.candidates if not c.is_skip]
        largest = max((c.expansion for c in blocks), default=1)
        self.blocks = nn.ModuleDict(
            {
                f"{operator}_k{kernel}": SharedBlock(cell, operator, kernel, largest)
                for operator, kernel in dict.fromkeys(
                    (c.operator, c.kernel) for c in blocks if c.operator is not None
                )
            }
        )
        self.skip: nn.Module = nn.Identity()
        if not cell.keeps_shape:
            self.skip = conv_norm(cell.in_channels, cell.out_channels, 1, cell.stride)

    def one(self, x: Tensor, index: int) -> Tensor:
        """Apply one candidate."""
        candidate = self.cell.candidates[index]
        if candidate.is_skip:
            skipped: Tensor = self.skip(x)
            return skipped
        result: Tensor = self.block(candidate)(x, candidate.expansion)
        return result

    def block(self, candidate: Candidate) -> SharedBlock:
        """Return the weights that a candidate uses."""
        found = self.blocks[f"{candidate.operator}_k{candidate.kernel}"]
        assert isinstance(found, SharedBlock)
        return found

    def forward(self, x: Tensor, active: Sequence[int], weights: Tensor | None = None) -> Tensor:
        """Return the weighted sum of the active candidates (Eq. 6); equal weights by default."""
        if len(active) == 1 and weights is None:
            return self.one(x, active[0])
        outputs = [self.one(x, index) for index in active]
        if weights is None:
            return torch.stack(outputs).mean(0)
        return sum(
            (w * y for w, y in zip(weights, outputs, strict=True)), torch.zeros_like(outputs[0])
        )


class Supernet(nn.Module):
    """Every architecture of a space, with shared weights.

    Parameters
    ----------
    space : SearchSpace
    zero_last_gamma : bool
        Start the last batch norm of every block at zero (the paper's recipe, after BigNAS).

    Examples
    --------
    >>> import torch
    >>> from nasa import SearchSpace, Supernet
    >>> net = Supernet(SearchSpace.from_yaml("digits"))
    >>> net(torch.zeros(2, 1, 8, 8), [[0], [2], [4], [6]]).shape
    torch.Size([2, 10])
    """

    def __init__(self, space: SearchSpace, *, zero_last_gamma: bool = False) -> None:
        super().__init__()
        self.space = space
        self.stem = conv_norm(space.image[0], space.stem_channels, 3, space.stem_stride)
        self.cells = nn.ModuleList(SuperCell(cell) for cell in space.cells)
        self.head = conv_norm(space.cells[-1].out_channels, space.head_channels, 1)
        self.classifier = nn.Linear(space.head_channels, space.classes)
        if zero_last_gamma:
            for module in self.modules():
                if isinstance(module, SharedBlock):
                    nn.init.zeros_(module.norm3.weight)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        active: Sequence[Sequence[int]],
        weights: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "n classes"]:
        """Return the logits.

        Parameters
        ----------
        x : (n, c, h, w) tensor
        active : per cell, the indices of the candidates in use
        weights : per cell, a (k,) tensor, optional
            Mixture weights; equal ones by default.
        """
        if len(active) != len(self.cells):
            raise ValueError(
                f"active has {len(active)} entries, the space has {len(self.cells)} cells"
            )
        x = self.stem(x)
        for i, (cell, indices) in enumerate(zip(self.cells, active, strict=True)):
            x = cell(x, indices, None if weights is None else weights[i])
        logits: Tensor = self.classifier(self.head(x).mean((2, 3)))
        return logits

    @torch.no_grad()
    def extract(self, architecture: Architecture) -> HybridNet:
        """Return a network of its own with the supernet's weights.

        Raises
        ------
        ValueError
            If the architecture belongs to another space.
        """
        if architecture.space != self.space:
            raise ValueError(
                f"the architecture is of space {architecture.space.name!r}, the supernet of "
                f"{self.space.name!r}, and they differ"
            )
        net = architecture.build()
        for part in ("stem", "head", "classifier"):
            getattr(net, part).load_state_dict(getattr(self, part).state_dict())
        for own, shared, candidate in zip(
            net.cells, self.cells, architecture.candidates, strict=True
        ):
            assert isinstance(shared, SuperCell)
            if candidate.is_skip:
                own.load_state_dict(shared.skip.state_dict())
            else:
                assert isinstance(own, Block)
                _copy_slices(own, shared.block(candidate))
        return net


def _copy_slices(own: Block, shared: SharedBlock) -> None:
    source = shared.state_dict()
    for name, target in own.state_dict().items():
        value = source[name]
        target.copy_(value[tuple(slice(0, s) for s in target.shape)] if target.dim() else value)


def candidate_types(space: SearchSpace) -> list[list[str]]:
    """Return the operator type, or ``skip``, of every candidate of every cell."""
    return [[c.operator or "skip" for c in cell.candidates] for cell in space.cells]
