"""Splits of a labelled data set over UEs: index arrays and a hash that identifies the split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from .errors import require

Parts = list[Int[np.ndarray, " samples"]]


def manifest_hash(parts: Sequence[Int[np.ndarray, " samples"]]) -> str:
    """SHA-256 over the index arrays, in order.

    Examples
    --------
    >>> manifest_hash([np.array([0, 1])]) == manifest_hash([np.array([1, 0])])
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _deal(owners: Sequence[Sequence[int]], labels: np.ndarray, g: np.random.Generator) -> Parts:
    """Give each label's samples, shuffled, in equal parts to the UEs that own the label."""
    n = 1 + max(ue for row in owners for ue in row)
    rows: list[list[np.ndarray]] = [[] for _ in range(n)]
    for label, row in enumerate(owners):
        index = g.permutation(np.flatnonzero(labels == label))
        for ue, piece in zip(row, np.array_split(index, max(len(row), 1))):
            rows[ue].append(piece)
    return [np.sort(np.concatenate(r)) if r else np.empty(0, dtype=np.int64) for r in rows]


def classes(
    labels: Int[np.ndarray, " samples"], ues: int, labels_per_ue: int, seed: int = 0
) -> Parts:
    """Each UE holds `labels_per_ue` labels; every label is held by nearly the same number of UEs.

    Examples
    --------
    >>> y = np.repeat(np.arange(4), 6)
    >>> [sorted(set(y[p].tolist())) for p in classes(y, 4, 2, seed=1)]  # doctest: +ELLIPSIS
    [[...], [...], [...], [...]]
    """
    count = int(labels.max()) + 1
    require(
        1 <= labels_per_ue <= count, "labels_per_ue", labels_per_ue, f"1 to {count}, the labels"
    )
    require(
        ues * labels_per_ue >= count,
        "labels_per_ue",
        labels_per_ue,
        f"at least {-(-count // ues)} for {ues} UEs, so that every label is held",
    )
    g = _generator(seed)
    load = np.zeros(count, dtype=np.int64)
    owners: list[list[int]] = [[] for _ in range(count)]
    for ue in g.permutation(ues).tolist():
        order = np.lexsort((g.random(count), load))[:labels_per_ue]
        load[order] += 1
        for label in order.tolist():
            owners[label].append(ue)
    parts = _deal([sorted(row) for row in owners], labels, g)
    return _not_empty(parts + [np.empty(0, dtype=np.int64)] * (ues - len(parts)), "classes")


def dirichlet(
    labels: Int[np.ndarray, " samples"], ues: int, concentration: float, seed: int = 0
) -> Parts:
    """Shares of every label over UEs drawn from a Dirichlet law; every UE gets a sample or more."""
    require(concentration > 0, "concentration", concentration, "positive")
    require(len(labels) >= ues, "ues", ues, f"at most {len(labels)}, the samples")
    g = _generator(seed)
    pieces: list[list[np.ndarray]] = [[] for _ in range(ues)]
    for label in range(int(labels.max()) + 1):
        index = g.permutation(np.flatnonzero(labels == label))
        share = g.dirichlet(np.full(ues, concentration))
        cuts = np.round(np.cumsum(share)[:-1] * len(index)).astype(np.int64)
        for ue, piece in enumerate(np.split(index, cuts)):
            pieces[ue].append(piece)
    parts = [np.concatenate(p) for p in pieces]
    return [np.sort(p) for p in _feed_the_empty(parts)]


def shards(
    labels: Int[np.ndarray, " samples"], ues: int, shards_per_ue: int, seed: int = 0
) -> Parts:
    """Sort by label, cut into equal shards, deal `shards_per_ue` to each UE (McMahan et al.)."""
    require(
        ues * shards_per_ue <= len(labels), "shards_per_ue", shards_per_ue, "no more than samples"
    )
    g = _generator(seed)
    order = np.lexsort((g.random(len(labels)), labels))
    pieces = np.array_split(order, ues * shards_per_ue)
    deal = g.permutation(len(pieces)).reshape(ues, shards_per_ue)
    return [np.sort(np.concatenate([pieces[i] for i in row])) for row in deal]


def quantity_lognormal(
    labels: Int[np.ndarray, " samples"], ues: int, sigma: float, seed: int = 0
) -> Parts:
    """Labels mixed evenly, amounts log-normal."""
    require(sigma > 0, "sigma", sigma, "positive")
    require(len(labels) >= ues, "ues", ues, f"at most {len(labels)}, the samples")
    g = _generator(seed)
    weight = g.lognormal(0.0, sigma, ues)
    cuts = np.round(np.cumsum(weight / weight.sum())[:-1] * len(labels)).astype(np.int64)
    parts = np.split(g.permutation(len(labels)), cuts)
    return [np.sort(p) for p in _feed_the_empty(list(parts))]


def by_key(keys: Sequence[str] | Int[np.ndarray, " samples"], ues: int) -> Parts:
    """One UE per key (a speaker), the keys with most samples first.

    Examples
    --------
    >>> [p.tolist() for p in by_key(["a", "b", "b", "c"], 2)]
    [[1, 2], [0]]
    """
    names, inverse, counts = np.unique(np.asarray(keys), return_inverse=True, return_counts=True)
    require(len(names) >= ues, "ues", ues, f"at most {len(names)}, the number of keys")
    order = np.lexsort((np.arange(len(names)), -counts))[:ues]
    return [np.flatnonzero(inverse == key) for key in order]


def _feed_the_empty(parts: Parts) -> Parts:
    """Move one sample at a time from the largest UE to each empty one."""
    for ue, part in enumerate(parts):
        if len(part) == 0:
            donor = int(np.argmax([len(p) for p in parts]))
            parts[ue], parts[donor] = parts[donor][:1], parts[donor][1:]
    return parts


def _not_empty(parts: Parts, name: str) -> Parts:
    for ue, part in enumerate(parts):
        require(
            len(part) > 0, f"partition {name}, UE {ue}", 0, "at least one sample", "use fewer UEs"
        )
    return parts


PARTITIONERS: dict[str, Callable[..., Parts]] = {
    "classes": classes,
    "dirichlet": dirichlet,
    "shards": shards,
    "quantity_lognormal": quantity_lognormal,
    "by_key": by_key,
}
