"""Boxes: conversions, IoU and generalised IoU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cxcywh_to_xyxy(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Convert boxes from centre and size to corners.

    Examples
    --------
    >>> cxcywh_to_xyxy(torch.tensor([0.5, 0.5, 1.0, 0.5])).tolist()
    [0.0, 0.25, 1.0, 0.75]
    """
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), -1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Convert boxes from corners to centre and size."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), -1)


def box_area(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, ...]:
    """Return the area of boxes given as corners."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlap(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> tuple[Tensor, Tensor, Tensor]:
    side = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    inter = side[..., 0] * side[..., 1]
    union = box_area(a) + box_area(b) - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(0)
    return inter, union, hull[..., 0] * hull[..., 1]


def pairwise_iou(a: Float[Tensor, "... N 4"], b: Float[Tensor, "... M 4"]) -> Tensor:
    """Return IoU of all pairs (..., N, M) of boxes given as corners.

    Examples
    --------
    >>> a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> pairwise_iou(a, a + 1).item()
    0.1428571492433548
    """
    inter, union, _ = _overlap(a[..., :, None, :], b[..., None, :, :])
    return inter / union.clamp(min=1e-12)


def generalized_iou(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Tensor:
    """Return the generalised IoU of boxes given as corners, element by element, in [-1, 1].

    Corners must be ordered (`check_ordered`): GIoU of other boxes is meaningless.

    References
    ----------
    Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    inter, union, hull = _overlap(a, b)
    return inter / union - (hull - union) / hull


def check_ordered(boxes: Float[Tensor, "... 4"], name: str = "boxes") -> None:
    """Raise unless every box has x0 <= x1 and y0 <= y1."""
    if not bool((boxes[..., 2:] >= boxes[..., :2]).all()):
        raise ValueError(f"{name}: corners must be ordered, x0 <= x1 and y0 <= y1")
