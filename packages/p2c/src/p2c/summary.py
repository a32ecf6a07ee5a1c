"""What a run says: novel F1, domains, verbs, tests on the evaluator, flags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .metrics import (
    Interval,
    NovelF1,
    bootstrap,
    domain_table,
    novel_f1,
    object_hallucination,
    paired_bootstrap,
    tag_listing,
)
from .result import PipelineResult
from .world import HELD_OUT, NAMES


@dataclass(frozen=True)
class Arm:
    """Figures of one stage's captions of the test scenes."""

    name: str
    novel: NovelF1
    cider: dict[str, float]
    verb: Interval
    evaluator: Interval
    hallucination: float
    listing: tuple[float, bool]
    verbs_used: int
    words_used: int
    repeated: float


def summarize(result: PipelineResult) -> dict[str, Arm]:
    """Return the figures of every arm."""
    assert result.test is not None
    test = result.test
    refs = dict(enumerate(test.references))
    domains = dict(enumerate(test.domains))
    truth = {i: {e.first.word, e.second.word} for i, e in enumerate(test.events)}
    novel = {word: list(NAMES[word]) for word in HELD_OUT}
    names = {word: list(others) for word, others in NAMES.items()}
    all_verbs = {e.verb for e in test.events} | {"stands"}
    arms = {}
    for name, captions in result.captions.items():
        preds = dict(enumerate(captions))
        right = verb_hits(result, name)
        hits = np.array(result.evaluator_hits[name])
        words = [c.split() for c in captions]
        arms[name] = Arm(
            name,
            novel_f1(preds, refs, novel, resamples=300),
            {d: row["CIDEr"] for d, row in domain_table(preds, refs, domains).items()},
            bootstrap(len(right), lambda i, x=right: float(x[i].mean())),  # type: ignore[misc]
            bootstrap(len(hits), lambda i, x=hits: float(x[i].mean())),  # type: ignore[misc]
            object_hallucination(preds, truth, names).per_object,
            tag_listing(preds, names),
            len({w for line in words for w in line} & all_verbs),
            len({w for line in words for w in line}),
            float(np.mean([_twice(line, names) for line in words])),
        )
    return arms


def unseen_f1(result: PipelineResult) -> dict[str, NovelF1]:
    """Return the novel F1 of every arm on the same scenes in a style nothing was trained on."""
    if result.unseen is None:
        return {}
    refs = dict(enumerate(result.unseen.references))
    novel = {word: list(NAMES[word]) for word in HELD_OUT}
    return {
        name: novel_f1(dict(enumerate(captions)), refs, novel, resamples=300)
        for name, captions in result.unseen_captions.items()
    }


def _twice(words: list[str], names: dict[str, list[str]]) -> bool:
    nouns = [w for w in words if w in names]
    return len(set(nouns)) < len(nouns)


def verb_hits(result: PipelineResult, arm: str) -> np.ndarray:
    """Return 1 for each test scene whose caption has the true verb."""
    assert result.test is not None
    pairs = zip(result.test.events, result.captions[arm])
    return np.array([float(e.verb in c.split()) for e, c in pairs])


def gains(result: PipelineResult) -> dict[str, tuple[str, str, str, Interval, float]]:
    """Return paired tests between arms on figures that were no reward.

    Keys say what is compared; values are (figure, before, after, gain, p).
    """
    found = {}
    for before, after in (("VIVO + XE", "stage 1"), ("stage 1", "stage 2")):
        for figure, values in (
            ("evaluator retrieves the scene", result.evaluator_hits),
            ("true verb", {a: verb_hits(result, a) for a in (before, after)}),
        ):
            gain, p = paired_bootstrap(np.array(values[before]), np.array(values[after]))
            found[f"{after}: {figure}"] = (figure, before, after, gain, p)
    return found
