"""Channel masks: adversarial neuron pruning and reconstructive neuron pruning."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import BATCH_NORM, Context, Defense
from backdoor_ft.defenses.pruning import channel_layers, measure, silence, split_for_choice
from backdoor_ft.engine import batches
from backdoor_ft.errors import InputError


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


def prune_by_mask(
    model: nn.Module,
    where: list[tuple[str, nn.Module]],
    masks: list[Tensor],
    held: LabeledData,
    highest: float,
    max_drop: float,
    context: Context,
) -> nn.Module:
    """Silence channels under the largest threshold that keeps accuracy within `max_drop`."""
    start, best, count = measure(model, held), copy.deepcopy(model.state_dict()), 0
    for threshold in torch.arange(0.05, highest + 1e-6, 0.05).tolist():
        total = 0
        for (_, module), mask in zip(where, masks):
            chosen = torch.nonzero(mask <= threshold)[:, 0]
            silence(module, chosen)
            total += len(chosen)
        if measure(model, held) < start - max_drop:
            break
        best, count = copy.deepcopy(model.state_dict()), total
    model.load_state_dict(best)
    context.notes.append(f"{count} of {sum(len(m) for m in masks)} channels pruned")
    return model


@dataclass(frozen=True)
class ANP(Defense):
    """Adversarial neuron pruning (Wu & Wang 2021): masks trained against perturbed neurons."""

    name: ClassVar[str] = "anp"
    epsilon: float = 0.4
    alpha: float = 0.2
    steps: int = 300
    lr: float = 0.2
    highest: float = 0.9
    max_drop: float = 0.05
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Train the masks, then prune along a sweep of thresholds."""
        data, held = split_for_choice(clean, context)
        where = owners(model)
        model.eval()
        one = [m.weight.detach().new_ones(len(m.weight)) for _, m in where]  # type: ignore
        masks = [o.clone().requires_grad_() for o in one]
        optimizer = torch.optim.SGD(masks, self.lr * context.lr_scale, momentum=0.9)
        order = batches(len(data), self.batch_size, context.seed, 0)
        for step in range(self.steps):
            index = next(order)
            x, y = data.inputs[index], data.labels[index]
            noise = [
                ((2 * torch.rand_like(o) - 1) * self.epsilon).requires_grad_() for o in one * 2
            ]
            n = len(one)
            weight = [m.detach() + d for m, d in zip(masks, noise[:n])]
            bias = [o + d for o, d in zip(one, noise[n:])]
            loss = F.cross_entropy(functional_call(model, scaled(where, weight, bias), x), y)
            gradients = torch.autograd.grad(loss, noise, allow_unused=True)
            worst = [
                (d.detach() + self.epsilon * (g.sign() if g is not None else 0)).clamp(
                    -self.epsilon, self.epsilon
                )
                for d, g in zip(noise, gradients)
            ]
            natural = F.cross_entropy(functional_call(model, scaled(where, masks, one), x), y)
            weight = [m + d for m, d in zip(masks, worst[:n])]
            bias = [o + d for o, d in zip(one, worst[n:])]
            robust = F.cross_entropy(functional_call(model, scaled(where, weight, bias), x), y)
            loss = self.alpha * natural + (1 - self.alpha) * robust
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for m in masks:
                    m.clamp_(0, 1)
            context.log.append({"step": step, "lr": self.lr, "loss": float(loss.detach())})
        found = [m.detach() for m in masks]
        return prune_by_mask(model, where, found, held, self.highest, self.max_drop, context)


@dataclass(frozen=True)
class RNP(Defense):
    """Reconstructive neuron pruning (Li et al. 2023): unlearn clean data, recover by masks."""

    name: ClassVar[str] = "rnp"
    unlearn_lr: float = 0.01
    unlearn_accuracy: float = 0.2
    unlearn_steps: int = 200
    recover_lr: float = 0.2
    recover_steps: int = 200
    alpha: float = 0.2
    highest: float = 0.9
    max_drop: float = 0.05
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Unlearn a copy, train masks that bring it back, prune what the masks refuse."""
        data, held = split_for_choice(clean, context)
        unlearned = copy.deepcopy(model).train()
        ascent = torch.optim.SGD(unlearned.parameters(), self.unlearn_lr * context.lr_scale, 0.9)
        order = batches(len(data), self.batch_size, context.seed, 0)
        for step in range(self.unlearn_steps):
            index = next(order)
            loss = F.cross_entropy(unlearned(data.inputs[index]), data.labels[index])
            ascent.zero_grad()
            (-loss).backward()
            nn.utils.clip_grad_norm_(unlearned.parameters(), 20)
            ascent.step()
            if step % 5 == 4 and measure(unlearned, data) <= self.unlearn_accuracy:
                break
        unlearned.eval()
        where = owners(unlearned)
        masks = [m.weight.detach().new_ones(len(m.weight)).requires_grad_() for _, m in where]  # type: ignore
        one = [torch.ones_like(m) for m in masks]
        optimizer = torch.optim.SGD(masks, self.recover_lr, momentum=0.9)
        for step in range(self.recover_steps):
            index = next(order)
            logits = functional_call(unlearned, scaled(where, masks, one), data.inputs[index])
            sparse = sum((m.abs().sum() for m in masks), torch.zeros(())) / sum(map(len, masks))
            loss = F.cross_entropy(logits, data.labels[index]) + self.alpha * sparse
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for m in masks:
                    m.clamp_(0, 1)
            context.log.append({"step": step, "lr": self.recover_lr, "loss": float(loss.detach())})
        found = [m.detach() for m in masks]
        return prune_by_mask(
            model, owners(model), found, held, self.highest, self.max_drop, context
        )
