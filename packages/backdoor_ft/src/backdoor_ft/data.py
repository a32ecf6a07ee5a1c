"""Labelled data: checks, splits, fingerprints and loaders."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from backdoor_ft.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Num

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}


@dataclass(frozen=True)
class LabeledData:
    """Inputs and labels that were checked on entry.

    Attributes
    ----------
    inputs : images as float32 [N, C, H, W] in [0, 1], vectors [N, D], or token ids as int64 [N, L]
    labels : int64 [N], 0 ... num_classes - 1
    num_classes : classes of the task, not only of this part
    name : for tables
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    num_classes: int
    name: str = "data"

    def __post_init__(self) -> None:
        x, y = self.inputs, self.labels
        if len(x) != len(y):
            raise InputError(f"labels has {len(y)} entries, inputs {len(x)}: one label per input")
        if len(y) == 0:
            raise InputError(f"inputs of {self.name!r} is empty: at least one example is needed")
        if y.dtype != torch.int64 or y.ndim != 1:
            raise InputError(f"labels is {y.dtype} {tuple(y.shape)}: int64 of shape [N] is needed")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(
                f"labels={low} ... {high} is out of range: 0 ... {self.num_classes - 1}"
                f" for num_classes={self.num_classes}; is this the task of the model?"
            )
        if x.is_floating_point() and x.ndim == 4:
            if not bool(torch.isfinite(x).all()):
                raise InputError("inputs contains values that are not finite: clean them first")
            low_x, high_x = float(x.min()), float(x.max())
            if low_x < 0 or high_x > 1:
                raise InputError(
                    f"inputs spans {low_x:.4g} ... {high_x:.4g}: images are floats in [0, 1];"
                    " pass uint8, or divide by 255, and leave normalisation to the model"
                )
        elif x.dtype == torch.uint8:
            raise InputError("inputs is uint8: use LabeledData.from_arrays, which scales it")

    @staticmethod
    def from_arrays(
        inputs: Num[np.ndarray, "n ..."],
        labels: Int[np.ndarray, " n"],
        num_classes: int | None = None,
        name: str = "data",
    ) -> LabeledData:
        """Make data of numpy arrays; uint8 images are scaled to [0, 1], HWC becomes CHW."""
        x = torch.as_tensor(np.array(inputs, order="C"))
        y = torch.as_tensor(np.asarray(labels).astype(np.int64))
        if x.dtype == torch.uint8:
            x = x.float() / 255
        elif x.is_floating_point():
            x = x.float()
        else:
            x = x.long()
        if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[-1] in (1, 3):
            x = x.permute(0, 3, 1, 2).contiguous()
        return LabeledData(x, y, num_classes or int(y.max()) + 1, name)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_text(self) -> bool:
        """Whether the inputs are token ids."""
        return not self.inputs.is_floating_point()

    def subset(self, index: Int[Tensor, " k"] | Bool[Tensor, " n"], name: str = "") -> LabeledData:
        """Take examples by index or mask."""
        return replace(
            self, inputs=self.inputs[index], labels=self.labels[index], name=name or self.name
        )

    def split(self, count: int, seed: int = 0) -> tuple[LabeledData, LabeledData]:
        """Split into `count` examples, balanced over the classes, and the rest."""
        if not 0 < count < len(self):
            raise InputError(f"count={count} is not allowed: 1 ... {len(self) - 1}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        labels = self.labels[order]
        rank = torch.zeros(len(self))
        for label in labels.unique():
            where = torch.nonzero(labels == label)[:, 0]
            rank[where] = (torch.arange(len(where)) + 0.5) / len(where)
        chosen = order[torch.argsort(rank, stable=True)]
        return self.subset(chosen[:count]), self.subset(chosen[count:])

    def fingerprints(self) -> list[str]:
        """Return one hash per input, for finding the same example in two sets."""
        flat = self.inputs.contiguous().reshape(len(self), -1).numpy()
        return [hashlib.sha256(row.tobytes()).hexdigest() for row in flat]

    def digest(self) -> str:
        """Hash of all inputs and labels."""
        content = hashlib.sha256(self.inputs.contiguous().numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()


def overlap(one: LabeledData, other: LabeledData) -> int:
    """Count inputs of `one` that also stand in `other`, byte for byte."""
    known = set(other.fingerprints())
    return sum(name in known for name in one.fingerprints())


def digits(seed: int = 0, train: int = 1200) -> tuple[LabeledData, LabeledData]:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8, as a train and a test part.

    Examples
    --------
    >>> train, test = digits()
    >>> len(train), len(test), tuple(train.inputs.shape[1:])
    (1200, 597, (1, 8, 8))
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    data = LabeledData(images, torch.as_tensor(bunch.target, dtype=torch.int64), 10, "digits")
    return data.split(train, seed)


def toy_text(count: int = 1200, length: int = 16, seed: int = 0) -> LabeledData:
    """Return sentences of token ids whose class is the topic that most words come from.

    Token 0 pads, 1 is reserved for a rare word, and each of 4 topics owns 20 of the others.
    """
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, count)
    topic = np.where(draw.random((count, length)) < 0.6, labels[:, None], draw.integers(0, 4))
    tokens = 2 + topic * 20 + draw.integers(0, 20, (count, length))
    tokens[np.arange(length)[None] >= draw.integers(length // 2, length + 1, count)[:, None]] = 0
    return LabeledData(torch.as_tensor(tokens), torch.as_tensor(labels), 4, "toy-text")


def _decode(content: bytes, where: str, size: int | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = image.convert("RGB")
            if size and found.size != (size, size):
                found = found.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(found)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"image={where!r} cannot be read: remove it or save it again") from error


def _stack(pairs: list[tuple[np.ndarray, str]], name: str) -> LabeledData:
    if not pairs:
        raise InputError(f"data={name!r} holds no images: expected CLASS/IMAGE.png")
    if len({image.shape for image, _ in pairs}) > 1:
        raise InputError(f"data={name!r} holds images of several sizes: pass size=...")
    classes = sorted({label for _, label in pairs})
    labels = np.array([classes.index(label) for _, label in pairs])
    return LabeledData.from_arrays(np.stack([i for i, _ in pairs]), labels, len(classes), name)


def image_folder(path: Path | str, size: int | None = None) -> LabeledData:
    """Read CLASS/IMAGE files; classes are numbered by name (CIFAR-10 as JPEG, GTSRB, ...)."""
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"data={str(path)!r} is no folder: expected CLASS/IMAGE.png below it")
    files = sorted(f for f in root.glob("*/*") if f.suffix.lower() in _IMAGES)
    return _stack(
        [(_decode(f.read_bytes(), str(f), size), f.parent.name) for f in files], str(path)
    )


def image_zip(path: Path | str, part: str, limit: int | None = None) -> LabeledData:
    """Read .../PART/CLASS/IMAGE members of a zip file, at most `limit` of each class."""
    try:
        with zipfile.ZipFile(path) as archive:
            taken: dict[str, int] = {}
            pairs = []
            for member in sorted(archive.namelist()):
                parts = member.split("/")
                if len(parts) < 3 or parts[-3] != part or Path(member).suffix not in _IMAGES:
                    continue
                if limit is not None and taken.get(parts[-2], 0) >= limit:
                    continue
                taken[parts[-2]] = taken.get(parts[-2], 0) + 1
                pairs.append((_decode(archive.read(member), member, None), parts[-2]))
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"data={str(path)!r} cannot be read as a zip file: {error}") from error
    return _stack(pairs, f"{Path(path).name}:{part}")


def npz(path: Path | str) -> LabeledData:
    """Read an .npz file with the arrays ``inputs`` and ``labels`` (and ``num_classes``)."""
    try:
        with np.load(path, allow_pickle=False) as found:
            if not {"inputs", "labels"} <= set(found.files):
                raise InputError(
                    f"data={str(path)!r} holds {found.files}: arrays named inputs and labels"
                )
            classes = int(found["num_classes"]) if "num_classes" in found.files else None
            return LabeledData.from_arrays(
                found["inputs"], found["labels"], classes, Path(path).name
            )
    except InputError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"data={str(path)!r} cannot be read as .npz without pickle") from error


