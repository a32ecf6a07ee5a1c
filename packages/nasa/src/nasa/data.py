"""Labelled images in memory: digits, IDX files (Fashion-MNIST), image folders, npz."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Attributes
    ----------
    images : (n, c, h, w) float tensor
        Normalised to zero mean and unit deviation of the training images.
    labels : (n,) int64 tensor
    classes : int
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    classes: int

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or len(self.images) == 0:
            raise ValueError(
                f"images has {len(self.images)} entries and labels {len(self.labels)}: both need "
                f"the "
                "same positive number"
            )
        if not torch.isfinite(self.images).all():
            bad = int((~torch.isfinite(self.images)).flatten(1).any(1).sum())
            raise ValueError(f"images: {bad} of {len(self.images)} hold NaN or infinity")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> LabelledImages:
        """Return some of the images."""
        return LabelledImages(self.images[rows], self.labels[rows], self.classes)

    def split(self, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """Return two disjoint parts, the first one with the given fraction."""
        if not 0 < fraction < 1:
            raise ValueError(f"fraction={fraction}: must lie between 0 and 1")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = max(1, min(len(self) - 1, round(fraction * len(self))))
        return self.take(order[:cut]), self.take(order[cut:])

    def batches(self, size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels), shuffled by the seed; a last single image is left out."""
        order = torch.arange(len(self))
        if seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for at in range(0, len(self), size):
            rows = order[at : at + size]
            if len(rows) > 1 or seed is None:
                yield self.images[rows], self.labels[rows]


def _normalised(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> tuple[LabelledImages, LabelledImages]:
    images = train[0].astype(np.float32)
    mean, deviation = images.mean((0, 2, 3), keepdims=True), images.std((0, 2, 3), keepdims=True)
    classes = int(max(train[1].max(), test[1].max())) + 1
    first, second = (
        LabelledImages(
            torch.from_numpy((x.astype(np.float32) - mean) / (deviation + 1e-6)),
            torch.from_numpy(y.astype(np.int64)),
            classes,
        )
        for x, y in (train, test)
    )
    return first, second


def load_digits(seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Return train and test parts of scikit-learn's 1797 handwritten digits, 1 x 8 x 8."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise ValueError("data='digits' needs scikit-learn: pip install nasa[demo]") from None
    bunch = load()
    images = (bunch.images / 16.0)[:, None]
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:450], order[450:]
    return _normalised((images[train], bunch.target[train]), (images[test], bunch.target[test]))


def _idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    dims = data[3]
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape)


def load_idx(folder: str | Path, size: int | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Read the four IDX files of MNIST or Fashion-MNIST, gzipped or not.

    Parameters
    ----------
    folder : path
    size : int, optional
        Side that the images are averaged down to (28 / size pixels each way become one).
    """
    parts = []
    for stem in ("train", "t10k"):
        found = []
        for kind in ("images-idx3", "labels-idx1"):
            names = sorted(Path(folder).glob(f"{stem}-{kind}-ubyte*"))
            if not names:
                raise ValueError(f"data={str(folder)!r}: no file {stem}-{kind}-ubyte(.gz) in it")
            found.append(_idx(names[0]))
        images = found[0][:, None] / 255.0
        if size is not None:
            pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images), size)
            images = pooled.numpy()
        parts.append((images, found[1]))
    return _normalised(parts[0], parts[1])


def load_folder(
    source: str | Path, size: int | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """Read ``train/<class>/<image>`` and ``test/<class>/<image>`` from a folder or a zip file.

    Parameters
    ----------
    source : path
    size : int, optional
        Side that every image is resized to; by default the images must share one size.
    """
    from PIL import Image

    root: Any = Path(source)
    if str(source).endswith(".zip"):
        root = zipfile.Path(zipfile.ZipFile(source))
    names: list[str] = []
    parts = []
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise ValueError(f"data={str(source)!r}: no folder {part} in it")
        folders = sorted((f for f in (root / part).iterdir() if f.is_dir()), key=lambda f: f.name)
        names = names or [f.name for f in folders]
        images, labels = [], []
        for folder in folders:
            if folder.name not in names:
                raise ValueError(
                    f"data={str(source)!r}: class {folder.name!r} has no training image"
                )
            for file in sorted(folder.iterdir(), key=lambda f: f.name):
                with file.open("rb") as stream:
                    image = Image.open(stream).convert("RGB")
                    image = image.resize((size, size), Image.Resampling.BOX) if size else image
                    images.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255.0)
                labels.append(names.index(folder.name))
        if len({image.shape for image in images}) != 1:
            raise ValueError(f"data={str(source)!r}: images differ in size; give size")
        parts.append((np.stack(images), np.array(labels)))
    return _normalised(parts[0], parts[1])


def load(
    source: str, seed: int = 0, size: int | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """Read a data set by name or by path.

    Parameters
    ----------
    source : str
        ``digits``, ``fashion-mnist`` (Debian's package dataset-fashion-mnist), a folder of IDX
        files, or a folder or zip file of ``train/<class>/`` and ``test/<class>/``.
    seed : int
        Division of the digits.
    size : int, optional
        Side that images are resized to.
    """
    if source == "digits":
        return load_digits(seed)
    path = FASHION_MNIST if source == "fashion-mnist" else Path(source)
    if not path.exists():
        if source == "fashion-mnist":
            raise ValueError(
                f"data='fashion-mnist': {FASHION_MNIST} is absent: install Debian's package "
                "dataset-fashion-mnist, or give a folder with its four IDX files"
            )
        raise ValueError(
            f"data={source!r}: neither 'digits', 'fashion-mnist' nor a folder or zip file"
        )
    if path.is_dir() and any(path.glob("*-idx3-ubyte*")):
        return load_idx(path, size)
    return load_folder(path, size)
