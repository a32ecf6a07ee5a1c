"""The DCC split of COCO: captions that name one of eight objects leave the training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from .errors import require
from .files import read_json, write_json
from .metrics.objects import mentions

# Hendricks et al. (CVPR 2016); the names are those that Neural Baby Talk's evaluation counts
DCC_OBJECTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bottle": ("bottles",),
        "bus": ("busses",),
        "couch": ("couches", "sofa", "sofas"),
        "microwave": ("microwaves",),
        "pizza": ("pizzas",),
        "racket": ("rackets", "racquet", "racquets"),
        "suitcase": ("suitcases", "luggage", "luggages"),
        "zebra": ("zebras",),
    }
)


@dataclass(frozen=True)
class HeldOutSplit:
    """Image ids by what their captions name.

    Attributes
    ----------
    train : list
        Images of which no caption names a held-out object.
    held_out : dict
        Object to the images of which at least one caption names it; an image may stand in several.
    val, test : list
        The images with held-out objects, halved at random.
    """

    train: list[Any]
    held_out: dict[str, list[Any]]
    val: list[Any]
    test: list[Any]


def held_out_split(
    references: Mapping[Any, Sequence[str]],
    objects: Mapping[str, Sequence[str]] = DCC_OBJECTS,
    seed: int = 0,
) -> HeldOutSplit:
    """Split images by whether their captions name held-out objects, as whole words.

    DCC publishes lists of file names; this is its rule, so the split can be made for any captions.

    Parameters
    ----------
    references : mapping
        Image id to captions.
    objects : mapping
        Held-out object to its other names; DCC's eight by default.
    seed : int
        Of the halves ``val`` and ``test``.

    Examples
    --------
    >>> split = held_out_split({1: ["a cat"], 2: ["a sofa", "a seat"], 3: ["a busy street"]})
    >>> split.train, split.held_out["couch"], split.held_out["bus"]
    ([1, 3], [2], [])
    """
    require(bool(objects), "objects", {}, "at least one object")
    held: dict[str, list[Any]] = {
        thing: [
            key
            for key, captions in references.items()
            if any(mentions(c, [thing, *others]) for c in captions)
        ]
        for thing, others in objects.items()
    }
    named = {key for keys in held.values() for key in keys}
    apart = [key for key in references if key in named]
    order = np.random.default_rng(seed).permutation(len(apart))
    half = (len(apart) + 1) // 2
    val, test = ([apart[i] for i in sorted(part)] for part in (order[:half], order[half:]))
    return HeldOutSplit([key for key in references if key not in named], held, val, test)


def write_split(captions: str | Path, split: HeldOutSplit, out: str | Path) -> list[Path]:
    """Write COCO caption files of the parts, ``train.json``, ``val.json``, ``test.json``, and ids.

    ``held_out.json`` maps each object to its image ids.
    """
    data = read_json(captions, "captions")
    written = []
    for name in ("train", "val", "test"):
        keys = set(getattr(split, name))
        part = {
            **{k: v for k, v in data.items() if k not in ("images", "annotations")},
            "images": [row for row in data.get("images", []) if row["id"] in keys],
            "annotations": [row for row in data["annotations"] if row["image_id"] in keys],
        }
        written.append(write_json(Path(out) / f"{name}.json", part))
    written.append(write_json(Path(out) / "held_out.json", split.held_out))
    return written
