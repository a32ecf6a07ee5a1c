"""Channel masks: adversarial neuron pruning and reconstructive neuron pruning."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import BATCH_NORM, Context, Defense
from backdoor_ft.defenses.pruning import channel_layers, measure, silence, split_for_choice
from backdoor_ft.engine import draw, sgd
from backdoor_ft.errors import InputError

# logits of the batch under factors of every channel's weight and, where given, bias
Network = Callable[..., Tensor]
MaskLoss = Callable[[Network, list[Tensor], Tensor], Tensor]


def owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what is masked: batch normalisations, or hidden layers of a network without."""
    found: list[tuple[str, nn.Module]] = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, BATCH_NORM) and m.weight is not None
    ]
    found = found or channel_layers(model)
    if not found:
        raise InputError("model has no channels to mask: a hidden layer is needed")
    return found


def scaled(
    where: list[tuple[str, nn.Module]], weight: list[Tensor], bias: list[Tensor]
) -> dict[str, Tensor]:
    """Return the parameters with every channel's weight and bias multiplied."""
    out = {}
    for (name, module), w, b in zip(where, weight, bias):
        own = module.weight
        shape = (-1,) + (1,) * (own.ndim - 1)  # type: ignore[operator]
        out[f"{name}.weight"] = own.detach() * w.reshape(shape)  # type: ignore[operator]
        if module.bias is not None:
            out[f"{name}.bias"] = module.bias.detach() * b  # type: ignore[operator]
    return out


