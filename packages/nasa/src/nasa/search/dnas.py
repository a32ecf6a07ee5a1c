"""Differentiable search: a masked Gumbel softmax over the best candidates (Eq. 5 to 7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasa.arch import Architecture
from nasa.data import LabelledImages
from nasa.search.costs import CostTable
from nasa.search.result import SearchResult
from nasa.supernet import Supernet
from nasa.training import (
    History,
    Progress,
    Recipe,
    check_finite,
    clip_gradients,
    load_checkpoint,
    save_checkpoint,
)


@dataclass(frozen=True)
class DNAS:
    """Masked differentiable search.

    Attributes
    ----------
    recipe : Recipe
        Weight steps.
    active : int or None
        Candidates per cell that take part in a step, k; None: all of them (FBNet's soft search).
    architecture_rate : float
        Adam's learning rate for the architecture parameters.
    temperature, temperature_decay : float
        tau at the first epoch, and its factor per epoch.
    cost_weight : float
        lambda; the cost is divided by that of the uniform mixture first, so that 1 weighs the
        hardware as much as the cross entropy of one nat.
    offset : {"proxyless", "none"}
        Rescale the active parameters after a step so that inactive probabilities stay
        (ProxylessNAS).
    mixture : {"gumbel", "raw"}
        Weights of the active candidates: Eq. 6 with noise and temperature, or the softmax of the
        raw parameters, as the authors' code computes them.
    """

    recipe: Recipe
    active: int | None = 2
    architecture_rate: float = 3e-4
    temperature: float = 5.0
    temperature_decay: float = 0.956
    cost_weight: float = 0.1
    offset: Literal["proxyless", "none"] = "proxyless"
    mixture: Literal["gumbel", "raw"] = "gumbel"

    def __post_init__(self) -> None:
        if self.active is not None and self.active < 1:
            raise ValueError(f"active={self.active}: at least 1, or None for all")
        if self.temperature <= 0 or not 0 < self.temperature_decay <= 1:
            raise ValueError(
                f"temperature={self.temperature}, temperature_decay={self.temperature_decay}: "
                "need a positive temperature and a factor in (0, 1]"
            )
        for name, allowed in (("offset", ("proxyless", "none")), ("mixture", ("gumbel", "raw"))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: allowed are {', '.join(allowed)}"
                )

    def run(
        self,
        supernet: Supernet,
        data: LabelledImages,
        costs: CostTable,
        *,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> SearchResult:
        """Search; half of the data trains weights, half the architecture (Eq. 5).

        Resumes from the checkpoint if it exists, with the same result.
        """
        recipe = self.recipe
        train, validation = data.split(0.5, seed)
        alphas = [
            nn.Parameter(torch.full((len(cell.candidates),), 1e-3)) for cell in supernet.space.cells
        ]
        weights = recipe.optimizer(supernet.parameters())
        architecture = torch.optim.Adam(
            alphas, lr=self.architecture_rate, betas=(0.5, 0.999), weight_decay=0.0
        )
        reference = costs.expected([torch.full_like(a, 1 / len(a)) for a in alphas]).item()
        history, first = History(), 0
        identity: dict[str, Any] = {
            "space": repr(supernet.space),
            "search": repr(self),
            "metric": costs.metric,
            "seed": seed,
        }
        if checkpoint and (state := load_checkpoint(checkpoint, "search", identity)):
            supernet.load_state_dict(state["model"])
            weights.load_state_dict(state["weights"])
            architecture.load_state_dict(state["architecture"])
            for alpha, value in zip(alphas, state["alphas"], strict=True):
                alpha.data.copy_(value)
            history.rows, first = state["history"], state["epoch"]
        steps = -(-len(train) // recipe.batch_size)
        for epoch in range(first, recipe.epochs):
            supernet.train()
            tau = self.temperature * self.temperature_decay**epoch
            total, seen = 0.0, 0
            pairs = zip(
                train.batches(recipe.batch_size, seed * 100003 + 2 * epoch),
                validation.batches(recipe.batch_size, seed * 100003 + 2 * epoch + 1),
                strict=False,
            )
            for step, ((images, labels), (images_v, labels_v)) in enumerate(pairs):
                source = torch.Generator().manual_seed(seed * 1_000_003 + epoch * 10_007 + step)
                # weights on one half
                active, mixture = sample(alphas, self.active, tau, self.mixture, source)
                for group in weights.param_groups:
                    group["lr"] = recipe.rate((epoch + step / steps) / recipe.epochs)
                weights.zero_grad(set_to_none=True)
                outputs = supernet(images, active, [m.detach() for m in mixture])
                loss = nn.functional.cross_entropy(outputs, labels)
                check_finite(loss, f"epoch {epoch} of the search", checkpoint)
                loss.backward()
                clip_gradients(supernet, recipe.clip_norm, recipe.clip)
                weights.step()
                total, seen = total + loss.item() * len(labels), seen + len(labels)
                # architecture on the other
                active, mixture = sample(alphas, self.active, tau, self.mixture, source)
                architecture.zero_grad(set_to_none=True)
                outputs = supernet(images_v, active, mixture)
                cost = costs.expected(
                    [_spread(a, i, m) for a, i, m in zip(alphas, active, mixture, strict=True)]
                )
                objective = nn.functional.cross_entropy(outputs, labels_v)
                objective = objective + self.cost_weight * cost / reference
                before = [a.detach().clone() for a in alphas]
                gradients = torch.autograd.grad(objective, alphas, allow_unused=True)
                for alpha, gradient in zip(alphas, gradients, strict=True):
                    alpha.grad = gradient if gradient is not None else torch.zeros_like(alpha)
                architecture.step()
                restore(alphas, before, active, self.offset == "proxyless")
            row = {
                "epoch": epoch,
                "loss": total / seen,
                "expected_cost": costs.expected([a.detach().softmax(0) for a in alphas]).item(),
                "entropy": float(
                    torch.stack(
                        [torch.distributions.Categorical(logits=a).entropy() for a in alphas]
                    )
                    .mean()
                    .item()
                ),
            }
            history.rows.append(row)
            if checkpoint:
                state = {
                    "kind": "search",
                    "identity": identity,
                    "model": supernet.state_dict(),
                    "weights": weights.state_dict(),
                    "architecture": architecture.state_dict(),
                    "alphas": [a.detach() for a in alphas],
                    "history": history.rows,
                    "epoch": epoch + 1,
                }
                save_checkpoint(checkpoint, state)
            if progress:
                progress(row)
        best = Architecture(supernet.space, tuple(int(a.argmax()) for a in alphas))
        probabilities = [a.detach().softmax(0).tolist() for a in alphas]
        return SearchResult("dnas", best, history, probabilities=probabilities)


def sample(
    alphas: list[nn.Parameter],
    active: int | None,
    tau: float,
    mixture: Literal["gumbel", "raw"],
    generator: torch.Generator,
) -> tuple[list[list[int]], list[Tensor]]:
    """Draw the active candidates of each cell and their differentiable weights (Eq. 6 and 7)."""
    indices, weights = [], []
    for alpha in alphas:
        uniform = torch.rand(alpha.shape, generator=generator).clamp_min(1e-20)
        noise = -torch.log((-torch.log(uniform)).clamp_min(1e-20))
        # the softmaxes below ignore the constant that log_softmax would subtract; without it the
        # gradient of an inactive parameter is exactly zero
        noisy = alpha + noise
        k = len(alpha) if active is None else min(active, len(alpha))
        chosen = torch.topk(noisy.detach(), k).indices.sort().values
        logits = alpha[chosen] if mixture == "raw" else noisy[chosen] / tau
        indices.append(chosen.tolist())
        weights.append(torch.softmax(logits, 0))
    return indices, weights


@torch.no_grad()
def restore(
    alphas: list[nn.Parameter], before: list[Tensor], active: list[list[int]], offset: bool
) -> None:
    """Undo what a step did to inactive parameters; shift the active ones (ProxylessNAS).

    Adam moves a parameter without gradient by its momentum: inactive parameters get their old value
    back. The offset keeps the sum of the active exponentials, and so every inactive probability.
    """
    for alpha, old, indices in zip(alphas, before, active, strict=True):
        chosen = torch.tensor(indices)
        new = alpha[chosen].clone()
        if offset:
            new += torch.logsumexp(old[chosen], 0) - torch.logsumexp(new, 0)
        alpha.copy_(old)
        alpha[chosen] = new


def _spread(alpha: Tensor, indices: list[int], weights: Tensor) -> Tensor:
    """Return probabilities over all candidates, zero outside the active ones."""
    return torch.zeros_like(alpha).scatter(0, torch.tensor(indices), weights)
