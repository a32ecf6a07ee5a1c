"""Linear maps divided over ranks: column-parallel outputs, row-parallel inputs.

The pair of Megatron's functions stands at the operators' borders: into a column an identity whose
backward adds the gradients, out of a row a sum whose backward is the identity. A column followed by
a row costs one sum in each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from elixir.profile.operators import Operator, Rule, joins, match, output_dim
from elixir.profile.parts import Part, part_of


class Link:
    """The ranks over which operators are divided.

    Parameters
    ----------
    size, rank
        Number of the ranks, and this one's place.
    group
        Their process group; None only makes the tensors that the operations would (in a trace).
    device
        Where the group's operations run.
    """

    def __init__(
        self, size: int, rank: int = 0, group: Any = None, device: str | torch.device = "cpu"
    ) -> None:
        self.size, self.rank, self.group = size, rank, group
        self.device = torch.device(device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        result = tensor.clone(memory_format=torch.contiguous_format)
        if self.group is not None:
            dist.all_reduce(result, group=self.group)
        return result

    def join(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """Return the ranks' tensors side by side along a dimension."""
        mine = tensor.contiguous()
        if self.group is None:
            return torch.cat([mine.clone() for _ in range(self.size)], dim)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.group)
        return torch.cat(parts, dim)

    def whole(self, mine: Tensor, part: Part) -> Tensor:
        """Return a divided parameter's whole value, on the host; every rank calls it."""
        return self.join(mine.to(self.device), part.dim).cpu()

    def cut(self, tensor: Tensor) -> Tensor:
        """Return this rank's part of the last dimension."""
        size = tensor.shape[-1] // self.size
        return tensor.narrow(-1, self.rank * size, size).contiguous()


class _IntoColumn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link) -> Tensor:
        ctx.link = link
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.link.sum(gradient), None


class _OutOfRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link) -> Tensor:
        return link.sum(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link) -> Tensor:
        ctx.link = link
        return link.join(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.link.cut(gradient), None


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link) -> Tensor:
        ctx.link = link
        return link.cut(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.link.join(gradient), None


def _product(module: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    return F.linear(x, weight if output_dim(module) == 0 else weight.t(), bias)


def _column(module: nn.Module, operator: Operator, link: Link) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y = _product(module, _IntoColumn.apply(x, link), module._parameters["bias"])
        return _Join.apply(y, link) if operator.whole else y

    return forward


def _row(module: nn.Module, operator: Operator, link: Link) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if operator.whole:
            x = _Cut.apply(x, link)
        y: Tensor = _OutOfRow.apply(_product(module, x, None), link)
        bias = module._parameters["bias"]
        return y if bias is None else y + bias

    return forward


def install(model: nn.Module, operators: Sequence[Operator], link: Link) -> None:
    """Leave this rank its part of each operator's weights; :func:`uninstall` undoes it."""
    modules = dict(model.named_modules())
    for operator in operators:
        module = modules[operator.module]
        outputs = output_dim(module)
        assert outputs is not None
        column = operator.kind == "column"
        cuts = [("weight", outputs if column else 1 - outputs)] + ([("bias", 0)] if column else [])
        for key, dim in cuts:
            p = module._parameters[key]
            if p is not None:
                part = Part(tuple(p.shape), dim, link.rank, link.size)
                p._elixir_part = part
                p.data = part.cut(p.data).clone(memory_format=torch.contiguous_format)
        module.forward = (_column if column else _row)(module, operator, link)


def uninstall(
    model: nn.Module, operators: Sequence[Operator], whole: Callable[[nn.Parameter, Part], Tensor]
) -> None:
    """Give the operators back their forward passes and, by ``whole``, their weights."""
    modules = dict(model.named_modules())
    for operator in operators:
        module = modules[operator.module]
        module.__dict__.pop("forward", None)
        for p in module._parameters.values():
            if p is not None and (part := part_of(p)) is not None:
                p.data = whole(p, part)
                del p._elixir_part


@contextmanager
def divided(model: nn.Module, operators: Sequence[Operator], ways: int) -> Iterator[None]:
    """Let a trace see the first rank's part of a model; the model is left unchanged."""
    kept = {id(p): p.data for p in model.parameters()} if operators else {}
    install(model, operators, Link(ways))
    try:
        yield
    finally:
        uninstall(model, operators, lambda p, _: kept[id(p)])


def resolve(
    model: nn.Module,
    batch: Any,
    rules: Sequence[Rule],
    ways: int,
) -> tuple[Operator, ...]:
    """Return the operators that rules divide over ``ways`` ranks, and where activations join.

    Raises
    ------
    ValueError
        As :func:`elixir.profile.operators.match`.
    """
    kinds = match(model, rules, ways)
    whole = joins(model, batch, kinds)
    # once more with the shapes that a rank sees: a size written in the model's code may not fit
    trial = [Operator(name, kind, name in whole) for name, kind in kinds.items()]
    with divided(model, trial, ways):
        whole |= joins(model, batch, {n: k for n, k in kinds.items() if n not in whole})
    return tuple(Operator(name, kind, name in whole) for name, kind in kinds.items())


def share_values(model: nn.Module, link: Link) -> None:
    """Give every rank of a link the first one's parameters."""
    first = dist.get_global_rank(link.group, 0)
    for p in model.parameters():
        data = p.data.to(link.device).contiguous()
        dist.broadcast(data, first, group=link.group)
        p.data.copy_(data)
