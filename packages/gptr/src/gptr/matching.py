"""Hungarian matching of predictions and objects, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gptr.geometry import cxcywh_to_xyxy, generalized_iou


@dataclass(frozen=True)
class HungarianMatcher:
    """Assigns every object one prediction at least total cost.

    The cost is built for an image's own objects and their own classes only (transformers' and the
    authors' matchers build it for all objects of the batch and all classes, then cut), and crosses
    to the host once.

    Parameters
    ----------
    class_cost, bbox_cost, giou_cost
        Weights of the focal class cost, the L1 distance and -GIoU (2, 5, 2 in the paper's code).
    alpha, gamma
        Focal parameters.
    """

    class_cost: float = 2.0
    bbox_cost: float = 5.0
    giou_cost: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def cost(
        self, logits: Float[Tensor, "B Q C"], boxes: Float[Tensor, "B Q 4"],
        labels: Tensor, targets: Float[Tensor, "B T 4"],
    ) -> Float[Tensor, "B T Q"]:  # fmt: skip
        """Return the cost of every (object, prediction) of each image; labels are (B, T)."""
        index = labels[:, None, :].expand(-1, logits.shape[1], -1)
        p = torch.gather(logits, 2, index).transpose(1, 2).sigmoid()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        distance = torch.cdist(targets, boxes, p=1)
        giou = generalized_iou(cxcywh_to_xyxy(targets)[:, :, None], cxcywh_to_xyxy(boxes)[:, None])
        return (
            self.bbox_cost * distance
            + self.class_cost * (positive - negative)
            - self.giou_cost * giou
        )

    @torch.no_grad()
    def __call__(
        self, logits: Float[Tensor, "B Q C"], boxes: Float[Tensor, "B Q 4"],
        targets: Sequence[dict[str, Tensor]],
    ) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
        """Match.

        Parameters
        ----------
        logits, boxes
            Predictions; boxes are cx, cy, w, h.
        targets
            Per image ``labels`` (T,) and ``boxes`` (T, 4).

        Returns
        -------
        Per image the indices of predictions, ascending, and of the objects they belong to.
        """
        counts = [len(t["labels"]) for t in targets]
        most = max(counts, default=0)
        empty = torch.zeros(0, dtype=torch.int64)
        if most == 0:
            return [(empty, empty) for _ in targets]
        labels = torch.zeros(len(targets), most, dtype=torch.int64, device=logits.device)
        padded = boxes.new_full((len(targets), most, 4), 0.5)
        for b, target in enumerate(targets):
            labels[b, : counts[b]] = target["labels"]
            padded[b, : counts[b]] = target["boxes"]
        cost = self.cost(logits.float(), boxes.float(), labels, padded.float())
        largest = torch.finfo(cost.dtype).max
        table = torch.nan_to_num(cost, largest, largest, largest).cpu().numpy()
        pairs = []
        for b, count in enumerate(counts):
            objects, predictions = linear_sum_assignment(table[b, :count])
            order = predictions.argsort()
            pairs.append((torch.from_numpy(predictions[order]), torch.from_numpy(objects[order])))
        return pairs
