"""Features of a frozen backbone, computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptr.data.dataset import DiagramDataset, Target, make_target
from gptr.data.transforms import flip_horizontal
from gptr.gestalt.descriptors import Descriptors
from gptr.model.gptr import GPTR, Features


class FeatureCache:
    """Backbone maps, descriptors and targets of a data set.

    Descriptors belong to the pixels the maps were made from: a mirrored copy has its own.

    Parameters
    ----------
    model
        A model with a frozen backbone; models of one backbone can share a cache.
    data
        Images of any sizes; padded to the largest.
    flip
        Keep the mirrored images too, after the others.
    """

    def __init__(
        self, model: GPTR, data: DiagramDataset, *, flip: bool = False, batch_size: int = 16
    ) -> None:
        if not model.config.freeze_backbone:
            raise ValueError("freeze_backbone=False: features of a moving backbone cannot be kept")
        model.eval()
        self.length = len(data)
        images = [r.load() for r in data.records]
        boxes = [r.xyxy for r in data.records]
        if flip:
            mirrored = [flip_horizontal(i, b) for i, b in zip(images, boxes, strict=True)]
            images += [m[0] for m in mirrored]
            boxes += [m[1] for m in mirrored]
        labels = [r.labels for r in data.records] * (2 if flip else 1)
        self.targets: list[Target] = [
            make_target(b, k, i.shape[:2]) for i, b, k in zip(images, boxes, labels, strict=True)
        ]
        height = max((i.shape[0] for i in images), default=32)
        width = max((i.shape[1] for i in images), default=32)
        self.views = 2 if flip else 1
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), batch_size):
                parts.append(model.extract(images[start : start + batch_size], (height, width)))
        if not parts:
            raise ValueError("the data set is empty: there is nothing to cache")
        first = parts[0]
        self.grids = [(level.grid, level.stride) for level in first.levels]
        self.maps = [torch.cat([p.maps[i] for p in parts]) for i in range(len(first.maps))]
        self.packed = [
            torch.cat([p.levels[i].packed() for p in parts]) for i in range(len(first.levels))
        ]
        self.valid = [
            torch.cat([p.levels[i].valid for p in parts]) for i in range(len(first.levels))
        ]
        self.sizes = torch.cat([p.sizes for p in parts])
        self.official = None
        if first.official is not None:
            self.official = tuple(
                torch.cat([p.official[k] for p in parts if p.official]) for k in (0, 1)
            )

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Sequence[int]) -> Features:
        """Return the features of some images; index + len(self) is the mirrored image."""
        at = torch.as_tensor(indices, device=self.sizes.device)
        levels = [
            Descriptors.unpack(p[at], v[at], grid, stride)
            for p, v, (grid, stride) in zip(self.packed, self.valid, self.grids, strict=True)
        ]
        official = None if self.official is None else tuple(t[at] for t in self.official)
        return Features([m[at] for m in self.maps], levels, self.sizes[at], official)  # type: ignore[arg-type]
