"""Samples of all UEs, and the sources they come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import partition as split
from .config import ExperimentConfig
from .errors import InputError, require


@dataclass(frozen=True)
class Samples:
    """Samples of all UEs, one after another.

    Attributes
    ----------
    x : Tensor of shape (samples, ...)
        Inputs.
    y : Tensor of shape (samples,)
        Labels.
    start, size : int arrays of shape (n,)
        Where each UE's samples begin and how many there are.
    """

    x: Tensor
    y: Tensor
    start: Int[np.ndarray, " ues"]
    size: Int[np.ndarray, " ues"]

    def rows(self, index: Int[np.ndarray, " ..."]) -> tuple[Tensor, Tensor]:
        """Return the samples at absolute positions."""
        at = torch.from_numpy(np.ascontiguousarray(index))
        return self.x[at], self.y[at]

    def padded(self, ues: Int[np.ndarray, " m"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples of some UEs as (m, longest, ...), with a mask that is 0 on padding."""
        longest = int(self.size[ues].max())
        position = np.arange(longest)[None, :]
        index = self.start[ues][:, None] + np.minimum(position, self.size[ues][:, None] - 1)
        x, y = self.rows(index)
        mask = torch.from_numpy(position < self.size[ues][:, None])
        return x, y, mask


@dataclass(frozen=True)
class FederatedData:
    """Training and test samples of all UEs.

    Attributes
    ----------
    train, test : Samples
        Disjoint samples of the same UEs.
    features, classes : int
        Width of an input and number of labels.
    manifest : str
        Hash of the split.
    """

    train: Samples
    test: Samples
    features: int
    classes: int
    manifest: str

    @property
    def ues(self) -> int:
        """Number of UEs."""
        return len(self.train.size)

    def __repr__(self) -> str:
        return (
            f"FederatedData({self.ues} UEs, {len(self.train.y)} training and "
            f"{len(self.test.y)} test samples, {self.classes} classes)"
        )


def federate(
    x: Float[np.ndarray, "samples ..."],
    y: Int[np.ndarray, " samples"],
    parts: split.Parts,
    test_fraction: float,
    seed: int,
    classes: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> FederatedData:
    """Cut each UE's samples into training and test.

    Raises
    ------
    InputError
        For a UE with fewer than two samples, or a label that is missing (negative) or too large.
    """
    classes = int(y.max()) + 1 if classes is None else classes
    for ue, part in enumerate(parts):
        require(
            len(part) >= 2,
            f"UE {ue}",
            f"{len(part)} samples",
            "2 or more",
            "drop it or use fewer UEs",
        )
        wrong = np.flatnonzero((y[part] < 0) | (y[part] >= classes))
        if wrong.size:
            raise InputError(
                f"UE {ue}, sample {int(part[wrong[0]])}: label {int(y[part[wrong[0]]])}: allowed "
                f"is 0 to {classes - 1}; a missing label must be removed"
            )
    g = np.random.Generator(np.random.Philox(seed))
    train, test = [], []
    for part in parts:
        order = g.permutation(part)
        cut = min(max(1, round(test_fraction * len(part))), len(part) - 1)
        test.append(order[:cut])
        train.append(order[cut:])
    return FederatedData(
        _samples(x, y, train, dtype),
        _samples(x, y, test, dtype),
        int(np.prod(x.shape[1:])) if np.issubdtype(x.dtype, np.floating) else x.shape[1],
        classes,
        split.manifest_hash([*train, *test]),
    )


def _samples(x: np.ndarray, y: np.ndarray, parts: split.Parts, dtype: torch.dtype) -> Samples:
    index = np.concatenate(parts)
    size = np.array([len(p) for p in parts], dtype=np.int64)
    xs = torch.from_numpy(np.ascontiguousarray(x[index]))
    xs = xs.to(dtype) if xs.is_floating_point() else xs.long()
    ys = torch.from_numpy(np.ascontiguousarray(y[index]).astype(np.int64))
    return Samples(xs, ys, np.concatenate([[0], np.cumsum(size)[:-1]]), size)


def load_data(config: ExperimentConfig) -> FederatedData:
    """Load the data of an experiment.

    Raises
    ------
    InputError
        When the file is missing or not what the source needs, in one line.
    """
    d = config.data
    dtype = torch.float64 if config.train.precision == "float64" else torch.float32
    if d.source == "npz":
        return _from_npz(Path(d.path), config.ues, dtype)
    if d.source == "folder":
        x, y, parts = _from_folder(Path(d.path), config.ues)
        return federate(x, y, parts, d.test_fraction, config.seed, dtype=dtype)
    if d.source == "text":
        text, speakers = read_play(Path(d.path))
        x, y, parts, symbols = windows_by_speaker(text, speakers, config.ues)
        return federate(x, y, parts, d.test_fraction, config.seed, symbols, dtype)
    require(
        d.partition != "by_key",
        "data.partition",
        d.partition,
        "a partition by labels",
        "by_key needs data.source = 'text'",
    )
    x, y = _digits() if d.source == "digits" else _synthetic(config.seed)
    parameter = {
        "classes": d.labels_per_ue,
        "shards": d.labels_per_ue,
        "dirichlet": d.concentration,
        "quantity_lognormal": d.concentration,
    }[d.partition]
    parts = split.PARTITIONERS[d.partition](y, config.ues, parameter, config.seed)
    return federate(x, y, parts, d.test_fraction, config.seed, int(y.max()) + 1, dtype)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.data / 16.0).astype(np.float64), bunch.target.astype(np.int64)


