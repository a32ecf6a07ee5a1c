"""Denoising queries: noised objects that the decoder learns to restore (DN-DETR, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Noised:
    """Noised objects of a batch, group after group.

    Attributes
    ----------
    labels, boxes
        (B, G T) and (B, G T, 4).
    mask
        (G T + Q, G T + Q), True where attention is allowed: groups see neither each other nor, from
        the ordinary queries, are they seen.
    pairs
        Per image the query and the object it restores.
    """

    labels: Tensor
    boxes: Tensor
    mask: Tensor
    pairs: list[tuple[Tensor, Tensor]]


def denoising_queries(
    targets: Sequence[dict[str, Tensor]],
    groups: int,
    num_classes: int,
    queries: int,
    *,
    flip: float = 0.2,
    scale: float = 0.4,
) -> Noised | None:
    """Return noised queries, or None for a batch without objects.

    Parameters
    ----------
    flip
        Share of labels replaced at random.
    scale
        Largest shift of a corner, in half box sides.
    """
    counts = [len(t["labels"]) for t in targets]
    most = max(counts, default=0)
    if most == 0:
        return None
    device = targets[0]["boxes"].device
    labels = torch.zeros(len(targets), groups * most, dtype=torch.int64, device=device)
    boxes = torch.full((len(targets), groups * most, 4), 0.5, device=device)
    pairs = []
    for b, target in enumerate(targets):
        at = torch.cat([torch.arange(counts[b]) + g * most for g in range(groups)])
        objects = torch.arange(counts[b]).repeat(groups)
        label = target["labels"][objects]
        swapped = torch.rand(len(at), device=device) < flip
        label = torch.where(swapped, torch.randint_like(label, num_classes), label)
        box = target["boxes"][objects]
        cx, cy, w, h = box.unbind(-1)
        corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
        half = torch.stack((w, h, w, h), -1) / 2
        corners = corners + (torch.rand_like(corners) * 2 - 1) * half * scale
        corners = corners.clamp(0, 1)
        x0, y0, x1, y1 = corners.unbind(-1)
        box = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), -1)
        labels[b, at], boxes[b, at] = label, box.clamp(1e-3, 1)
        pairs.append((at, objects))
    total = groups * most + queries
    mask = torch.zeros(total, total, dtype=torch.bool, device=device)
    for g in range(groups):
        mask[g * most : (g + 1) * most, g * most : (g + 1) * most] = True
    mask[: groups * most, groups * most :] = True
    mask[groups * most :, groups * most :] = True
    return Noised(labels, boxes, mask, pairs)
