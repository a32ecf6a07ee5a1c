"""Other costs of a repair: adversarial robustness, calibration, connectivity of the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from backdoor_ft.data import LabeledData
from backdoor_ft.engine import predict
from backdoor_ft.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def adversarial_accuracy(
    model: nn.Module, data: LabeledData, epsilon: float = 8 / 255, steps: int = 10
) -> float:
    """Return accuracy under PGD in the L-infinity ball (Madry et al. 2018), steps of epsilon/4."""
    if data.is_text:
        raise InputError("audit='adversarial' perturbs pixels: token ids have none")
    device = next(model.parameters()).device
    model.eval()
    hits = 0
    for x, y in zip(data.inputs.split(512), data.labels.split(512)):
        x, y = x.to(device), y.to(device)
        delta = torch.zeros_like(x)
        for _ in range(steps):
            delta.requires_grad_()
            loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y)
            (slope,) = torch.autograd.grad(loss, delta)
            delta = (delta + epsilon / 4 * slope.sign()).clamp(-epsilon, epsilon).detach()
        with torch.no_grad():
            hits += int((model((x + delta).clamp(0, 1)).argmax(1) == y).sum())
    return hits / len(data)


def expected_calibration_error(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], bins: int = 15
) -> float:
    """Return ECE with bins of equal width (Guo et al. 2017).

    Examples
    --------
    >>> float(round(expected_calibration_error(np.array([[1.0, 0], [1, 0]]), np.array([0, 1])), 3))
    0.5
    """
    top, named = probabilities.max(1), probabilities.argmax(1)
    place = np.minimum((top * bins).astype(int), bins - 1)
    total = 0.0
    for b in range(bins):
        inside = place == b
        if inside.any():
            total += abs(top[inside].sum() - (named[inside] == labels[inside]).sum())
    return float(total / len(labels))


def calibration(model: nn.Module, data: LabeledData) -> float:
    """Return a model's expected calibration error."""
    return expected_calibration_error(
        predict(model, data.inputs).double().softmax(1).numpy(), data.labels.numpy()
    )


def path_losses(
    one: nn.Module, other: nn.Module, data: LabeledData, points: int = 9
) -> list[float]:
    """Return the loss on the straight line between two models' states.

    The barrier is the largest loss above the straight line between the ends.
    """
    first, last = one.state_dict(), other.state_dict()
    work, out = copy.deepcopy(one), []
    for t in np.linspace(0, 1, points).tolist():
        work.load_state_dict(
            {k: v + t * (last[k] - v) if v.is_floating_point() else v for k, v in first.items()}
        )
        out.append(float(F.cross_entropy(predict(work, data.inputs), data.labels)))
    return out


def barrier(losses: list[float]) -> float:
    """Return the height of a path above the straight line between its ends, at least 0."""
    line = np.linspace(losses[0], losses[-1], len(losses))
    return float(max(0.0, (np.asarray(losses) - line).max()))
