"""Pruning channels: fine-pruning and channel Lipschitz pruning."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import BATCH_NORM, Context, Defense
from backdoor_ft.engine import predict
from backdoor_ft.errors import InputError
from backdoor_ft.models import head_of
from backdoor_ft.schedules import CosineConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def channel_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return convolutions and linear layers but the head, in the order of the modules."""
    _, head = head_of(model)
    return [
        (name, m)
        for name, m in model.named_modules()
        if type(m) in (nn.Conv2d, nn.Linear) and m is not head
    ]


@torch.no_grad()
def norm_after(model: nn.Module, inputs: Tensor) -> dict[nn.Module, nn.Module]:
    """Pair each convolution with the batch normalisation that reads its output.

    The pairs come from the data flow of one forward pass, not from the order of the modules, which
    is wrong for networks with pre-activation.
    """
    produced: list[tuple[Tensor, nn.Module]] = []
    pairs: dict[nn.Module, nn.Module] = {}

    def keep(module: nn.Module, _: object, out: Tensor) -> None:
        produced.append((out, module))

    def match(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for out, source in produced:
            if out is args[0]:
                pairs[source] = module

    handles = [
        m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.Conv2d)
    ] + [m.register_forward_pre_hook(match) for m in model.modules() if isinstance(m, BATCH_NORM)]
    try:
        predict(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return pairs


@torch.no_grad()
def silence(module: nn.Module, channels: Int[Tensor, " k"], bias: bool = True) -> None:
    """Set output channels of a layer, or of a normalisation, to zero, or only their weights."""
    module.weight[channels] = 0  # type: ignore[operator]
    if bias and module.bias is not None:
        module.bias[channels] = 0  # type: ignore[operator]


def measure(model: nn.Module, data: LabeledData) -> float:
    """Return accuracy."""
    return float((predict(model, data.inputs).argmax(1) == data.labels).float().mean())


def split_for_choice(clean: LabeledData, context: Context) -> tuple[LabeledData, LabeledData]:
    """Return (data to tune on, data to choose on)."""
    if context.val is not None or len(clean) < 2 * clean.num_classes:
        return clean, context.val or clean
    held, rest = clean.split(max(len(clean) // 5, 1), context.seed)
    return rest, held


@dataclass(frozen=True)
class FinePruning(Defense):
    """Fine-pruning (Liu et al. 2018): silence dormant channels of the last layer, then tune.

    Channels go in the order of their mean activation on clean data, until accuracy on held-out
    clean data has fallen by `max_drop`.
    """

    name: ClassVar[str] = "fine_pruning"
    max_drop: float = 0.1
    lr: float = 0.01
    steps: int = 300
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Prune and tune."""
        data, held = split_for_choice(clean, context)
        layers = channel_layers(model)
        if not layers:
            raise InputError("method='fine_pruning' needs a hidden convolution or linear layer")
        last = layers[-1][1]
        owner = norm_after(model, data.inputs[:2]).get(last, last)
        seen: list[Tensor] = []
        handle = owner.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().cpu()))
        predict(model, data.inputs)
        handle.remove()
        features = torch.cat(seen).relu()
        axes = [
            a for a in range(features.ndim) if a != (1 if features.ndim == 4 else features.ndim - 1)
        ]
        order = features.mean(axes).argsort()
        start = measure(model, held)
        kept = copy.deepcopy(model.state_dict())
        pruned = 0
        step = max(len(order) // 50, 1)
        for end in range(step, len(order), step):
            silence(owner, order[:end])
            if measure(model, held) < start - self.max_drop:
                break
            kept, pruned = copy.deepcopy(model.state_dict()), end
        model.load_state_dict(kept)
        context.notes.append(f"{pruned} of {len(order)} channels pruned")
        mask = order[:pruned]

        rate = CosineConfig(self.lr, self.steps).learning_rate
        context.fit(model, clean, steps=self.steps, batch_size=self.batch_size, rate=rate)
        silence(owner, mask)  # tuning must not bring them back
        return model


def channel_lipschitz(conv: nn.Conv2d, norm: nn.Module | None) -> Float[Tensor, " channels"]:
    """Return the spectral norm of each output channel's kernel, scaled by |gamma| / sigma."""
    weight = conv.weight.detach().flatten(2)  # [out, in, kh kw]
    bound: Tensor = torch.linalg.matrix_norm(weight, 2)
    if isinstance(norm, BATCH_NORM) and norm.running_var is not None:
        scale = 1 / torch.sqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.detach().abs()
        bound = bound * scale
    return bound


@dataclass(frozen=True)
class CLP(Defense):
    """Channel Lipschitz pruning (Zheng et al. 2022): no data beyond one forward pass.

    A channel goes when its Lipschitz bound exceeds mean + u standard deviations of its layer.
    """

    name: ClassVar[str] = "clp"
    needs: ClassVar[frozenset[str]] = frozenset({"batch_norm"})
    u: float = 3.0

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Silence the outliers of every layer."""
        pruned = 0
        for conv, norm in norm_after(model, clean.inputs[:2]).items():
            bound = channel_lipschitz(conv, norm)  # type: ignore[arg-type]
            outliers = torch.nonzero(bound > bound.mean() + self.u * bound.std())[:, 0]
            silence(norm, outliers)
            pruned += len(outliers)
        context.notes.append(f"{pruned} channels pruned")
        return model
