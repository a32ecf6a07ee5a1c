"""Training and fine-tuning: the authors' recipe, and one for a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitcod.adapters import logits
from vitcod.errors import InputError
from vitcod.patching import autoencoder_loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run; the defaults are the authors' stage 2 (section 1.5).

    Parameters
    ----------
    epochs, batch : of the run
    learning_rate, final_learning_rate : peak and end of the cosine
    warmup_epochs : linear from a hundredth of the peak
    weight_decay, label_smoothing : of AdamW and of the loss
    reconstruction : weight of the auto-encoder's loss
    distillation : weight of the KL divergence to a teacher, 0 to 1
    temperature : of the distillation
    """

    epochs: float = 100
    batch: int = 512
    learning_rate: float = 1e-5
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 5
    weight_decay: float = 1e-8
    label_smoothing: float = 0.1
    reconstruction: float = 1e-4
    distillation: float = 0.0
    temperature: float = 2.0

    @classmethod
    def autoencoder(cls) -> Recipe:
        """Return the authors' stage 1: the auto-encoder, 1e-4 to 5e-6."""
        return cls(learning_rate=1e-4, final_learning_rate=5e-6)

    @classmethod
    def cpu(cls, epochs: float = 2, learning_rate: float = 1e-3) -> Recipe:
        """Return a short run on a CPU: small batches, no smoothing, cosine to zero."""
        return cls(epochs, 64, learning_rate, 0.0, min(0.3, epochs / 4), 0.01, 0.0, 1e-4)


def batches(
    images: Tensor, labels: Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of one epoch."""
    for index in torch.randperm(len(images), generator=generator).split(size):
        yield images[index], labels[index]


def finetune(
    model: nn.Module,
    images: Float[Tensor, "count channels height width"],
    labels: Int[Tensor, " count"],
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train a model, patched or not, in place.

    Parameters
    ----------
    model : dense or patched
    images, labels : training data
    recipe : default `Recipe.cpu()`
    teacher : for distillation; usually the dense model
    seed : of the order of the images and of `augment`
    augment : called with a batch and the generator
    on_step : called with step, steps and loss

    Returns
    -------
    loss of every step

    Raises
    ------
    InputError
        Images and labels differ in number, or distillation without a teacher.
    """
    recipe = recipe or Recipe.cpu()
    if len(images) != len(labels) or not len(images):
        raise InputError(
            f"images has {len(images)} entries and labels {len(labels)}: as many, at least one"
        )
    if recipe.distillation and teacher is None:
        raise InputError(f"distillation={recipe.distillation} needs a teacher")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    per_epoch = math.ceil(len(images) / recipe.batch)
    steps = max(1, round(recipe.epochs * per_epoch))
    warmup = max(1, round(recipe.warmup_epochs * per_epoch))
    losses: list[float] = []
    model.train()
    while len(losses) < steps:
        for x, y in batches(images, labels, recipe.batch, generator):
            step = len(losses)
            progress = max(0, step - warmup) / max(1, steps - warmup)
            low, high = recipe.final_learning_rate, recipe.learning_rate
            rate = low + (high - low) * (1 + math.cos(math.pi * progress)) / 2
            rate *= min(1.0, (step + 1) / warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if augment is not None:
                x = augment(x, generator)
            out = logits(model, x)
            loss = nn.functional.cross_entropy(out, y, label_smoothing=recipe.label_smoothing)
            loss = loss + recipe.reconstruction * autoencoder_loss(model)
            if teacher is not None and recipe.distillation:
                with torch.no_grad():
                    target = torch.softmax(logits(teacher, x) / recipe.temperature, -1)
                log_p = torch.log_softmax(out / recipe.temperature, -1)
                soft = nn.functional.kl_div(log_p, target, reduction="batchmean")
                weight = recipe.distillation
                loss = (1 - weight) * loss + weight * recipe.temperature**2 * soft
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if on_step is not None:
                on_step(len(losses), steps, losses[-1])
            if len(losses) >= steps:
                break
    model.eval()
    return losses


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Top-1 accuracy, 0 to 1, in eval mode."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in zip(images.split(batch), labels.split(batch)):
            right += int((logits(model, x).argmax(-1) == y).sum())
    return right / len(images)
