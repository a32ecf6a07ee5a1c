"""Hungarian matching of predictions and objects, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor


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
        index = labels[:, :, None].expand(-1, -1, logits.shape[1])
        p = torch.gather(logits.transpose(1, 2), 1, index).sigmoid()
        rest = 1 - p
        positive = (rest**self.gamma).mul_((p + 1e-8).log_())
        negative = p.pow_(self.gamma).mul_(rest.add_(1e-8).log_())
        cost = positive.mul_(-self.alpha * self.class_cost)
        cost.add_(negative, alpha=(1 - self.alpha) * self.class_cost)
        # planes of one coordinate lie together in memory: kernels vectorise over the predictions
        targets, boxes = targets.movedim(-1, 0).contiguous(), boxes.movedim(-1, 0).contiguous()
        ours, theirs = targets[..., None], boxes[:, :, None]
        for a, b in zip(ours, theirs, strict=True):
            cost.add_((a - b).abs_(), alpha=self.bbox_cost)
        (x0, y0), (x1, y1) = ours[:2] - ours[2:] / 2, ours[:2] + ours[2:] / 2
        (u0, v0), (u1, v1) = theirs[:2] - theirs[2:] / 2, theirs[:2] + theirs[2:] / 2
        inter = torch.minimum(x1, u1).sub_(torch.maximum(x0, u0)).clamp_(min=0)
        inter.mul_(torch.minimum(y1, v1).sub_(torch.maximum(y0, v0)).clamp_(min=0))
        union = ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0)).sub_(inter)
        hull = torch.maximum(x1, u1).sub_(torch.minimum(x0, u0))
        hull.mul_(torch.maximum(y1, v1).sub_(torch.minimum(y0, v0)))
        # GIoU = inter / union + union / hull - 1
        giou = inter.div_(union).add_(union.div_(hull)).sub_(1)
        return cost.sub_(giou, alpha=self.giou_cost)

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
        logits, boxes, padded = logits.float(), boxes.float(), padded.float()
        # on a CPU temporaries of one image stay in the cache and in memory that malloc keeps
        step = 1 if logits.device.type == "cpu" else len(targets)
        tables = [
            self.cost(*(t[i : i + step] for t in (logits, boxes, labels, padded)))
            for i in range(0, len(targets), step)
        ]
        cost = torch.cat(tables)
        largest = torch.finfo(cost.dtype).max
        table = torch.nan_to_num_(cost, largest, largest, largest).cpu().numpy()
        pairs = []
        for b, count in enumerate(counts):
            objects, predictions = linear_sum_assignment(table[b, :count])
            order = predictions.argsort()
            pairs.append((torch.from_numpy(predictions[order]), torch.from_numpy(objects[order])))
        return pairs
