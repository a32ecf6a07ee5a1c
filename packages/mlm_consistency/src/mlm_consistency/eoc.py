"""Ensemble of conditionals: several masking patterns as estimates of one conditional (paper, v2).

The distribution of interest is P(completion | prompt) under a span-infilling model. Patterns that
move prompt tokens from the encoder to the decoder, where they are teacher-forced, ask for the same
conditional; an inconsistent model answers them differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from .errors import InputError, ProbeError, require
from .mini_data import read_lines
from .pooling import FITTED, POOLS, cross_fitted
from .probes import COMMON_WORDS
from .scorers.seq2seq import InfillRequest, InfillScorer, load_infill, wrap
from .stats import Interval, bootstrap, mcnemar

PAPER_PATTERNS = (
    "baseline,offset:1-3,span:3x5x1,span:3x5x2,span:3x3x1,span:3x3x2,span:3x4x1,span:3x4x2"
)
LAMBADA_PATTERNS = "baseline,offset:1-6,span:3x5x1,span:3x5x2,span:3x10x1"


@dataclass(frozen=True)
class MaskingPattern:
    """Which tokens of the prompt move to the decoder.

    Parameters
    ----------
    offset : int
        The last K tokens, in front of the completion; 0 for the baseline.
    length, gap, number : int
        N spans of L masked tokens, each followed by G visible ones, at the prompt's end.
    """

    offset: int = 0
    length: int = 0
    gap: int = 0
    number: int = 0

    @property
    def name(self) -> str:
        """Name that `parse_patterns` reads."""
        if self.number:
            return f"span:{self.length}x{self.gap}x{self.number}"
        return f"offset:{self.offset}" if self.offset else "baseline"

    def spans(self, prompt: int, total: int) -> list[tuple[int, int]]:
        """Masked spans of prompt and completion, in tokens; the last one ends the sentence.

        Raises
        ------
        ProbeError
            The prompt is too short: the paper asks for K < length - 5.
        """
        used = self.number * (self.length + self.gap) if self.number else self.offset
        if used and used >= prompt - 5:
            raise ProbeError(
                f"prompt has {prompt} tokens: pattern {self.name} moves {used}, allowed are fewer"
                f" than {prompt - 5}; use longer prompts"
            )
        if not self.number:
            return [(prompt - self.offset, total)]
        start = prompt - used
        spans = []
        for n in range(self.number):
            first = start + n * (self.length + self.gap)
            spans.append((first, first + self.length))
        return [*spans, (prompt, total)]


def parse_patterns(text: str) -> list[MaskingPattern]:
    """Read ``baseline,offset:1-6,span:3x5x1``.

    Examples
    --------
    >>> [p.name for p in parse_patterns("baseline,offset:1-2,span:3x5x1")]
    ['baseline', 'offset:1', 'offset:2', 'span:3x5x1']
    """
    found: list[MaskingPattern] = []
    for part in text.split(","):
        part = part.strip()
        if part == "baseline":
            found.append(MaskingPattern())
        elif match := re.fullmatch(r"offset:(\d+)(?:-(\d+))?", part):
            first, last = int(match[1]), int(match[2] or match[1])
            require(1 <= first <= last, "patterns", part, "offset:K or offset:K1-K2, K >= 1")
            found += [MaskingPattern(offset=k) for k in range(first, last + 1)]
        elif match := re.fullmatch(r"span:(\d+)x(\d+)x(\d+)", part):
            length, gap, number = (int(v) for v in match.groups())
            require(min(length, gap, number) >= 1, "patterns", part, "span:LxGxN, all at least 1")
            found.append(MaskingPattern(0, length, gap, number))
        else:
            raise InputError(
                f"patterns = {part!r}: allowed are baseline, offset:K, offset:K1-K2, span:LxGxN"
            )
    require(len(set(found)) == len(found), "patterns", text, "patterns without repetition")
    return found


@dataclass(frozen=True)
class CompletionItem:
    """A prompt, candidate completions and the index of the right one."""

    context: str
    completions: tuple[str, ...]
    answer: int = 0


def read_items(path: str | Path) -> list[CompletionItem]:
    """Read JSON lines with ``context``, ``completions`` and ``answer`` (an index)."""
    items = []
    for number, line in enumerate(read_lines(path, "task"), start=1):
        try:
            row = json.loads(line)
            item = CompletionItem(
                str(row["context"]), tuple(map(str, row["completions"])), int(row["answer"])
            )
            if not 0 <= item.answer < len(item.completions) or len(item.completions) < 2:
                raise ValueError("answer must index two or more completions")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"task = {str(path)!r}: line {number} is no item ({error}); allowed is"
                ' {"context": "...", "completions": ["...", "..."], "answer": 0}'
            ) from None
        items.append(item)
    return items


def last_word_items(
    sentences: Sequence[str],
    tokenizer: Any,
    options: int = 4,
    seed: int = 0,
    shortest: int = 21,
    anywhere: bool = False,
    longest: int = 0,
) -> list[CompletionItem]:
    """Multiple choice of a sentence's last word, wrong ones from other sentences.

    Wrong completions are last words of about the same frequency, so that frequency alone does not
    help. Kept are prompts of more than 20 tokens whose last word is one known token (paper: more
    than 20 tokens, completions of fewer than 5). One item a sentence at most.

    Parameters
    ----------
    sentences : sequence of str
    tokenizer : Hugging Face tokenizer
    options : int
        Completions per item, the right one included.
    seed : int
        Wrong words, place of the right one, and the cuts.
    shortest : int
        Fewest tokens of a prompt.
    anywhere : bool
        End the sentence at a random one of its words that is not one of the sixty most common:
        more sentences give an item.
    longest : int
        Keep the last words of a prompt up to this many tokens; 0 keeps all.
    """
    rng = np.random.default_rng(seed)
    prompts, words = [], []
    for sentence in sentences:
        row = sentence.rstrip(" .,:;?!()\"'").lower().split()
        tokens = tokenizer(row, add_special_tokens=False)["input_ids"] if row else []
        sizes = np.cumsum([0, *map(len, tokens)])
        places = [
            at for at in (range(len(row)) if anywhere else range(len(row) - 1, len(row)))
            if sizes[at] >= shortest and row[at].isalpha() and len(tokens[at]) == 1
            and tokens[at][0] != tokenizer.unk_token_id
            and not (anywhere and row[at] in COMMON_WORDS)
        ]  # fmt: skip
        if places:
            at = int(rng.choice(places)) if anywhere else places[0]
            first = int(np.searchsorted(sizes, sizes[at] - longest)) if longest else 0
            prompts.append(" ".join(row[first:at]))
            words.append(row[at])
    require(len(set(words)) > 2 * options, "sentences", len(sentences),
            "enough sentences of 21 tokens with different last words")  # fmt: skip
    names, counts = np.unique(words, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = {str(names[o]): r for r, o in enumerate(order)}
    items = []
    for prompt, word in zip(prompts, words):
        at, width = rank[word], 6 * options
        near = [r for r in range(max(0, at - width), min(len(names), at + width + 1)) if r != at]
        wrong = [str(names[order[r]]) for r in rng.choice(near, options - 1, replace=False)]
        place = int(rng.integers(options))
        wrong.insert(place, word)
        items.append(CompletionItem(prompt, tuple(wrong), place))
    return items


@dataclass(frozen=True)
class Prediction:
    """Answer of the ensemble to one item."""

    completion: str
    index: int
    pooled: Float[np.ndarray, " c"]
    scores: Float[np.ndarray, "m c"]
    agree: bool

    def __repr__(self) -> str:
        return f"Prediction({self.completion!r}, patterns {'agree' if self.agree else 'disagree'})"


class EnsembleOfConditionals:
    """Choose among completions with several masking patterns of one model.

    Parameters
    ----------
    model : str, transformers encoder-decoder or InfillScorer
        ``"mini-t5"``, a folder, a Hugging Face id.
    patterns : str or list of MaskingPattern
    pool : "max", "avg", "geo", "arith", "ag" or "linear"
        The paper's ensemble is "max".
    weights : sequence of float, optional
        One per pattern; of any sign with "linear" (`pooling.fit_weights`).
    tokenizer : optional
        Needed unless `model` is a name.

    Examples
    --------
    >>> eoc = EnsembleOfConditionals("mini-t5", "baseline,offset:1-2", "geo")
    >>> eoc.predict("in the beginning god created the heaven and the", ["earth", "camel"])
    Prediction('earth', patterns agree)
    """

    def __init__(
        self,
        model: Any,
        patterns: str | Sequence[MaskingPattern] = LAMBADA_PATTERNS,
        pool: str = "max",
        weights: Sequence[float] | None = None,
        tokenizer: Any = None,
    ) -> None:
        require(pool in POOLS, "pool", pool, f"one of {', '.join(POOLS)}")
        if isinstance(model, str):
            self.scorer, found = load_infill(model)
            self.tokenizer = tokenizer or found
        elif isinstance(model, InfillScorer):
            self.scorer, self.tokenizer = model, tokenizer
        else:
            self.scorer, self.tokenizer = wrap(model, tokenizer), tokenizer
        self.patterns = parse_patterns(patterns) if isinstance(patterns, str) else list(patterns)
        require(len(self.patterns) >= 1, "patterns", 0, "at least one")
        self.pool = pool
        self.weights = weights

    def scores(
        self,
        items: Sequence[CompletionItem],
        progress: Callable[[int, int], object] | None = None,
        block: int = 64,
    ) -> list[Float[np.ndarray, "m c"]]:
        """Mean log-probability per completion token, for every pattern and completion, nats."""
        out: list[np.ndarray] = []
        for start in range(0, len(items), block):
            part = items[start : start + block]
            requests = [r for item in part for r in self._requests(item)]
            found = iter(self.scorer.score(requests))
            for _ in part:
                rows = [[float(v.mean()) for v in next(found)] for _ in self.patterns]
                out.append(np.asarray(rows))
            if progress:
                progress(min(start + block, len(items)), len(items))
        return out

    def _requests(self, item: CompletionItem) -> list[InfillRequest]:
        prompt = self.tokenizer(item.context, add_special_tokens=False)["input_ids"]
        ends = []
        for completion in item.completions:
            ids = self.tokenizer(_joined(completion), add_special_tokens=False)["input_ids"]
            if not ids:
                raise ProbeError(f"completion {completion!r} has no token: allowed is some text")
            ends.append(list(ids))
        requests = []
        for pattern in self.patterns:
            targets: list[tuple[int, ...]] = []
            encoder: tuple[int, ...] = ()
            skip = 0
            for end in ends:
                ids = [*prompt, *end]
                spans = pattern.spans(len(prompt), len(ids))
                encoder, target = self.scorer.pattern(ids, spans)
                if self.scorer.style == "mask":
                    skip = len(self.scorer.bos_ids) + len(prompt)
                else:
                    moved = sum(min(stop, len(prompt)) - start for start, stop in spans)
                    skip = len(spans) + moved
                # behind the completion stand the closing sentinel and the end: not scored
                targets.append(target[: skip + len(end)])
            requests.append(InfillRequest(tuple(encoder), tuple(targets), skip))
        return requests

    def predict(self, context: str, completions: Sequence[str]) -> Prediction:
        """Choose a completion."""
        require(len(completions) >= 1, "completions", 0, "at least one")
        scores = self.scores([CompletionItem(context, tuple(completions))])[0]
        pooled = POOLS[self.pool](scores, self.weights)
        best = int(np.argmax(pooled))
        agree = len(set(scores.argmax(axis=1).tolist())) == 1
        return Prediction(completions[best], best, pooled, scores, agree)

    def evaluate(
        self,
        items: Sequence[CompletionItem],
        progress: Callable[[int, int], object] | None = None,
    ) -> EnsembleResult:
        """Score items; keep those that all patterns can score, count the others."""
        kept, skipped = [], 0
        for item in items:
            prompt = len(self.tokenizer(item.context, add_special_tokens=False)["input_ids"])
            try:
                for pattern in self.patterns:
                    pattern.spans(prompt, prompt + 1)
                kept.append(item)
            except ProbeError:
                skipped += 1
        sizes = {len(item.completions) for item in kept}
        require(len(sizes) == 1, "items", sorted(sizes), "items with equally many completions")
        scores = np.stack(self.scores(kept, progress))
        answers = np.asarray([item.answer for item in kept])
        return EnsembleResult([p.name for p in self.patterns], scores, answers, skipped)

    def __repr__(self) -> str:
        return f"EnsembleOfConditionals({len(self.patterns)} patterns, pool {self.pool!r})"


def _joined(completion: str) -> str:
    return completion if completion[:1].isspace() else f" {completion}"


@dataclass(frozen=True)
class EnsembleResult:
    """Scores of many items.

    Parameters
    ----------
    patterns : list of str
    scores : float [n, m, c]
    answers : int [n]
    skipped : int
        Items that were too short for a pattern.
    """

    patterns: list[str]
    scores: Float[np.ndarray, "n m c"]
    answers: Int[np.ndarray, " n"]
    skipped: int = 0

    def correct(self, pool: str, seed: int = 0) -> Bool[np.ndarray, " n"]:
        """Whether a pool, a pattern, "fitted" or "signed" chooses the answer, per item."""
        if pool in self.patterns:
            return np.asarray(
                self.scores[:, self.patterns.index(pool)].argmax(axis=1) == self.answers
            )
        if pool in FITTED:
            pooled = cross_fitted(self.scores, self.answers, seed=seed, signed=FITTED[pool])
            return np.asarray(pooled.argmax(axis=1) == self.answers)
        require(pool in POOLS, "pool", pool, f"one of {', '.join([*POOLS, *FITTED])}")
        chosen = [int(np.argmax(POOLS[pool](s))) for s in self.scores]
        return np.asarray(np.asarray(chosen) == self.answers)

    def accuracy(self, pool: str, seed: int = 0) -> Interval:
        """Accuracy with its bootstrap interval."""
        return bootstrap(self.correct(pool, seed).astype(float), np.mean, seed)

    def best_single(self) -> str:
        """Pattern with the highest accuracy on these very items (an optimistic peer)."""
        return max(self.patterns, key=lambda name: float(self.correct(name).mean()))

    def disagreement(self, columns: Sequence[int] | None = None) -> float:
        """Share of items whose patterns do not all choose the same completion."""
        chosen = self.scores[:, list(columns) if columns is not None else slice(None)].argmax(2)
        return float((chosen != chosen[:, :1]).any(axis=1).mean())

    def curve(self, pool: str = "max", subsets: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Accuracy and disagreement by the number of conditionals (paper's Table 1).

        n conditionals are the first pattern and n - 1 others, averaged over at most `subsets`
        random choices. Averages over subsets of the same items are no independent evidence.
        """
        from itertools import combinations
        from math import comb

        m = len(self.patterns)
        rng = np.random.default_rng(seed)
        rows = []
        for n in range(1, m + 1):
            if comb(m - 1, n - 1) <= subsets:
                chosen = [(0, *c) for c in combinations(range(1, m), n - 1)]
            else:
                chosen = [
                    (0, *sorted(rng.choice(np.arange(1, m), n - 1, replace=False).tolist()))
                    for _ in range(subsets)
                ]
            accuracies = [
                float((_pool_all(pool, self.scores[:, list(c)]) == self.answers).mean())
                for c in chosen
            ]
            rows.append(
                {
                    "n": n,
                    "subsets": len(chosen),
                    "accuracy": float(np.mean(accuracies)),
                    "disagreement": float(np.mean([self.disagreement(c) for c in chosen])),
                }
            )
        return rows

    def table(
        self, pools: Sequence[str] = ("max", "avg", "arith", "fitted")
    ) -> list[dict[str, Any]]:
        """Accuracy of every pattern and pool, with McNemar's p-value against the first pattern."""
        base = self.correct(self.patterns[0])
        rows = []
        for name in [*self.patterns, *pools]:
            right = self.correct(name)
            found = bootstrap(right.astype(float), np.mean)
            rows.append(
                {
                    "name": name,
                    "accuracy": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "mcnemar_p": mcnemar(right, base),
                }
            )
        return rows

    def to_frame(self) -> Any:
        """`table` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.table())

    def __repr__(self) -> str:
        n, m, c = self.scores.shape
        return (
            f"EnsembleResult({n} items, {m} patterns, {c} completions, disagreement"
            f" {self.disagreement():.3f})"
        )


def _pool_all(pool: str, scores: Float[np.ndarray, "n m c"]) -> Int[np.ndarray, " n"]:
    """Chosen completions of all items at once, for the pools that allow it."""
    if pool == "max":
        return np.asarray(scores.max(axis=1).argmax(axis=1))
    if pool in ("avg", "geo"):
        return np.asarray(scores.mean(axis=1).argmax(axis=1))
    return np.asarray([int(np.argmax(POOLS[pool](s))) for s in scores])


__all__ = [
    "LAMBADA_PATTERNS",
    "PAPER_PATTERNS",
    "CompletionItem",
    "EnsembleOfConditionals",
    "EnsembleResult",
    "MaskingPattern",
    "Prediction",
    "last_word_items",
    "parse_patterns",
    "read_items",
]
