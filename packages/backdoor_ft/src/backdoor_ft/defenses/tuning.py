"""Fine-tuning and its controls: super-fine-tuning, plain, head only, statistics only, scratch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.augment import NO_AUGMENT, Augment
from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import BATCH_NORM, Context, Defense
from backdoor_ft.engine import backward, draw, plain_update, sgd, step_optimizer
from backdoor_ft.errors import InputError
from backdoor_ft.models import head_of
from backdoor_ft.schedules import CosineConfig, SuperFineTuneConfig, preset

# (model, inputs, labels, step) -> loss
Lesson = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """Return a model's logits, of which no gradient goes back."""
    found: Tensor = model(x)
    return found


def apart(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return the distance of softened answers from wanted ones (Hinton et al. 2015)."""
    found = (logits / temperature).log_softmax(1)
    target = (wanted / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(found, target, reduction="batchmean", log_target=True)


def mixtures(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mix every sample with another one of the batch.

    Returns
    -------
    mixed samples, the other samples' labels, and the share of the own sample, uniform in [0, 1)
    """
    share = torch.rand(len(x), generator=generator, device="cpu").to(x.device)
    other = torch.randperm(len(x), generator=generator, device="cpu").to(x.device)
    wide = share.view(-1, *[1] * (x.ndim - 1))
    return wide * x + (1 - wide) * x[other], y[other], share


@dataclass(frozen=True)
class SuperFT(Defense):
    """Super-fine-tuning (Sha et al. 2022): whole model, clean data, two cyclic phases.

    Attributes
    ----------
    lr_base ... batch_size : as in :class:`backdoor_ft.schedules.SuperFineTuneConfig`
    carry_momentum : keep the momentum buffers over the change of phase
    augment : of the clean data
    average : part of phase 1 after which the weights at the end of every cycle are averaged
        (Izmailov et al. 2018), with the statistics of batch normalisation estimated anew; None
        keeps the last weights, as the paper does
    clip : largest norm of the gradient, for networks that the peak rate breaks; None for none
    distill, temperature : share of the loss of phase 2 that asks for the victim's softened
        answers to the same clean images, which hold more of the task than few labels
    mixup : in phase 1, beside each batch its convex mixtures with their mixed labels (Zhang et al.
        2018), as half of the loss; not for token ids. False is the paper's loss
    """

    name: ClassVar[str] = "superft"
    lr_base: float = 3e-4
    lr_max1: float = 1.5
    lr_max2: float = 0.1
    phase1: int = 240
    phase2: int = 60
    ramp: tuple[int, int] = (10, 10)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    carry_momentum: bool = True
    augment: Augment = NO_AUGMENT
    average: float | None = None
    clip: float | None = None
    distill: float = 0.0
    temperature: float = 3.0
    mixup: bool = True

    def __post_init__(self) -> None:
        if self.average is not None and not 0 <= self.average <= 1:
            raise InputError(f"average={self.average} is not allowed: 0 to 1, or None")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip={self.clip} is not allowed: above 0, or None")
        if not 0 <= self.distill <= 1:
            raise InputError(f"distill={self.distill} is not allowed: 0 to 1")

    @staticmethod
    def from_preset(name: str) -> SuperFT:
        """Return the defence with a preset of :data:`backdoor_ft.schedules.PRESETS`."""
        own = {"ramp": preset(name).ramp, "mixup": name == "mini"}
        return SuperFT(**{**asdict(preset(name)), **own})

    @property
    def schedule(self) -> SuperFineTuneConfig:
        """The learning rates."""
        return SuperFineTuneConfig(
            self.lr_base,
            self.lr_max1,
            self.lr_max2,
            self.phase1,
            self.phase2,
            self.ramp,
            self.momentum,
            self.weight_decay,
            self.batch_size,
        )

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Forget at large rates, then restore at small ones."""
        schedule = self.schedule
        parts = (
            [(0, schedule.steps)]
            if self.carry_momentum
            else [(0, self.phase1), (self.phase1, schedule.steps)]
        )

        def limit(_optimizer: object, _args: object, _options: object) -> None:
            nn.utils.clip_grad_norm_(model.parameters(), float(self.clip or 0))

        lesson = self.lesson(copy.deepcopy(model).eval(), clean, context)
        mean = [] if self.average is None else [torch.zeros_like(p) for p in model.parameters()]
        done = taken = 0

        def update(m: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            nonlocal done, taken
            if lesson is None or not self.teaches(done):
                loss = plain_update(m, x, y, optimizer)
            else:
                optimizer.zero_grad(set_to_none=True)
                taught = lesson(m, x, y, done)
                backward(taught)
                step_optimizer(optimizer)
                loss = taught.detach()
            done += 1
            late = self.average is not None and done > self.average * self.phase1
            if late and (done % sum(self.ramp) == 0 or done == schedule.steps):
                taken += 1
                with torch.no_grad():
                    for kept, p in zip(mean, model.parameters()):
                        kept.lerp_(p, 1 / taken)
            return loss

        for first, last in parts:
            optimizer = sgd(model.parameters(), self.momentum, self.weight_decay)
            if self.clip is not None:
                optimizer.register_step_pre_hook(limit)
            context.fit(
                model,
                clean,
                steps=last - first,
                batch_size=self.batch_size,
                rate=lambda step, first=first: schedule.learning_rate(first + step),  # type: ignore[misc]
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                update=update,
                augment=self.augment,
                optimizer=optimizer,
            )
        if taken:
            with torch.no_grad():
                for kept, p in zip(mean, model.parameters()):
                    p.copy_(kept)
            estimate_statistics(model, clean, self.batch_size, context.seed)
        return model

    def teaches(self, step: int) -> bool:
        """Whether a step takes the loss of :meth:`lesson`, not the plain one."""
        return self.mixup if step < self.phase1 else self.distill > 0

    def lesson(self, victim: nn.Module, clean: LabeledData, context: Context) -> Lesson | None:
        """Return the loss of the steps that have another than the plain one, if there are any."""
        if clean.is_text and not self.distill:
            return None

        def mixed(m: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
            draws = torch.Generator().manual_seed((context.seed << 20) + step)
            both, other, share = mixtures(x, y, draws)
            logits, blended = m(torch.cat((x, both))).chunk(2)
            first = share * F.cross_entropy(blended, y, reduction="none")
            second = (1 - share) * F.cross_entropy(blended, other, reduction="none")
            return (F.cross_entropy(logits, y) + (first + second).mean()) / 2

        def loss(m: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
            if step < self.phase1:
                return F.cross_entropy(m(x), y) if clean.is_text else mixed(m, x, y, step)
            logits = m(x)
            taught = apart(logits, answers(victim, x), self.temperature)
            return (1 - self.distill) * F.cross_entropy(logits, y) + self.distill * taught

        return loss


@dataclass(frozen=True)
class FT(Defense):
    """Plain fine-tuning of the whole model: BackdoorBench's cosine, or a constant rate."""

    name: ClassVar[str] = "ft"
    lr: float = 0.01
    steps: int = 400
    constant: bool = False
    batch_size: int = 128
    weight_decay: float = 5e-4
    augment: Augment = NO_AUGMENT

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Train on the clean data."""
        rate = CosineConfig(self.lr, self.steps, self.constant).learning_rate
        context.fit(
            model,
            clean,
            steps=self.steps,
            batch_size=self.batch_size,
            rate=rate,
            weight_decay=self.weight_decay,
            augment=self.augment,
        )
        return model


@dataclass(frozen=True)
class HeadOnly(Defense):
    """Control: only the classifier is tuned (linear probing); it is known to fail."""

    name: ClassVar[str] = "head_only"
    lr: float = 0.01
    steps: int = 400
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Train the last linear layer on frozen features."""
        _, head = head_of(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in head.parameters():
            parameter.requires_grad_(True)
        frozen = [(m, m.momentum) for m in model.modules() if isinstance(m, BATCH_NORM)]
        for module, _ in frozen:
            module.momentum = 0.0  # the running statistics stay the victim's
        rate = CosineConfig(self.lr, self.steps).learning_rate
        context.fit(model, clean, steps=self.steps, batch_size=self.batch_size, rate=rate)
        for module, momentum in frozen:
            module.momentum = momentum
        return model


@dataclass(frozen=True)
class BNRecalibration(Defense):
    """Control: only the running statistics of batch normalisation are estimated again."""

    name: ClassVar[str] = "bn_recalibration"
    needs: ClassVar[frozenset[str]] = frozenset({"clean_data", "batch_norm"})
    steps: int = 100
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Average the statistics of the clean batches; no weight changes."""
        return estimate_statistics(model, clean, self.batch_size, context.seed, self.steps)


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, clean: LabeledData, batch_size: int, seed: int, steps: int | None = None
) -> nn.Module:
    """Estimate the running statistics of batch normalisation anew, on two epochs or `steps`."""
    layers = [m for m in model.modules() if isinstance(m, BATCH_NORM)]
    if not layers:
        return model
    kept = [m.momentum for m in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    batch = draw(clean, batch_size, seed, next(model.parameters()).device)
    for _ in range(steps or 2 * max(len(clean) // batch_size, 1)):
        model(next(batch)[0])
    for layer, momentum in zip(layers, kept):
        layer.momentum = momentum
    return model


def reinitialise(model: nn.Module) -> nn.Module:
    """Return a copy with fresh weights by each layer's own rule; other parameters get small noise.

    Draws from torch's global generator: seed it before.
    """
    fresh = copy.deepcopy(model)
    covered: set[int] = set()
    for module in fresh.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        if callable(reset):
            reset()
            covered |= {id(p) for p in module.parameters(recurse=False)}
    with torch.no_grad():
        for parameter in fresh.parameters():
            if id(parameter) not in covered:
                parameter.normal_(std=0.02)
    return fresh


@dataclass(frozen=True)
class Scratch(Defense):
    """Control: the same architecture trained anew on the clean data with the same compute."""

    name: ClassVar[str] = "scratch"
    lr: float = 0.05
    steps: int = 400
    batch_size: int = 128
    weight_decay: float = 5e-4
    augment: Augment = NO_AUGMENT

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Train from fresh weights."""
        fresh = reinitialise(model)
        context.fit(
            fresh,
            clean,
            steps=self.steps,
            batch_size=self.batch_size,
            rate=CosineConfig(self.lr, self.steps).learning_rate,
            weight_decay=self.weight_decay,
            augment=self.augment,
        )
        return fresh
