"""Drawn scenes in which the groups are known, one kind per law, to measure the laws untrained."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from gptr.gestalt.graph import GestaltGraph

STRIDE = 16


def _cells(mask: np.ndarray, least: int) -> np.ndarray:
    rows, columns = mask.shape[0] // STRIDE, mask.shape[1] // STRIDE
    return np.asarray(mask.reshape(rows, STRIDE, columns, STRIDE).sum((1, 3)).reshape(-1) >= least)


def scene(law: str, seed: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels and the group of every cell (-1: background, or cells of two groups).

    proximity: clusters of black dots. similarity: discs of four colours, anywhere. smoothness:
    curves that cross.
    """
    rng = np.random.default_rng([seed, len(law)])
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    masks = []

    def fresh() -> tuple[Image.Image, ImageDraw.ImageDraw]:
        layer = Image.new("L", (size, size), 0)
        return layer, ImageDraw.Draw(layer)

    if law == "proximity":
        corners = rng.permutation(4)[:3]
        for c in corners:
            layer, pen = fresh()
            centre = (np.array([c % 2, c // 2]) * 0.56 + 0.22 + rng.uniform(-0.04, 0.04, 2)) * size
            for _ in range(12):
                x, y = centre + rng.uniform(-24, 24, 2)
                for d in (draw, pen):
                    d.ellipse((x - 4, y - 4, x + 4, y + 4), fill=255 if d is pen else (0, 0, 0))
            masks.append(np.asarray(layer) > 0)
    elif law == "similarity":
        colours = [(214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189)]
        layers = [fresh() for _ in colours]
        for cell in rng.permutation(16):
            k = int(rng.integers(4))
            x, y = np.array([cell % 4, cell // 4]) * 64 + 16
            for d in (draw, layers[k][1]):
                fill = 255 if d is layers[k][1] else colours[k]
                d.rectangle((int(x), int(y), int(x) + 31, int(y) + 31), fill=fill)
        masks = [np.asarray(layer) > 0 for layer, _ in layers]
    elif law == "smoothness":
        u = np.linspace(0, 1, 60)
        for i in range(3):
            layer, pen = fresh()
            bend, lift = rng.uniform(-0.15, 0.15), rng.uniform(0.15, 0.85)
            slope = rng.uniform(-0.5, 0.5)
            across = lift + slope * (u - 0.5) + bend * np.sin(np.pi * u)
            points = np.stack((u, across) if i % 2 else (across, u), -1) * size
            path = [(float(x), float(y)) for x, y in points]
            draw.line(path, fill=(0, 0, 0), width=3)
            pen.line(path, fill=255, width=3)
            masks.append(np.asarray(layer) > 0)
    else:
        raise ValueError(f"law={law!r}: allowed are similarity, proximity, smoothness")
    inside = np.stack([_cells(m, 12) for m in masks])
    touched = np.stack([_cells(m, 1) for m in masks])
    group = np.where(inside.sum(0) == 1, inside.argmax(0), -1)
    group[touched.sum(0) > 1] = -1
    return np.asarray(image), group


def law_auc(law: str, scenes: int = 8, seed: int = 0) -> float:
    """Return how often a pair of cells of one group outranks a pair of two groups (AUC, mean)."""
    graph = GestaltGraph((law,), stride=STRIDE)
    areas = []
    for i in range(scenes):
        image, group = scene(law, 1000 * seed + i)
        logits = graph.weights(graph.describe(image))[law][0].numpy()
        members = np.flatnonzero(group >= 0)
        a, b = np.triu_indices(len(members), 1)
        same = group[members[a]] == group[members[b]]
        values = (logits + logits.T)[members[a], members[b]]
        if same.all() or not same.any():
            continue
        positive, negative = values[same], np.sort(values[~same])
        below = np.searchsorted(negative, positive, side="left")
        equal = np.searchsorted(negative, positive, side="right") - below
        areas.append(float(((below + 0.5 * equal) / len(negative)).mean()))
    return float(np.mean(areas))
