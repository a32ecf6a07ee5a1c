"""Converts any torch CNN to shift or adder layers, and lists its convolutions as a workload."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasa.hw.layer import Layer, OperatorType, Workload
from nasa.network import operator_of
from nasa.nn import AdderConv2d, ShiftConv2d

Rule = Callable[[str, nn.Conv2d], OperatorType]


class WithBias(nn.Module):
    """A layer followed by a bias per channel: shift and adder layers have none of their own."""

    def __init__(self, layer: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f oh ow"]:
        """Apply both."""
        result: Tensor = self.layer(x) + self.bias.view(1, -1, 1, 1)
        return result


def convert(model: nn.Module, rule: OperatorType | Rule, *, weight_bits: int = 6) -> nn.Module:
    """Return a copy of a model whose convolutions became shift or adder layers.

    Parameters
    ----------
    model : nn.Module
        Any model; ``nn.Conv2d`` layers with zero padding are considered.
    rule : {"conv", "shift", "adder"} or callable
        The type for all layers but the first, or a function of (name, layer).
    weight_bits : int
        Of shift layers.

    Returns
    -------
    nn.Module
        Shift layers round the trained weights; adder layers keep them as a start and must be
        trained.

    Raises
    ------
    ValueError
        If a chosen layer cannot be converted (its padding is not zeros), or the rule names an
        unknown type.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False))
    >>> type(convert(net, "shift")[2]).__name__
    'ShiftConv2d'
    """
    result = copy.deepcopy(model)
    names = [name for name, module in result.named_modules() if type(module) is nn.Conv2d]
    for name in names:
        layer = result.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        if callable(rule):
            operator = rule(name, layer)
        else:
            operator = rule if name != names[0] else "conv"
        if operator not in ("conv", "shift", "adder"):
            raise ValueError(
                f"rule gives {operator!r} for {name!r}: allowed are conv, shift, adder"
            )
        if operator == "conv":
            continue
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(
                f"layer {name!r} has padding={layer.padding!r} with mode {layer.padding_mode!r}: "
                f"only "
                "zeros with numbers can be converted; let the rule return 'conv' for it"
            )
        parent, _, last = name.rpartition(".")
        setattr(result.get_submodule(parent), last, _converted(layer, operator, weight_bits))
    return result


def _converted(layer: nn.Conv2d, operator: OperatorType, weight_bits: int) -> nn.Module:
    kernel, stride = (
        (layer.kernel_size[0], layer.kernel_size[1]),
        (layer.stride[0], layer.stride[1]),
    )
    padding, dilation = (
        (int(layer.padding[0]), int(layer.padding[1])),
        (layer.dilation[0], layer.dilation[1]),
    )
    sizes = (layer.in_channels, layer.out_channels, kernel, stride, padding, dilation, layer.groups)
    new: AdderConv2d | ShiftConv2d
    if operator == "adder":
        new = AdderConv2d(*sizes)
    else:
        new = ShiftConv2d(*sizes, weight_bits=weight_bits)
    with torch.no_grad():
        new.weight.copy_(layer.weight)
    return new if layer.bias is None else WithBias(new, layer.bias)


@torch.no_grad()
def trace_workload(
    model: nn.Module, example: Float[Tensor, "n c h w"], name: str = "model"
) -> Workload:
    """Run a model once and list its convolutions and fully connected layers, in order.

    Parameters
    ----------
    model : nn.Module
    example : tensor
        An input; its first axis is the batch.
    name : str
    """
    layers: list[Layer] = []
    handles = []

    def note(
        label: str, module: nn.Module
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            operator = operator_of(module)
            assert operator is not None
            if isinstance(module, nn.Linear):
                row = Layer.conv(label, operator, module.in_features, module.out_features, 1)
            else:
                assert isinstance(module, nn.Conv2d | AdderConv2d | ShiftConv2d)
                height, width = inputs[0].shape[2:]
                if module.stride[0] != module.stride[1]:
                    raise ValueError(
                        f"layer {label!r} has stride {module.stride}: both must be equal"
                    )
                row = Layer(
                    label,
                    operator,
                    module.in_channels,
                    module.out_channels,
                    int(height),
                    int(width),
                    (module.kernel_size[0], module.kernel_size[1]),
                    (int(output.shape[2]), int(output.shape[3])),
                    module.stride[0],
                    module.groups,
                )
            layers.append(row)

        return hook

    for label, module in model.named_modules():
        if operator_of(module):
            handles.append(module.register_forward_hook(note(label, module)))
    training = model.training
    try:
        model.eval()(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Workload(name, layers)
