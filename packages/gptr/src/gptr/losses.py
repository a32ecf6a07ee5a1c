"""Losses of the detector: focal, L1 and GIoU on matched pairs, at every supervised stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from gptr.geometry import cxcywh_to_xyxy, generalized_iou
from gptr.matching import HungarianMatcher


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return the focal loss element by element (Lin et al., ICCV 2017)."""
    cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    p_true = p * targets + (1 - p) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * (1 - p_true) ** gamma * cross


@dataclass(frozen=True)
class SetCriterion:
    """Matched losses divided by the number of objects.

    Parameters
    ----------
    weights
        Weights of ``loss_ce``, ``loss_bbox`` and ``loss_giou`` (2, 5, 2 in the paper's code).
    """

    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)
    weights: tuple[float, float, float] = (2.0, 5.0, 2.0)

    def stage(
        self, logits: Float[Tensor, "B Q C"], boxes: Float[Tensor, "B Q 4"],
        targets: Sequence[dict[str, Tensor]], pairs: Sequence[tuple[Tensor, Tensor]],
        count: float,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the three losses of one stage for given pairs."""
        image = torch.cat([torch.full_like(p, b) for b, (p, _) in enumerate(pairs)])
        image, query = image.to(logits.device), torch.cat([p for p, _ in pairs]).to(logits.device)
        labels = torch.cat([t["labels"][j] for t, (_, j) in zip(targets, pairs, strict=True)])
        wanted = torch.cat([t["boxes"][j] for t, (_, j) in zip(targets, pairs, strict=True)])
        onehot = torch.zeros_like(logits)
        onehot[image, query, labels] = 1
        found = boxes[image, query]
        return {
            "loss_ce": sigmoid_focal_loss(logits, onehot).sum() / count,
            "loss_bbox": (found - wanted).abs().sum() / count,
            "loss_giou": (
                1 - generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
            ).sum() / count,
        }  # fmt: skip

    def __call__(
        self, stages: Sequence[tuple[Tensor, Tensor]], targets: Sequence[dict[str, Tensor]],
        fixed: Sequence[tuple[Tensor, Tensor, Sequence[tuple[Tensor, Tensor]], int]] = (),
        count: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Return the weighted sum and the parts.

        Parameters
        ----------
        stages
            (logits, boxes) of every supervised stage, the final one first; each has a matching of
            its own.
        targets
            Per image ``labels`` (T,) and ``boxes`` (T, 4), cx, cy, w, h in 0..1.
        fixed
            (logits, boxes, pairs, repeats) of stages whose pairs are known (denoising).
        count
            Objects to divide by, where several processes share a step.
        """
        number = max(float(sum(len(t["labels"]) for t in targets)) if count is None else count, 1.0)
        total = stages[0][0].sum() * 0
        parts: dict[str, Tensor] = {}
        for i, (logits, boxes) in enumerate(stages):
            pairs = self.matcher(logits, boxes, targets)
            losses = self.stage(logits, boxes, targets, pairs, number)
            for weight, (name, value) in zip(self.weights, losses.items(), strict=True):
                parts[name if i == 0 else f"{name}_{i}"] = value
                total = total + weight * value
        for i, (logits, boxes, known, repeats) in enumerate(fixed):
            losses = self.stage(logits, boxes, targets, known, number * repeats)
            for weight, (name, value) in zip(self.weights, losses.items(), strict=True):
                parts[f"{name}_dn{i}"] = value
                total = total + weight * value
        return total, parts
