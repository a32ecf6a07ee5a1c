"""What kind of error a detection is (Bolya et al., TIDE, ECCV 2020; counts, not dAP)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gptr.data.dataset import DiagramDataset
from gptr.detections import Detections
from gptr.geometry import pairwise_iou

KINDS = ("correct", "class", "location", "both", "duplicate", "background", "missed")


def classify(
    truth: np.ndarray, labels: np.ndarray, found: Detections, threshold: float,
    high: float = 0.5, low: float = 0.1,
) -> tuple[list[str], np.ndarray]:  # fmt: skip
    """Return the kind of each detection at or above the threshold, and which objects were found.

    correct: right class, IoU >= high, object not taken. duplicate: the same, object taken. class:
    wrong class, IoU >= high. location: right class, low <= IoU < high. both: wrong class, low <=
    IoU < high. background: IoU < low with every object.
    """
    kept = found.above(threshold)
    taken = np.zeros(len(labels), bool)
    if not len(labels):
        return ["background"] * len(kept), taken
    iou = pairwise_iou(
        torch.from_numpy(kept.xyxy.astype(float)), torch.from_numpy(truth.astype(float))
    ).numpy()
    kinds = []
    for d, k in enumerate(kept.labels):
        same = labels == k
        best_same = iou[d][same].max(initial=0)
        best_other = iou[d][~same].max(initial=0)
        free = np.where(same & ~taken, iou[d], -1)
        if free.max() >= high:
            taken[free.argmax()] = True
            kinds.append("correct")
        elif best_same >= high:
            kinds.append("duplicate")
        elif best_other >= high:
            kinds.append("class")
        elif best_same >= low:
            kinds.append("location")
        elif best_other >= low:
            kinds.append("both")
        else:
            kinds.append("background")
    return kinds, taken


def error_counts(
    data: DiagramDataset, found: Sequence[Detections], threshold: float = 0.4
) -> dict[str, int]:
    """Count kinds over a data set; ``missed`` counts objects no detection found."""
    counts = dict.fromkeys(KINDS, 0)
    for record, detections in zip(data.records, found, strict=True):
        kinds, taken = classify(record.xyxy, record.labels, detections, threshold)
        for kind in kinds:
            counts[kind] += 1
        counts["missed"] += int((~taken).sum())
    return counts
