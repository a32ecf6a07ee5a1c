"""Records and data sets."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gptr.data.images import DataError, load_image

Target = dict[str, Tensor]


@dataclass
class Record:
    """One image and its objects.

    Attributes
    ----------
    source
        Path, (zip file, member), or the pixels.
    xyxy
        (T, 4) corners in pixels.
    labels
        (T,) class indices.
    size
        Height and width; None where the annotations do not state it.
    connectors
        (from, to, points) with indices of objects (or -1) and way-points in pixels.
    layout
        Signature of a generated layout.
    """

    source: Path | tuple[Path, str] | np.ndarray
    xyxy: Float[np.ndarray, "T 4"]
    labels: Int[np.ndarray, " T"]
    size: tuple[int, int] | None = None
    image_id: Any = None
    connectors: list[tuple[int, int, list[tuple[float, float]]]] = field(default_factory=list)
    layout: str = ""

    @property
    def name(self) -> str:
        """Return what messages call the image."""
        if isinstance(self.source, np.ndarray):
            return f"image {self.image_id}"
        return str(self.source if isinstance(self.source, Path) else self.source[1])

    def load(self) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels."""
        if isinstance(self.source, np.ndarray):
            return self.source
        if isinstance(self.source, tuple):
            try:
                with zipfile.ZipFile(self.source[0]) as archive:
                    data = archive.read(self.source[1])
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.source[0]}: {error}") from error
            return load_image(data, self.size)
        return load_image(self.source, self.size)


class DiagramDataset:
    """Images with boxes; classes are numbered from 0 whatever the files called them.

    Parameters
    ----------
    records
        Images and objects.
    class_names
        Names by class index.
    category_ids
        The files' own ids by class index.
    notes
        Counts of what the reader mended or dropped.
    """

    def __init__(
        self, records: Sequence[Record], class_names: Sequence[str],
        category_ids: Sequence[int] = (), notes: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.records = list(records)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids) or tuple(range(1, len(self.class_names) + 1))
        self.notes = notes or {}
        for record in self.records:
            if len(record.labels) and record.labels.max() >= len(self.class_names):
                raise DataError(f"{record.name}: class {record.labels.max()} has no name")

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        mended = "".join(f", {v} {k}" for k, v in self.notes.items() if v)
        objects = sum(len(r.labels) for r in self.records)
        return (
            f"{type(self).__name__}({len(self)} images, {objects} objects, "
            f"{len(self.class_names)} classes{mended})"
        )

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], Target]:
        """Return pixels and target (``labels``, ``boxes`` as cx, cy, w, h in 0..1)."""
        record = self.records[index]
        image = record.load()
        return image, make_target(record.xyxy, record.labels, image.shape[:2])

    @property
    def counts(self) -> Int[np.ndarray, " C"]:
        """Objects per class."""
        counter = Counter(int(k) for r in self.records for k in r.labels)
        return np.array([counter[k] for k in range(len(self.class_names))], dtype=np.int64)

    @property
    def most_objects(self) -> int:
        """Most objects of an image."""
        return max((len(r.labels) for r in self.records), default=0)

    def subset(self, indices: Sequence[int]) -> DiagramDataset:
        """Return some of the images."""
        chosen = [self.records[i] for i in indices]
        return DiagramDataset(chosen, self.class_names, self.category_ids)

    def resized(self, longest: int) -> DiagramDataset:
        """Load, shrink the longest side to at most ``longest``, and keep the pixels."""
        from gptr.data.transforms import resize_longest

        records = []
        for i, r in enumerate(self.records):
            image, boxes = resize_longest(r.load(), r.xyxy, longest)
            records.append(Record(image, boxes, r.labels, image.shape[:2], r.image_id or i))
        return DiagramDataset(records, self.class_names, self.category_ids)


def make_target(
    xyxy: Float[np.ndarray, "T 4"], labels: Int[np.ndarray, " T"], size: tuple[int, int]
) -> Target:
    """Return labels and normalised boxes as tensors."""
    height, width = size
    boxes = torch.as_tensor(xyxy, dtype=torch.float64).reshape(-1, 4)
    boxes = boxes / torch.tensor([width, height, width, height], dtype=torch.float64)
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return {
        "labels": torch.as_tensor(labels, dtype=torch.int64),
        "boxes": torch.cat((centre, side), -1).float(),
    }


def clean_box(
    box: object, size: tuple[int, int] | None, where: str, notes: dict[str, int], strict: bool
) -> tuple[float, float, float, float] | None:
    """Return the corners of an x, y, width, height box clipped to the image, or None.

    What was dropped or clipped is counted in ``notes``; with ``strict`` it raises instead.
    """
    fault = ""
    if not isinstance(box, list | tuple) or len(box) != 4:
        fault = f"bbox is {str(box)[:60]!r}, four numbers are needed"
    elif not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
        fault = f"bbox {str(box)[:60]} holds something that is no number"
    elif not all(abs(v) < 1e9 and math.isfinite(v) for v in box):
        fault = f"bbox {str(box)[:60]} is not finite"
    elif box[2] <= 0 or box[3] <= 0:
        fault = f"bbox {str(box)[:60]} has no area"
    if fault:
        if strict:
            raise DataError(f"{where}: {fault}; delete or mend the annotation")
        notes["malformed boxes dropped"] = notes.get("malformed boxes dropped", 0) + 1
        return None
    x, y, w, h = (float(v) for v in box)  # type: ignore[attr-defined]
    corners = (x, y, x + w, y + h)
    if size is not None:
        height, width = size
        clipped = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
        if clipped[2] - clipped[0] < 1e-6 or clipped[3] - clipped[1] < 1e-6:
            if strict:
                raise DataError(f"{where}: bbox {list(box)} lies outside the image")  # type: ignore[call-overload]
            notes["boxes outside dropped"] = notes.get("boxes outside dropped", 0) + 1
            return None
        if max(abs(a - b) for a, b in zip(clipped, corners)) > 1e-6:
            notes["boxes clipped"] = notes.get("boxes clipped", 0) + 1
        corners = clipped
    return corners
