"""Training of one network: clipping by group, batch-norm recalibration, checkpoints, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasa._files import write_with
from nasa.arch import Architecture
from nasa.data import LabelledImages
from nasa.network import HybridNet, operator_of
from nasa.nn import AdderConv2d
from nasa.supernet import SharedBlock

Clip = Literal["group", "global", "none"]
Progress = Callable[[dict[str, Any]], None]


class TrainingDivergedError(RuntimeError):
    """The loss is no longer finite; the message names the epoch and the last good checkpoint."""


def adder_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of adder layers."""
    found = [m.weight for m in model.modules() if isinstance(m, AdderConv2d)]
    return list(dict.fromkeys(found))


def clip_gradients(model: nn.Module, limit: float, mode: Clip = "group") -> float:
    """Clip the gradients' norm; return the norm before, of the parameters that were clipped.

    ``global`` clips all parameters together, as the authors' code does. An adder layer's gradient
    has the norm ``eta * sqrt(k)`` by construction, so that the global norm is the adders' and the
    convolutions' learning rate falls by an order of magnitude. ``group`` leaves adder weights out.
    """
    if mode not in ("group", "global", "none"):
        raise ValueError(f"clip={mode!r}: allowed are group, global, none")
    if mode == "none":
        return 0.0
    skip = {id(p) for p in adder_weights(model)} if mode == "group" else set()
    chosen = [p for p in model.parameters() if p.grad is not None and id(p) not in skip]
    return float(nn.utils.clip_grad_norm_(chosen, limit)) if chosen else 0.0


