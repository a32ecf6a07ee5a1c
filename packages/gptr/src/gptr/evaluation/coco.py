"""COCO figures through faster-coco-eval, and what they hide: rare classes, sizes, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gptr._files import write_text
from gptr.data.dataset import DiagramDataset
from gptr.detections import Detections
from gptr.evaluation.errors import error_counts
from gptr.evaluation.matches import MatchTable, match

if TYPE_CHECKING:
    from gptr.model.gptr import GPTR
    from gptr.train.cache import FeatureCache

STATS = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")


@dataclass
class Evaluation:
    """Figures of one detector on one data set.

    Attributes
    ----------
    stats
        COCO's twelve figures (-1 where nothing is of that size).
    class_ap, class_ap50
        Per class; None for a class that the data set does not hold.
    frequency
        Mean AP50 and AP of head, middle and tail third of the classes by training frequency; only
        classes seen in this data set count.
    seen
        Classes that occur in the data set.
    errors
        Counts of detections above the threshold by kind, and of missed objects.
    """

    stats: dict[str, float]
    class_ap: list[float | None]
    class_ap50: list[float | None]
    frequency: dict[str, float]
    seen: int
    images: int
    errors: dict[str, int]
    class_names: tuple[str, ...]
    table: MatchTable = field(repr=False)
    detections: list[Detections] = field(repr=False)

    def __repr__(self) -> str:
        figures = ", ".join(f"{k} {self.stats[k]:.3f}" for k in ("AP", "AP50", "AP75"))
        rare = "".join(f", {k} {v:.3f}" for k, v in self.frequency.items() if "AP50" in k)
        return f"Evaluation({figures}{rare}; {self.images} images, {self.seen} classes seen)"

    def to_dict(self) -> dict[str, Any]:
        """Return a form that JSON takes."""
        return {
            "schema_version": 1,
            "stats": self.stats,
            "class_ap": dict(zip(self.class_names, self.class_ap)),
            "class_ap50": dict(zip(self.class_names, self.class_ap50)),
            "frequency": self.frequency,
            "seen": self.seen,
            "images": self.images,
            "errors": self.errors,
        }

    def save(self, folder: str | Path) -> None:
        """Write ``evaluation.json`` and ``detections.json`` (COCO results)."""
        folder = Path(folder)
        write_text(folder / "evaluation.json", json.dumps(self.to_dict(), indent=1) + "\n")
        rows = [row for i, d in enumerate(self.detections) for row in d.to_coco(i + 1)]
        write_text(folder / "detections.json", json.dumps(rows))


def coco_stats(data: DiagramDataset, found: Sequence[Detections]) -> np.ndarray:
    """Return COCO's twelve figures, computed by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i, (record, detections) in enumerate(zip(data.records, found, strict=True)):
        height, width = record.size or detections.size
        images.append({"id": i + 1, "height": height, "width": width})
        for (x0, y0, x1, y1), k in zip(record.xyxy.tolist(), record.labels.tolist(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "category_id": k + 1, "iscrowd": 0,
                 "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            )  # fmt: skip
        for (x0, y0, x1, y1), s, k in zip(
            detections.xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist()
        ):
            results.append(
                {"image_id": i + 1, "category_id": k + 1, "score": s,
                 "bbox": [x0, y0, x1 - x0, y1 - y0]}
            )  # fmt: skip
    if not annotations:
        return np.full(12, -1.0)
    if not results:
        return np.zeros(12)
    categories = [{"id": k + 1, "name": n} for k, n in enumerate(data.class_names)]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories})
    evaluator = COCOeval_faster(
        truth, truth.loadRes(results), "bbox", print_function=lambda *_: None
    )
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return np.array(evaluator.stats[:12], dtype=float)


def frequency_thirds(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the classes of the head, middle and tail third by training frequency."""
    order = np.argsort(-counts, kind="stable")
    parts = np.array_split(order, 3)
    return dict(zip(("head", "mid", "tail"), parts, strict=True))


def evaluate_detections(
    data: DiagramDataset, found: list[Detections], counts: np.ndarray | None = None,
    threshold: float = 0.4,
) -> Evaluation:  # fmt: skip
    """Evaluate detections of every image of a data set.

    Parameters
    ----------
    counts
        Objects per class in training, for figures by frequency; by default this data set's own.
    threshold
        Score from which a detection counts as an error or a find in the error analysis.
    """
    if len(found) != len(data):
        raise ValueError(f"found has {len(found)} images, the data set {len(data)}")
    stats = coco_stats(data, found)
    table = match(data, found)
    ap = table.average_precision()
    counts = data.counts if counts is None else counts
    frequency = {}
    for name, members in frequency_thirds(counts).items():
        rows = ap[members]
        rows = rows[~np.isnan(rows[:, 0])]
        frequency[f"AP50 {name}"] = float(rows[:, 0].mean()) if len(rows) else float("nan")
        frequency[f"AP {name}"] = float(rows.mean()) if len(rows) else float("nan")
    seen = ~np.isnan(ap[:, 0])
    return Evaluation(
        dict(zip(STATS, stats.tolist(), strict=True)),
        [float(v.mean()) if s else None for v, s in zip(ap, seen)],
        [float(v[0]) if s else None for v, s in zip(ap, seen)],
        frequency,
        int(seen.sum()),
        len(data),
        error_counts(data, found, threshold),
        data.class_names,
        table,
        list(found),
    )


@torch.no_grad()
def detect_all(
    model: GPTR, data: DiagramDataset, *, batch_size: int = 8, cache: FeatureCache | None = None
) -> list[Detections]:
    """Return detections of every image; no image is left out, whatever the batch size."""
    training = model.training
    model.eval()
    found: list[Detections] = []
    for start in range(0, len(data), batch_size):
        indices = list(range(start, min(start + batch_size, len(data))))
        if cache is not None:
            features = cache.batch(indices)
        else:
            features = model.extract([data.records[i].load() for i in indices])
        found += model.decode(model.detect(features), features.sizes)
    model.train(training)
    return found


def evaluate(
    model: GPTR, data: DiagramDataset, *, batch_size: int = 8, counts: np.ndarray | None = None,
    cache: FeatureCache | None = None, threshold: float = 0.4,
) -> Evaluation:  # fmt: skip
    """Run a model over a data set and evaluate what it finds.

    Parameters
    ----------
    counts
        Objects per class in training.
    cache
        Cached features of this data set.
    """
    if len(data.class_names) != model.config.num_classes:
        raise ValueError(
            f"the data set has {len(data.class_names)} classes, the model "
            f"{model.config.num_classes}; read it with like=<training set>"
        )
    found = detect_all(model, data, batch_size=batch_size, cache=cache)
    return evaluate_detections(data, found, counts, threshold)