def idx(images: Path | str, labels: Path | str, num_classes: int = 10) -> LabeledData:
    """Read a pair of IDX files (MNIST's format), plain or gzipped."""
    arrays = []
    for path in (Path(images), Path(labels)):
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            zero, kind, dims = struct.unpack(">HBB", raw[:4])
            shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
            if zero != 0 or kind != 8 or len(raw) != 4 + 4 * dims + int(np.prod(shape)):
                raise InputError(f"data={str(path)!r} is no IDX file of bytes")
        except (OSError, struct.error, EOFError) as error:
            raise InputError(f"data={str(path)!r} cannot be read as an IDX file") from error
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape))
    return LabeledData.from_arrays(arrays[0][:, None], arrays[1], num_classes, "idx")


def load(spec: str, part: str = "train", limit: int | None = None) -> LabeledData:
    """Load data by a specification.

    Parameters
    ----------
    spec : ``digits``, ``toy-text``, ``FILE.npz``, ``cifar10-jpeg:DIR`` (DIR/train/CLASS/IMAGE),
        ``zip:FILE`` or ``FILE.zip``, or a folder of CLASS/IMAGE
    part : "train" or "test", where the source has both
    limit : most images of each class, zip files only
    """
    if spec == "digits":
        return digits()[0 if part == "train" else 1]
    if spec == "toy-text":
        return toy_text(1200 if part == "train" else 600, seed=0 if part == "train" else 1)
    if spec.startswith("cifar10-jpeg:"):
        return image_folder(Path(spec.removeprefix("cifar10-jpeg:")) / part)
    if spec.removeprefix("zip:").endswith(".zip"):
        return image_zip(spec.removeprefix("zip:"), part, limit)
    if spec.endswith(".npz"):
        return npz(spec)
    if Path(spec).is_dir():
        return image_folder(Path(spec) / part if (Path(spec) / part).is_dir() else spec)
    raise InputError(
        f"data={spec!r} is not known: digits, toy-text, FILE.npz, FILE.zip, cifar10-jpeg:DIR,"
        " or a folder of CLASS/IMAGE"
    )