@torch.no_grad()
def recalibrate_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], Any] | None = None
) -> int:
    """Replace the running statistics by the average over the batches; return their number.

    Shared statistics are a mixture over all paths: a sub-network must be recalibrated before it is
    evaluated (at least 20 batches are advised).
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    training = model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    count = 0
    for images in batches:
        (forward or model)(images)
        count += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
    return count


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: LabelledImages,
    forward: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Return accuracy and cross entropy, in evaluation mode."""
    training = model.training
    model.eval()
    right, loss = 0, 0.0
    for images, labels in data.batches(batch_size):
        logits = (forward or model)(images)
        right += int((logits.argmax(1) == labels).sum())
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    model.train(training)
    return right / len(data), loss / len(data)


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    write_with(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: str | Path, kind: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Read a checkpoint, or None where there is none.

    Raises
    ------
    ValueError
        If it is of another kind, architecture, space, seed or recipe.
    """
    if not Path(path).exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises several types for a damaged file
        first = str(error).splitlines()[0]
        raise ValueError(f"checkpoint={str(path)!r} cannot be read: {first}") from None
    if not isinstance(state, dict) or state.get("kind") != kind:
        raise ValueError(f"checkpoint={str(path)!r} is no {kind} checkpoint")
    for name, value in identity.items():
        if state["identity"].get(name) != value:
            raise ValueError(
                f"checkpoint={str(path)!r} was written with "
                f"{name}={state['identity'].get(name)!r}, "
                f"this run has {value!r}: use another folder or the same settings"
            )
    return state


@dataclass(frozen=True)
class Recipe:
    """How a network is trained (section 5.1 of the paper for the defaults' names).

    Attributes
    ----------
    epochs, batch_size : int
    learning_rate : float
        0.05 for convolution and shift, 0.1 with adders in the paper.
    momentum, weight_decay : float
    clip : {"group", "global", "none"}
    clip_norm : float
    learning_rate_floor : float
        Where the cosine ends.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: Clip = "group"
    clip_norm: float = 5.0
    learning_rate_floor: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        """Return SGD with the recipe's settings."""
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def rate(self, progress: float) -> float:
        """Return the learning rate at a fraction of the training: a cosine."""
        cosine = 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
        return self.learning_rate_floor + (self.learning_rate - self.learning_rate_floor) * cosine


@dataclass
class History:
    """What happened per epoch; plain data."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def column(self, name: str) -> list[Any]:
        """Return one quantity over the epochs."""
        return [row[name] for row in self.rows]


def check_finite(loss: Tensor, where: str, checkpoint: str | Path | None) -> None:
    """Raise where the loss is NaN or infinite."""
    if not torch.isfinite(loss):
        kept = f"; the last good state is {checkpoint}" if checkpoint else ""
        raise TrainingDivergedError(
            f"the loss is {loss.item()} in {where}{kept}: lower the learning rate"
        )


def train_from_scratch(
    architecture: Architecture,
    train: LabelledImages,
    test: LabelledImages | None = None,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[HybridNet, History]:
    """Train the network of an architecture; resumes from the checkpoint if it exists.

    Parameters
    ----------
    architecture : Architecture
    train, test : LabelledImages
        ``test`` is evaluated once, at the end.
    recipe : Recipe
    seed : int
        Initialisation and order of the batches.
    checkpoint : path, optional
        Written after each epoch; a run that was killed continues from it, with the same result.
    progress : callable, optional
        Receives one mapping per epoch.

    Returns
    -------
    HybridNet, History

    Raises
    ------
    TrainingDivergedError
        If the loss is no longer finite.
    """
    recipe = recipe or Recipe()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = architecture.build()
    optimizer = recipe.optimizer(net.parameters())
    history, first = History(), 0
    identity = {"choices": list(architecture.choices), "seed": seed, "recipe": repr(recipe)}
    if checkpoint and (state := load_checkpoint(checkpoint, "training", identity)):
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history.rows, first = state["history"], state["epoch"]
    steps = -(-len(train) // recipe.batch_size)
    for epoch in range(first, recipe.epochs):
        net.train()
        total, seen = 0.0, 0
        for step, (images, labels) in enumerate(
            train.batches(recipe.batch_size, seed * 100003 + epoch)
        ):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate((epoch + step / steps) / recipe.epochs)
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(net(images), labels)
            check_finite(loss, f"epoch {epoch}", checkpoint)
            loss.backward()
            clip_gradients(net, recipe.clip_norm, recipe.clip)
            optimizer.step()
            total, seen = total + loss.item() * len(labels), seen + len(labels)
        row = {"epoch": epoch, "loss": total / seen}
        history.rows.append(row)
        if checkpoint:
            state = {
                "kind": "training",
                "identity": identity,
                "model": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history.rows,
                "epoch": epoch + 1,
            }
            save_checkpoint(checkpoint, state)
        if progress:
            progress(row)
    if test is not None:
        accuracy, loss_value = evaluate(net, test)
        history.rows[-1] = {**history.rows[-1], "test_accuracy": accuracy, "test_loss": loss_value}
    return net, history


def weights_by_type(model: nn.Module) -> dict[str, Tensor]:
    """Return the convolution weights of a network or supernet, flattened, per operator type."""
    groups: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, SharedBlock):
            parts = [p for n, p in module.named_parameters() if "norm" not in n]
            groups.setdefault(module.operator, []).extend(p.detach().flatten() for p in parts)
    if not groups:
        for module in model.modules():
            kind, weight = operator_of(module), getattr(module, "weight", None)
            if kind and isinstance(weight, Tensor) and not isinstance(module, nn.Linear):
                groups.setdefault(kind, []).append(weight.detach().flatten())
    return {kind: torch.cat(parts) for kind, parts in groups.items()}


def weight_statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    """Return, per operator type, how Gaussian and how Laplacian the weights are.

    The log likelihoods per weight of the best Gaussian and the best Laplacian; the paper states
    that convolution weights are Gaussian and adder weights Laplacian.
    """
    found = {}
    for kind, weights in weights_by_type(model).items():
        w = weights.double()
        deviation = w.std().clamp_min(1e-12)
        spread = (w - w.median()).abs().mean().clamp_min(1e-12)
        half = 0.5 * math.log(2 * math.pi) + 0.5
        found[kind] = {
            "count": float(len(w)),
            "std": deviation.item(),
            "kurtosis": (((w - w.mean()) / deviation) ** 4).mean().item(),
            "gaussian": (-torch.log(deviation) - half).item(),
            "laplacian": (-torch.log(2 * spread) - 1).item(),
        }
    return found