def trained_masks(
    model: nn.Module,
    lr: float,
    batch: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    loss: MaskLoss,
    context: Context,
) -> list[Tensor]:
    """Return one factor in [0, 1] for the weight of every channel, trained on clean data.

    Batch normalisation takes the statistics of the batch, as the authors of both methods have it:
    with running statistics the perturbed network is far from any that was trained, and the masks
    shut channels that the task needs. The model's own statistics move; pass a copy.

    Parameters
    ----------
    model : copy of the network to mask
    lr : of SGD with momentum .9
    batch : inputs and labels
    steps : of the optimiser
    loss : of (network under factors of weight and bias, masks, labels)
    context : keeps the log
    """
    model.train()
    where = owners(model)
    one = [m.weight.detach().new_ones(len(m.weight)) for _, m in where]  # type: ignore
    masks = [o.clone().requires_grad_() for o in one]
    optimizer = torch.optim.SGD(masks, lr, momentum=0.9)
    for _ in range(steps):
        x, y = next(batch)

        def network(
            weight: list[Tensor], bias: list[Tensor] | None = None, x: Tensor = x
        ) -> Tensor:
            out: Tensor = functional_call(model, scaled(where, weight, bias or one), x)
            return out

        value = loss(network, masks, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            for m in masks:
                m.clamp_(0, 1)
        context.log.append({"step": len(context.log), "lr": lr, "loss": float(value.detach())})
    return [m.detach() for m in masks]


def prune_by_mask(
    model: nn.Module,
    masks: list[Tensor],
    held: LabeledData,
    highest: float,
    max_drop: float,
    context: Context,
) -> nn.Module:
    """Silence channels under the largest threshold that keeps accuracy within `max_drop`.

    What a mask of 0 silenced when the masks were trained is silenced here: the channel's weight;
    its bias stays.
    """
    start, best, count = measure(model, held), copy.deepcopy(model.state_dict()), 0
    for threshold in torch.arange(0, highest + 1e-6, 0.05, device="cpu").tolist():
        total = 0
        for (_, module), mask in zip(owners(model), masks):
            chosen = torch.nonzero(mask.cpu() <= threshold + 1e-9)[:, 0]
            silence(module, chosen, bias=False)
            total += len(chosen)
        if measure(model, held) >= start - max_drop:
            best, count = copy.deepcopy(model.state_dict()), total
    model.load_state_dict(best)
    context.notes.append(f"{count} of {sum(len(m) for m in masks)} channels pruned")
    return model


@dataclass(frozen=True)
class ANP(Defense):
    """Adversarial neuron pruning (Wu & Wang 2021): masks trained against perturbed neurons.

    Attributes
    ----------
    epsilon : largest relative change of a channel's weight and bias
    alpha : share of the loss without perturbation
    steps, lr : of the masks; the authors take 2,000 steps
    highest, max_drop : largest threshold, and accuracy that pruning may cost
    """

    name: ClassVar[str] = "anp"
    epsilon: float = 0.4
    alpha: float = 0.2
    steps: int = 400
    lr: float = 0.2
    highest: float = 0.9
    max_drop: float = 0.1
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Train the masks, then prune along a sweep of thresholds."""
        data, held = split_for_choice(clean, context)
        device = next(model.parameters()).device
        masks = trained_masks(
            copy.deepcopy(model),
            self.lr * context.lr_scale,
            draw(data, self.batch_size, context.seed, device),
            self.steps,
            self.loss,
            context,
        )
        return prune_by_mask(model, masks, held, self.highest, self.max_drop, context)

    def loss(self, network: Network, masks: list[Tensor], y: Tensor) -> Tensor:
        """Return alpha x natural + (1 - alpha) x robust loss; one sign step finds the noise."""
        one, n = [torch.ones_like(m) for m in masks], len(masks)
        noise = [((2 * torch.rand_like(o) - 1) * self.epsilon).requires_grad_() for o in one * 2]

        def perturbed(masks: list[Tensor], noise: list[Tensor]) -> Tensor:
            weight = [m + d for m, d in zip(masks, noise[:n])]
            return F.cross_entropy(network(weight, [o + d for o, d in zip(one, noise[n:])]), y)

        # a layer without bias leaves its noise unused
        slopes = torch.autograd.grad(
            perturbed([m.detach() for m in masks], noise), noise, allow_unused=True
        )
        worst = [
            (d.detach() + self.epsilon * (0 if g is None else g.sign())).clamp(
                -self.epsilon, self.epsilon
            )
            for d, g in zip(noise, slopes)
        ]
        natural = F.cross_entropy(network(masks), y)
        return self.alpha * natural + (1 - self.alpha) * perturbed(masks, worst)


@dataclass(frozen=True)
class RNP(Defense):
    """Reconstructive neuron pruning (Li et al. 2023): unlearn clean data, recover by masks.

    Attributes
    ----------
    unlearn_lr, unlearn_steps : ascent on clean data, and the most steps of it
    unlearn_accuracy : of four batches in a row, at which the ascent ends
    recover_lr, recover_steps, alpha : of the masks, and the factor of their loss; 80 steps are the
        authors' 20 epochs of 500 images
    highest, max_drop : largest threshold, and accuracy that pruning may cost
    """

    name: ClassVar[str] = "rnp"
    unlearn_lr: float = 0.01
    unlearn_accuracy: float = 0.2
    unlearn_steps: int = 400
    recover_lr: float = 0.2
    recover_steps: int = 80
    alpha: float = 0.2
    highest: float = 0.9
    max_drop: float = 0.1
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Unlearn a copy, train masks that bring it back, prune what the masks refuse."""
        data, held = split_for_choice(clean, context)
        batch = draw(data, self.batch_size, context.seed, next(model.parameters()).device)
        unlearned = copy.deepcopy(model).train()
        ascent = sgd(unlearned.parameters())
        for group in ascent.param_groups:
            group["lr"] = self.unlearn_lr * context.lr_scale
        recent: deque[float] = deque(maxlen=4)
        for _ in range(self.unlearn_steps):
            x, y = next(batch)
            logits = unlearned(x)
            ascent.zero_grad()
            (-F.cross_entropy(logits, y)).backward()
            ascent.step()
            recent.append(float((logits.argmax(1) == y).float().mean()))
            if len(recent) == 4 and sum(recent) / 4 <= self.unlearn_accuracy:
                break
        masks = trained_masks(
            unlearned, self.recover_lr, batch, self.recover_steps, self.loss, context
        )
        return prune_by_mask(model, masks, held, self.highest, self.max_drop, context)

    def loss(self, network: Network, masks: list[Tensor], y: Tensor) -> Tensor:
        """Return alpha x cross-entropy of the masked network."""
        return self.alpha * F.cross_entropy(network(masks), y)
