"""Help for rare classes: repeat factors and copy-paste."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from gptr.data.dataset import DiagramDataset
from gptr.data.transforms import Transform


def repeat_factors(data: DiagramDataset, threshold: float = 0.05) -> Float[np.ndarray, " I"]:
    """Return how often each image should be seen: max over its classes of max(1, sqrt(t / f_c)).

    f_c is the share of images that hold class c (Gupta et al., LVIS, CVPR 2019).
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: must lie in (0, 1]")
    share = np.zeros(len(data.class_names))
    for record in data.records:
        share[np.unique(record.labels)] += 1 / len(data)
    factor = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))
    return np.array([max((factor[k] for k in r.labels), default=1.0) for r in data.records])


def epoch_indices(factors: Float[np.ndarray, " I"], seed: int, epoch: int) -> Int[np.ndarray, " E"]:
    """Return a shuffled epoch; fractional factors round up with their fraction's probability."""
    rng = np.random.default_rng([seed, epoch])
    whole = np.floor(factors).astype(int)
    extra = rng.random(len(factors)) < factors - whole
    indices = np.repeat(np.arange(len(factors)), whole + extra)
    return rng.permutation(indices)


def copy_paste(data: DiagramDataset, rare: int = 10, count: int = 2) -> Transform:
    """Return a transform that pastes objects of rare classes where nothing stands.

    Parameters
    ----------
    rare
        A class with at most this many objects is rare.
    count
        Most objects pasted into an image.
    """
    seldom = {k for k, n in enumerate(data.counts) if 0 < n <= rare}
    bank = [
        (i, j)
        for i, record in enumerate(data.records)
        for j, k in enumerate(record.labels)
        if int(k) in seldom
    ]

    def apply(
        image: np.ndarray, xyxy: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not bank:
            return image, xyxy, labels
        image = image.copy()
        H, W = image.shape[:2]
        for _ in range(int(rng.integers(0, count + 1))):
            i, j = bank[int(rng.integers(len(bank)))]
            source = data.records[i].load()
            x0, y0, x1, y1 = data.records[i].xyxy[j]
            left, top = int(np.floor(x0)), int(np.floor(y0))
            right, bottom = int(np.ceil(x1)), int(np.ceil(y1))
            patch = source[max(top, 0) : bottom, max(left, 0) : right]
            h, w = patch.shape[:2]
            if not (0 < h < H and 0 < w < W):
                continue
            for _ in range(10):
                y, x = int(rng.integers(0, H - h)), int(rng.integers(0, W - w))
                overlap = (
                    (xyxy[:, 0] < x + w)
                    & (xyxy[:, 2] > x)
                    & (xyxy[:, 1] < y + h)
                    & (xyxy[:, 3] > y)
                )
                if not overlap.any():
                    image[y : y + h, x : x + w] = patch
                    box = [x0 - max(left, 0) + x, y0 - max(top, 0) + y]
                    xyxy = np.vstack((xyxy, [*box, box[0] + x1 - x0, box[1] + y1 - y0]))
                    labels = np.append(labels, data.records[i].labels[j])
                    break
        return image, xyxy, labels

    return apply
