"""Several metrics at once, whole and by domain."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, require
from ..vocabulary import tokenize
from .ngram import bleu, cider, rouge_l

METRICS = ("bleu", "rouge_l", "cider", "meteor", "spice")


def evaluate(
    preds: Mapping[Any, str],
    refs: Mapping[Any, Sequence[str]],
    which: Sequence[str] = ("bleu", "rouge_l", "cider"),
) -> dict[str, float]:
    """Return corpus metrics of captions against references.

    Captions are split into words by `p2c.vocabulary.tokenize`; METEOR and SPICE run the Java tools
    of ``pycocoevalcap``.

    Parameters
    ----------
    preds : mapping
        Image id to caption; an empty caption scores 0.
    refs : mapping
        Image id to at least one reference.
    which : sequence of str
        Of "bleu", "rouge_l", "cider", "meteor", "spice".

    Raises
    ------
    InputError
        A metric is unknown, a reference is missing, or Java is.

    Examples
    --------
    >>> scores = evaluate({1: "a zebra", 2: "a bus"}, {1: ["a zebra"], 2: ["a bus"]}, ["rouge_l"])
    >>> scores
    {'ROUGE-L': 1.0}
    """
    for name in which:
        require(name in METRICS, "which", name, "one of " + ", ".join(METRICS))
    require(len(preds) > 0, "preds", {}, "at least one caption")
    for key in preds:
        require(bool(refs.get(key)), "refs", key, "at least one reference per caption's image")
    hyps = [" ".join(tokenize(text)) for text in preds.values()]
    gts = [[" ".join(tokenize(r)) for r in refs[key]] for key in preds]
    found: dict[str, float] = {}
    if "bleu" in which:
        found.update({f"BLEU-{n}": v for n, v in enumerate(bleu(gts, hyps)[0], 1)})
    if "rouge_l" in which:
        found["ROUGE-L"] = rouge_l(gts, hyps)[0]
    if "cider" in which:
        found["CIDEr"] = cider(gts, hyps)[0]
    for name in ("meteor", "spice"):
        if name in which:
            found[name.upper()] = _java(name, gts, hyps)
    return found


def _java(name: str, gts: list[list[str]], hyps: list[str]) -> float:
    if shutil.which("java") is None:
        raise InputError(f"which = {name!r}: needs Java; install a Java 8+ runtime or leave it out")
    try:
        if name == "meteor":
            from pycocoevalcap.meteor.meteor import Meteor as Scorer
        else:
            from pycocoevalcap.spice.spice import Spice as Scorer
    except ImportError:
        raise InputError(f"which = {name!r}: needs pycocoevalcap; pip install p2c[java]") from None
    try:
        score, _ = Scorer().compute_score(
            dict(enumerate(gts)), {i: [h] for i, h in enumerate(hyps)}
        )
    except Exception as error:  # the Java process fails in many ways; the user needs one line
        text = " ".join(str(error).split())[:120]
        raise InputError(f"which = {name!r}: its Java tool failed; {text}") from None
    return float(score)


def domain_table(
    preds: Mapping[Any, str],
    refs: Mapping[Any, Sequence[str]],
    domains: Mapping[Any, str],
    which: Sequence[str] = ("cider",),
) -> dict[str, dict[str, float]]:
    """Return metrics for each domain (in, near, out) and over all images, as nocaps does."""
    table = {}
    there = {domains[key]: None for key in preds}
    first = [d for d in ("in", "near", "out") if d in there]
    for domain in [*dict.fromkeys([*first, *there]), "overall"]:
        part = {k: c for k, c in preds.items() if domain in ("overall", domains[k])}
        table[domain] = evaluate(part, refs, which)
    return table
