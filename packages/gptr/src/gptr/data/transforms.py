"""Transforms of image and boxes together; boxes stay exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Image3 = UInt8[np.ndarray, "H W 3"]
Boxes = Float[np.ndarray, "T 4"]
Transform = Callable[
    [np.ndarray, np.ndarray, np.ndarray, np.random.Generator],
    tuple[np.ndarray, np.ndarray, np.ndarray],
]


def flip_horizontal(image: Image3, xyxy: Boxes) -> tuple[Image3, Boxes]:
    """Mirror left and right."""
    width = image.shape[1]
    return image[:, ::-1].copy(), np.stack(
        (width - xyxy[:, 2], xyxy[:, 1], width - xyxy[:, 0], xyxy[:, 3]), -1
    )


def rotate90(image: Image3, xyxy: Boxes) -> tuple[Image3, Boxes]:
    """Turn by 90 degrees counter-clockwise."""
    width = image.shape[1]
    return np.rot90(image).copy(), np.stack(
        (xyxy[:, 1], width - xyxy[:, 2], xyxy[:, 3], width - xyxy[:, 0]), -1
    )


def resize(image: Image3, xyxy: Boxes, size: tuple[int, int]) -> tuple[Image3, Boxes]:
    """Resize to (height, width); each axis has the scale that its rounded side has."""
    height, width = size
    scale = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    if size == image.shape[:2]:
        return image, xyxy
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(small).copy(), xyxy * scale


def resize_longest(image: Image3, xyxy: Boxes, longest: int) -> tuple[Image3, Boxes]:
    """Shrink so that the longest side has at most ``longest`` pixels."""
    if longest < 1:
        raise ValueError(f"longest={longest}: must be positive")
    ratio = min(1.0, longest / max(image.shape[:2]))
    size = tuple(max(1, round(side * ratio)) for side in image.shape[:2])
    return resize(image, xyxy, size)


def crop(
    image: Image3, xyxy: Boxes, window: tuple[int, int, int, int], visible: float = 0.3
) -> tuple[Image3, Boxes, np.ndarray]:
    """Cut x0, y0, x1, y1 out; returns which boxes keep at least ``visible`` of their area."""
    x0, y0, x1, y1 = window
    low, high = np.array([x0, y0, x0, y0]), np.array([x1, y1, x1, y1])
    cut = np.clip(xyxy, low, high) - low
    before = np.prod(xyxy[:, 2:] - xyxy[:, :2], -1)
    after = np.prod(cut[:, 2:] - cut[:, :2], -1)
    keep = after >= visible * np.maximum(before, 1e-9)
    return image[y0:y1, x0:x1].copy(), cut[keep], keep


def random_crop(lowest: float = 0.6) -> Transform:
    """Return a transform that crops a window of at least ``lowest`` of each side."""

    def apply(
        image: np.ndarray, xyxy: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        H, W = image.shape[:2]
        h, w = (max(1, int(side * rng.uniform(lowest, 1))) for side in (H, W))
        y, x = int(rng.integers(0, H - h + 1)), int(rng.integers(0, W - w + 1))
        out, boxes, keep = crop(image, xyxy, (x, y, x + w, y + h))
        return out, boxes, labels[keep]

    return apply


def random_flip(probability: float = 0.5) -> Transform:
    """Return a transform that mirrors now and then."""

    def apply(
        image: np.ndarray, xyxy: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if rng.random() < probability:
            image, xyxy = flip_horizontal(image, xyxy)
        return image, xyxy, labels

    return apply


def random_scale(low: int, high: int) -> Transform:
    """Return a transform that resizes the longest side to low..high pixels."""

    def apply(
        image: np.ndarray, xyxy: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ratio = rng.integers(low, high + 1) / max(image.shape[:2])
        size = tuple(max(8, round(side * ratio)) for side in image.shape[:2])
        image, xyxy = resize(image, xyxy, size)
        return image, xyxy, labels

    return apply


def compose(*steps: Transform) -> Transform:
    """Return transforms one after another."""

    def apply(
        image: np.ndarray, xyxy: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        for step in steps:
            image, xyxy, labels = step(image, xyxy, labels, rng)
        return image, xyxy, labels

    return apply
