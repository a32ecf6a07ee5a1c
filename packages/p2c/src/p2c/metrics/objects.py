"""Objects named in captions: F1 of novel ones, hallucination, tag listing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..vocabulary import tokenize
from .stats import Interval, bootstrap

Names = Mapping[str, Sequence[str]]


def mentions(caption: str, names: Sequence[str]) -> bool:
    """Tell whether a caption has one of the names as whole words ("busy" is not "bus").

    Examples
    --------
    >>> mentions("a busy street", ["bus"]), mentions("a hot dog.", ["hot dog"])
    (False, True)
    """
    text = f" {' '.join(tokenize(caption))} "
    return any(f" {' '.join(tokenize(name))} " in text for name in names)


@dataclass(frozen=True)
class NovelF1:
    """F1 of naming each object, over all images.

    Attributes
    ----------
    f1, precision, recall : dict
        Per object; an object that no reference and no caption names has F1 0.
    counts : dict
        (true positives, false positives, false negatives) per object.
    macro : Interval
        Mean F1 over the objects, with its bootstrap interval over images.
    intervals : dict
        The same per object.
    """

    f1: dict[str, float]
    precision: dict[str, float]
    recall: dict[str, float]
    counts: dict[str, tuple[int, int, int]]
    macro: Interval
    intervals: dict[str, Interval]


def _f1(said: np.ndarray, there: np.ndarray) -> np.ndarray:
    both = (said & there).sum(0)
    total = said.sum(0) + there.sum(0)
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 0.0)


def novel_f1(
    preds: Mapping[Any, str],
    refs: Mapping[Any, Sequence[str]],
    novel: Names,
    seed: int = 0,
    resamples: int = 500,
) -> NovelF1:
    """Return the F1 of mentioning held-out objects (DCC; counted as Neural Baby Talk does).

    Parameters
    ----------
    preds : mapping
        Image id to caption.
    refs : mapping
        Image id to reference captions; an image holds an object if one of them names it.
    novel : mapping
        Object to its names, itself included or not.

    Examples
    --------
    >>> score = novel_f1({1: "a sofa", 2: "a busy cat"}, {1: ["a couch"], 2: ["a bus"]},
    ...                  {"couch": ["sofa"], "bus": []}, resamples=50)
    >>> score.f1, score.macro.value
    ({'couch': 1.0, 'bus': 0.0}, 0.5)
    """
    keys = list(preds)
    if missing := [key for key in keys if key not in refs]:
        raise InputError(f"refs: no reference for image {missing[0]!r}; allowed is one per caption")
    if not keys or not novel:
        raise InputError("preds, novel: allowed is at least one caption and one object")
    names = {thing: [thing, *others] for thing, others in novel.items()}
    said = np.array([[mentions(preds[k], n) for n in names.values()] for k in keys])
    there = np.array([[any(mentions(r, n) for r in refs[k]) for n in names.values()] for k in keys])
    tp, fp, fn = (said & there).sum(0), (said & ~there).sum(0), (~said & there).sum(0)
    f1 = _f1(said, there)
    g = np.random.default_rng(seed)
    draws = np.array(
        [_f1(said[i], there[i]) for i in g.integers(0, len(keys), (resamples, len(keys)))]
    )
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    mean = np.percentile(draws.mean(1), [2.5, 97.5])
    things = list(names)
    return NovelF1(
        dict(zip(things, f1.tolist())),
        dict(zip(things, (tp / np.maximum(tp + fp, 1)).tolist())),
        dict(zip(things, (tp / np.maximum(tp + fn, 1)).tolist())),
        dict(zip(things, zip(tp.tolist(), fp.tolist(), fn.tolist()))),
        Interval(float(f1.mean()), float(mean[0]), float(mean[1])),
        {t: Interval(float(v), float(a), float(b)) for t, v, a, b in zip(things, f1, low, high)},
    )


@dataclass(frozen=True)
class Hallucination:
    """Objects named that are not there (CHAIR, Rohrbach et al., 2018)."""

    per_object: float
    per_caption: Interval


def object_hallucination(
    preds: Mapping[Any, str], truth: Mapping[Any, Collection[str]], objects: Names
) -> Hallucination:
    """Return the share of named objects, and of captions, that name an absent object.

    Examples
    --------
    >>> h = object_hallucination({1: "a cat on a bus"}, {1: ["cat"]}, {"cat": [], "bus": []})
    >>> h.per_object, h.per_caption.value
    (0.5, 1.0)
    """
    wrong, said = [], []
    for key, caption in preds.items():
        named = [t for t, others in objects.items() if mentions(caption, [t, *others])]
        said.append(len(named))
        wrong.append(len(set(named) - set(truth[key])))
    flags = np.array(wrong) > 0
    share = bootstrap(len(flags), lambda i: float(flags[i].mean()), resamples=300)
    return Hallucination(sum(wrong) / max(1, sum(said)), share)


def tag_listing(
    preds: Mapping[Any, str], objects: Names, threshold: float = 0.5
) -> tuple[float, bool]:
    """Return the mean share of words that are object names, and whether it looks like a tag list.

    F1 rewards a captioner that lists all tags; a sentence spends most of its words elsewhere.

    Examples
    --------
    >>> names = {"cat": [], "bus": []}
    >>> tag_listing({1: "cat bus"}, names), tag_listing({1: "a cat sits on a bus"}, names)[1]
    ((1.0, True), False)
    """
    words = {w for t, others in objects.items() for name in (t, *others) for w in tokenize(name)}
    shares = []
    for caption in preds.values():
        tokens = tokenize(caption)
        shares.append(sum(t in words for t in tokens) / max(1, len(tokens)))
    share = float(np.mean(shares)) if shares else 0.0
    return share, share > threshold
