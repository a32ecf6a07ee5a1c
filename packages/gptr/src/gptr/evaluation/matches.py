"""Which detection found which object: COCO's greedy rule, kept per image for re-weighting.

The figures themselves come from faster-coco-eval. This table exists because a bootstrap over images
has to accumulate the same matches hundreds of times; on the whole set it gives the evaluator's AP
(a test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gptr.data.dataset import DiagramDataset
from gptr.detections import Detections
from gptr.geometry import pairwise_iou

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass
class MatchTable:
    """Detections of a data set with their matches, sorted by class and falling score.

    Attributes
    ----------
    image, label, score
        (D,).
    hit
        (D, 10) found an object at IoU .50, .55, ... .95.
    objects
        (I, C) objects per image and class.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    objects: np.ndarray

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return AP (C, 10) for images counted ``weights`` times; NaN where no object is left."""
        images, classes = self.objects.shape
        w = np.ones(images) if weights is None else weights
        total = w @ self.objects
        out = np.full((classes, len(THRESHOLDS)), np.nan)
        starts = np.searchsorted(self.label, np.arange(classes + 1))
        for c in np.flatnonzero(total > 0):
            out[c] = 0.0
            rows = slice(starts[c], starts[c + 1])
            weight = w[self.image[rows]]
            if not weight.any():
                continue
            hit = self.hit[rows] * weight[:, None]
            tp = hit.cumsum(0)
            precision = tp / np.maximum(weight.cumsum(), np.spacing(1))[:, None]
            recall = tp / total[c]
            envelope = np.maximum.accumulate(precision[::-1], 0)[::-1]
            for t in range(len(THRESHOLDS)):
                at = np.searchsorted(recall[:, t], RECALLS, side="left")
                inside = at < len(envelope)
                out[c, t] = envelope[at[inside], t].sum() / len(RECALLS)
        return out


def match(data: DiagramDataset, found: list[Detections]) -> MatchTable:
    """Match detections of every image, class by class, at ten thresholds."""
    rows: list[tuple[np.ndarray, ...]] = []
    objects = np.zeros((len(data), len(data.class_names)))
    for i, (record, detections) in enumerate(zip(data.records, found, strict=True)):
        np.add.at(objects[i], record.labels, 1)
        order = np.argsort(-detections.scores, kind="mergesort")[:100]
        boxes, labels = detections.xyxy[order], detections.labels[order]
        hit = np.zeros((len(order), len(THRESHOLDS)), bool)
        for c in np.unique(labels):
            mine, theirs = np.flatnonzero(labels == c), np.flatnonzero(record.labels == c)
            if not len(theirs):
                continue
            iou = pairwise_iou(
                torch.from_numpy(boxes[mine].astype(float)), torch.from_numpy(record.xyxy[theirs])
            ).numpy()
            for t, threshold in enumerate(THRESHOLDS):
                free = np.ones(len(theirs), bool)
                for d in range(len(mine)):
                    open_iou = np.where(free, iou[d], -1)
                    # of equal overlaps COCO keeps the last
                    best = len(theirs) - 1 - int(open_iou[::-1].argmax())
                    if open_iou[best] >= min(threshold, 1 - 1e-10):
                        free[best] = False
                        hit[mine[d], t] = True
        rows.append((np.full(len(order), i), labels, detections.scores[order], hit))
    image, label, score = (
        np.concatenate([r[k] for r in rows]) if rows else np.zeros(0, np.int64) for k in range(3)
    )
    hits = np.concatenate([r[3] for r in rows]) if rows else np.zeros((0, 10), bool)
    order = np.lexsort((-score, label))  # stable: equal scores stay in the order of images
    return MatchTable(image[order], label[order], score[order], hits[order], objects)
