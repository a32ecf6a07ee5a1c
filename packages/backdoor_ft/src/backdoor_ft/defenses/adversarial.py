"""Unlearning against perturbations that are searched: I-BAU and SAU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import Context, Defense
from backdoor_ft.engine import draw
from backdoor_ft.errors import DivergedError, InputError

Loss = Callable[[Tensor, list[Tensor]], Tensor]


def hypergradient(
    inner: Loss, outer: Loss, delta: Tensor, parameters: list[Tensor], lr: float, steps: int
) -> list[Tensor]:
    """Return d outer(delta*(theta), theta) / d theta by fixed-point implicit differentiation.

    The inner problem is solved by delta <- delta - lr d inner / d delta, whose fixed point is
    delta*. With v solving v = J^T v + d outer / d delta, J the Jacobian of that map, the answer is
    d outer / d theta + (d map / d theta)^T v (Zeng et al. 2022; Grazzi et al. 2020).

    Parameters
    ----------
    inner, outer : losses of (delta, parameters)
    delta : solution of the inner problem
    parameters : theta
    lr : of the inner problem's map
    steps : fixed-point iterations
    """
    delta = delta.detach().requires_grad_()
    theta = [p.detach().requires_grad_() for p in parameters]
    (slope,) = torch.autograd.grad(inner(delta, theta), delta, create_graph=True)
    step = delta - lr * slope
    value = outer(delta, theta)
    direct, *rest = torch.autograd.grad(value, [delta, *theta], allow_unused=True)
    direct = torch.zeros_like(delta) if direct is None else direct
    v = direct.clone()
    for _ in range(steps):
        (moved,) = torch.autograd.grad(step, delta, v, retain_graph=True)
        v = moved + direct
    implicit = torch.autograd.grad(step, theta, v, allow_unused=True)
    out = []
    for p, a, b in zip(theta, rest, implicit):
        total = torch.zeros_like(p)
        out.append(total + (0 if a is None else a) + (0 if b is None else b))
    return out


def _images_only(name: str, clean: LabeledData) -> None:
    if clean.is_text:
        raise InputError(
            f"method={name!r} perturbs pixels: token ids have none; use superft or fst"
        )


@dataclass(frozen=True)
class IBAU(Defense):
    """I-BAU (Zeng et al. 2022): minimax with an implicit hypergradient.

    A shared perturbation maximises the loss; the model is trained on it by Adam, through the
    hypergradient of `fixed_point` iterations. Rounds, steps and rates are the authors': five times
    over 5,000 images in batches of 100.

    Attributes
    ----------
    rounds : of searching a perturbation and unlearning it
    inner_steps, inner_lr, penalty : search; weight of the squared norm
    radius : largest Euclidean norm of the perturbation
    outer_steps, outer_lr : unlearning by Adam
    patched : share of a batch that carries the perturbation; the authors take .01
    fixed_point : iterations of the hypergradient
    """

    name: ClassVar[str] = "ibau"
    rounds: int = 5
    inner_steps: int = 50
    inner_lr: float = 10.0
    penalty: float = 1e-3
    radius: float = 2.0
    outer_steps: int = 50
    outer_lr: float = 1e-3
    patched: float = 0.1
    fixed_point: int = 5
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Alternate between the perturbation and the model."""
        _images_only(self.name, clean)
        # the hypergradient differentiates twice, which the fused attention kernels cannot
        with sdpa_kernel(SDPBackend.MATH):
            return self._alternate(model, clean, context)

    def _alternate(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        model.eval()
        names = [n for n, _ in model.named_parameters()]
        parameters: list[Tensor] = [p for _, p in model.named_parameters()]
        optimizer = torch.optim.Adam(parameters, self.outer_lr * context.lr_scale)
        device = parameters[0].device
        batch = draw(clean, self.batch_size, context.seed, device)
        for _ in range(self.rounds):
            delta = torch.zeros(clean.inputs.shape[1:], device=device, requires_grad=True)
            for _ in range(self.inner_steps):
                x, y = next(batch)
                loss = -F.cross_entropy(model(x + delta), y) + self.penalty * delta.square().sum()
                (slope,) = torch.autograd.grad(loss, delta)
                delta = (delta - self.inner_lr * slope).detach()
                delta = (
                    delta * min(1.0, self.radius / (float(delta.norm()) + 1e-12))
                ).requires_grad_()
            for _ in range(self.outer_steps):
                x, y = next(batch)

                def inner(d: Tensor, theta: list[Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                    logits = functional_call(model, dict(zip(names, theta)), (x + d,))
                    return -F.cross_entropy(logits, y) + self.penalty * d.square().sum()

                def outer(d: Tensor, theta: list[Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                    count = max(int(self.patched * len(x)), 1)
                    both = torch.cat((x[:count] + d, x[count:]))
                    logits = functional_call(model, dict(zip(names, theta)), (both,))
                    return F.cross_entropy(logits, y)

                found = hypergradient(inner, outer, delta, parameters, 0.1, self.fixed_point)
                for p, g in zip(parameters, found):
                    p.grad = g
                nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=False)
                optimizer.step()
                with torch.no_grad():
                    loss = F.cross_entropy(model(x + delta), y)
                if not bool(torch.isfinite(loss)):
                    raise DivergedError("the loss on the perturbed batch is not finite")
                context.log.append(
                    {"step": len(context.log), "lr": self.outer_lr, "loss": float(loss)}
                )
        return model


@dataclass(frozen=True)
class SAU(Defense):
    """SAU (Wei et al. 2023): unlearn the adversarial examples that victim and repair share.

    Attributes
    ----------
    epsilon, ascent_steps, ascent_lr : L-infinity ball and search of the examples
    beta : weights of the examples' search: mistake of each model, agreement of both
    weights : of clean loss, adversarial loss and the loss on shared examples
    """

    name: ClassVar[str] = "sau"
    epsilon: float = 0.2
    ascent_steps: int = 5
    ascent_lr: float = 0.2
    beta: tuple[float, float] = (0.01, 1.0)
    weights: tuple[float, float, float] = (1.0, 0.0, 1.0)
    lr: float = 1e-4
    steps: int = 100
    batch_size: int = 128

    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Alternate between shared examples and unlearning them."""
        _images_only(self.name, clean)
        victim = copy.deepcopy(model).eval()
        for parameter in victim.parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.Adam(model.parameters(), self.lr * context.lr_scale)
        batch = draw(clean, self.batch_size, context.seed, next(model.parameters()).device)
        for step in range(self.steps):
            x, y = next(batch)
            model.eval()
            delta = torch.zeros_like(x)
            for _ in range(self.ascent_steps):
                delta.requires_grad_()
                p, q = model(x + delta).softmax(1), victim(x + delta).softmax(1)
                middle = ((p + q) / 2).clamp(min=1e-12).log()
                apart = F.kl_div(middle, p, reduction="batchmean") + F.kl_div(
                    middle, q, reduction="batchmean"
                )
                wrong = -(1 - p.gather(1, y[:, None]) + 1e-6).log().mean()
                wrong = wrong - (1 - q.gather(1, y[:, None]) + 1e-6).log().mean()
                goal = -self.beta[0] * wrong - self.beta[1] * apart / 2
                goal = goal + (F.cross_entropy(model(x + delta), y) * self.beta[0])
                (slope,) = torch.autograd.grad(goal, delta)
                delta = (delta + self.ascent_lr * slope.sign()).clamp(-self.epsilon, self.epsilon)
                delta = ((x + delta).clamp(0, 1) - x).detach()
            model.train()
            logits, attacked = model(x), model(x + delta)
            with torch.no_grad():
                told = victim(x + delta).argmax(1)
            shared = (told == attacked.argmax(1)) & (told != y)
            loss = self.weights[0] * F.cross_entropy(logits, y)
            if self.weights[1]:
                loss = loss + self.weights[1] * F.cross_entropy(attacked, y)
            if bool(shared.any()):
                share = attacked[shared].softmax(1).gather(1, told[shared][:, None])
                loss = loss - self.weights[2] * (1 - share + 1e-6).log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = float(loss.detach())
            if value != value:
                raise DivergedError(f"the loss is {value} at step {step}")
            context.log.append({"step": step, "lr": self.lr, "loss": value})
        return model
