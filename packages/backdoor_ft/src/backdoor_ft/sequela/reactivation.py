"""Waking what sleeps: query-based reactivation and the backdoor existence coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import head_inputs
from backdoor_ft.engine import batches, predict
from backdoor_ft.errors import InputError
from backdoor_ft.models import head_of
from backdoor_ft.poison import PoisonPlan

if TYPE_CHECKING:
    from jaxtyping import Float


def query_reactivation(
    repaired: nn.Module,
    victim: nn.Module,
    data: LabeledData,
    test: LabeledData,
    plan: PoisonPlan,
    *,
    alpha: float = 0.2,
    steps: int = 150,
    seed: int = 0,
) -> float:
    """Return ASR of triggered inputs with a universal perturbation (QRA, Min et al. 2024).

    The perturbation, bounded by alpha, is learnt so that the repaired model answers triggered
    inputs as the victim did and clean inputs as they are labelled.
    """
    if data.is_text:
        raise InputError("audit='qra' perturbs pixels: token ids have none")
    device = next(repaired.parameters()).device
    delta = torch.zeros(data.inputs.shape[1:], device=device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], 0.02)
    order = batches(len(data), 64, seed, 0)
    parameters = list(repaired.parameters())
    flags = [p.requires_grad for p in parameters]
    repaired.eval()
    for p in parameters:
        p.requires_grad_(False)
    for _ in range(steps):
        index = next(order)
        x, y = data.inputs[index], data.labels[index]
        stamped = plan.trigger.apply(x)
        told = predict(victim, stamped).argmax(1)
        both = (torch.cat((x, stamped)).to(device) + delta).clamp(0, 1)
        loss = F.cross_entropy(repaired(both), torch.cat((y, told)).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            delta.clamp_(-alpha, alpha)
    for p, flag in zip(parameters, flags):
        p.requires_grad_(flag)
    triggered = plan.triggered(test)
    wanted = plan.attacked_label(triggered.labels)
    named = predict(repaired, (triggered.inputs + delta.detach().cpu()).clamp(0, 1)).argmax(1)
    return float((named == wanted).float().mean())


def linear_cka(one: Float[np.ndarray, "n a"], two: Float[np.ndarray, "n b"]) -> float:
    """Return linear CKA of two feature matrices (Kornblith et al. 2019), 0 ... 1."""
    a, b = one - one.mean(0), two - two.mean(0)
    cross = float(np.linalg.norm(a.T @ b) ** 2)
    scale = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    return cross / scale if scale > 0 else 0.0


def existence_coefficient(
    repaired: nn.Module,
    victim: nn.Module,
    clean_model: nn.Module,
    test: LabeledData,
    plan: PoisonPlan,
    share: float = 0.1,
) -> float:
    """Return how alive the backdoor is inside (after Zhu et al. 2024), near 0 ... 1.

    The features that move most under the trigger in the victim are taken; the coefficient is the
    repaired model's similarity (linear CKA) to the victim on them, on a scale from a
    never-backdoored model (0) to the victim (1).
    """
    triggered = plan.triggered(test).inputs
    plain = plan.victims(test).inputs
    features = [
        head_inputs(m, head_of(m)[1], triggered).double().numpy()
        for m in (repaired, victim, clean_model)
    ]
    before = head_inputs(victim, head_of(victim)[1], plain).double().numpy()
    move = np.abs(features[1] - before).mean(0)
    count = max(int(share * len(move)), 2)
    units = np.argsort(move)[-count:]
    wanted = features[1][:, units]
    here, floor = (
        linear_cka(features[0][:, units], wanted),
        linear_cka(features[2][:, units], wanted),
    )
    return (here - floor) / max(1 - floor, 1e-12)