def _synthetic(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten Gaussian clouds in 20 dimensions, 200 samples each."""
    g = np.random.Generator(np.random.Philox(seed))
    centres = g.normal(size=(10, 20))
    y = np.repeat(np.arange(10), 200)
    return centres[y] + g.normal(size=(2000, 20)), y


def _from_npz(path: Path, ues: int, dtype: torch.dtype) -> FederatedData:
    """Arrays train_<ue>_x, train_<ue>_y, test_<ue>_x, test_<ue>_y; 8-bit images are scaled to 1."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                f"{part}_{ue}_{axis}": file[f"{part}_{ue}_{axis}"]
                for part in ("train", "test")
                for ue in range(ues)
                for axis in "xy"
            }
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"data.path = {str(path)!r}: allowed is an npz file with train_<ue>_x, train_<ue>_y, "
            f"test_<ue>_x, test_<ue>_y for {ues} UEs; {text}"
        ) from None
    sides: dict[str, Samples] = {}
    classes = 1 + max(int(y.max()) for ue in range(ues) if len(y := arrays[f"train_{ue}_y"]))
    features = 0
    for part in ("train", "test"):
        xs, ys, sizes = [], [], []
        for ue in range(ues):
            x, y = arrays[f"{part}_{ue}_x"], arrays[f"{part}_{ue}_y"].astype(np.int64)
            require(len(x) == len(y) > 0, f"{part}_{ue}_x", len(x), "samples, as many as labels")
            require(
                bool((y >= 0).all() and (y < classes).all()),
                f"{part}_{ue}_y",
                int(y.max()),
                f"labels 0 to {classes - 1}",
            )
            scale = 255.0 if x.dtype == np.uint8 else 1.0
            xs.append(x.reshape(len(x), -1).astype(np.float32) / np.float32(scale))
            ys.append(y)
            sizes.append(len(x))
        x, y = np.concatenate(xs), np.concatenate(ys)
        features = x.shape[1]
        sides[part] = _samples(x, y, np.split(np.arange(len(y)), np.cumsum(sizes)[:-1]), dtype)
    amounts = np.concatenate([sides["train"].size, sides["test"].size])
    manifest = split.manifest_hash([amounts, np.concatenate([sides[p].y for p in sides])])
    return FederatedData(sides["train"], sides["test"], features, classes, manifest)


def _from_folder(path: Path, ues: int) -> tuple[np.ndarray, np.ndarray, split.Parts]:
    """One file <ue>.npz with arrays x and y per UE."""
    xs, ys, parts, at = [], [], [], 0
    for ue in range(ues):
        file = path / f"{ue}.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                x, y = arrays["x"], arrays["y"].astype(np.int64)
        except (OSError, ValueError, KeyError) as error:
            text = " ".join(str(error).split())
            raise InputError(
                f"data.path = {str(file)!r}: allowed is an npz file with x and y; {text}"
            ) from None
        require(len(x) == len(y) > 0, str(file), len(x), "samples, as many as labels")
        xs.append(x.reshape(len(x), -1).astype(np.float64))
        ys.append(y)
        parts.append(np.arange(at, at + len(x)))
        at += len(x)
    return np.concatenate(xs), np.concatenate(ys), parts


def read_play(path: Path) -> tuple[list[str], list[str]]:
    """Speeches of a play and their speakers; a speech starts with a line ``Name:``.

    Raises
    ------
    InputError
        When the file is missing or has no such line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"data.path = {str(path)!r}: allowed is a UTF-8 text file; {message}"
        ) from None
    speeches, speakers = [], []
    for block in re.split(r"\n\s*\n", text):
        head, _, body = block.strip().partition("\n")
        if re.fullmatch(r"[A-Z][\w .'-]*:", head) and body:
            speakers.append(head[:-1])
            speeches.append(body)
    if not speeches:
        raise InputError(
            f"data.path = {str(path)!r}: allowed is a play, speeches that start with 'Name:'"
        )
    return speeches, speakers


def windows_by_speaker(
    speeches: list[str], speakers: list[str], ues: int, length: int = 20, stride: int = 10
) -> tuple[Int[np.ndarray, "samples length"], Int[np.ndarray, " samples"], split.Parts, int]:
    """Windows of symbol ids with the next symbol as label, split over the busiest speakers.

    Returns
    -------
    x, y, parts, symbols
        Windows, labels, index arrays per UE and the number of different symbols.
    """
    said: dict[str, str] = {}
    for speech, speaker in zip(speeches, speakers):
        said[speaker] = said.get(speaker, "") + speech + "\n"
    alphabet = np.unique([ord(c) for c in "".join(said.values())])
    xs, ys, keys = [], [], []
    for speaker in sorted(said):
        code = np.searchsorted(alphabet, [ord(c) for c in said[speaker]])
        starts = np.arange(0, len(code) - length, stride)
        if len(starts) < 2:
            continue
        xs.append(code[starts[:, None] + np.arange(length)])
        ys.append(code[starts + length])
        keys += [speaker] * len(starts)
    require(bool(xs), "data.path", "too short", f"speakers with more than {length} characters")
    return np.concatenate(xs), np.concatenate(ys), split.by_key(keys, ues), len(alphabet)
