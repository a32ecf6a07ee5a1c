"""Connectors between detected objects: which objects a drawn line joins, and which way it points.

Ink outside the boxes is grouped into strokes; a stroke that touches two boxes is an edge. The end
with more ink near its box carries the arrow head.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from gptr.detections import Detections


@dataclass(frozen=True)
class Connector:
    """A line from object ``start`` to object ``end``; ``directed`` where a head was seen."""

    start: int
    end: int
    directed: bool


def ink_mask(image: UInt8[np.ndarray, "H W 3"], contrast: int = 40) -> np.ndarray:
    """Return pixels that differ from their surroundings (a median) by at least ``contrast``."""
    array = image.astype(np.int16)
    background = np.stack(
        [ndimage.median_filter(array[..., k], 15, mode="nearest") for k in range(3)], -1
    )
    return np.asarray(np.abs(array - background).max(-1) >= contrast)


def find_connectors(
    image: UInt8[np.ndarray, "H W 3"], xyxy: Float[np.ndarray, "T 4"], *, reach: int = 5,
    contrast: int = 40,
) -> list[Connector]:  # fmt: skip
    """Return the connectors between boxes.

    Parameters
    ----------
    reach
        Pixels around a box within which a stroke counts as touching it.
    """
    height, width = image.shape[:2]
    ink = ink_mask(image, contrast)
    owner = np.zeros((height, width), np.int32)
    for i, box in enumerate(xyxy):
        x0, y0 = (max(0, int(np.floor(v)) - reach) for v in box[:2])
        x1, y1 = min(width, int(np.ceil(box[2])) + reach), min(height, int(np.ceil(box[3])) + reach)
        owner[y0:y1, x0:x1] = i + 1
    for box in xyxy:
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        ink[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
    strokes, _ = ndimage.label(ink, np.ones((3, 3)))
    found: dict[tuple[int, int], Connector] = {}
    for s, window in enumerate(ndimage.find_objects(strokes), 1):
        part = strokes[window] == s
        if part.sum() < 4:
            continue
        touched = owner[window][part]
        boxes = [int(b) for b in np.unique(touched) if b]
        if len(boxes) != 2:
            continue
        amounts = []
        ys, xs = np.nonzero(part)
        ys, xs = ys + window[0].start, xs + window[1].start
        for b in boxes:
            box = xyxy[b - 1]
            distance = np.hypot(
                np.maximum(np.maximum(box[0] - xs, xs - box[2]), 0),
                np.maximum(np.maximum(box[1] - ys, ys - box[3]), 0),
            )
            amounts.append(int((distance <= 9).sum()))
        a, b = (
            (boxes[0] - 1, boxes[1] - 1)
            if amounts[1] >= amounts[0]
            else (boxes[1] - 1, boxes[0] - 1)
        )
        directed = max(amounts) > 1.3 * min(amounts) + 3
        key = (min(a, b), max(a, b))
        found.setdefault(key, Connector(a, b, directed))
    return list(found.values())


def to_graph(found: Detections, connectors: list[Connector]) -> nx.DiGraph:
    """Return objects as nodes (class, box, score) and connectors as edges."""
    graph = nx.DiGraph()
    for i, (box, s, k) in enumerate(zip(found.xyxy, found.scores, found.labels, strict=True)):
        graph.add_node(i, label=found.name(int(k)), score=float(s), bbox=[float(v) for v in box])
    for c in connectors:
        graph.add_edge(c.start, c.end, directed=c.directed)
    return graph
