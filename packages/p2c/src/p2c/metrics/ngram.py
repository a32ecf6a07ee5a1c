"""BLEU, ROUGE-L, CIDEr and CIDEr-D, equal to pycocoevalcap on tokenised captions.

Tokens are separated by blanks, as pycocoevalcap expects after its PTB tokenizer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ..native import compiled

Ngram = tuple[Hashable, ...]


def ngrams(words: Sequence[Hashable], longest: int = 4) -> Counter[Ngram]:
    """Count the n-grams of orders 1 to ``longest``."""
    counts: Counter[Ngram] = Counter()
    for n in range(1, longest + 1):
        counts.update(zip(*(words[i:] for i in range(n))))
    return counts


def bleu(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> tuple[list[float], list[list[float]]]:
    """Return BLEU-1..4 of the corpus and of each caption (closest reference length).

    Parameters
    ----------
    references : sequence of sequences of str
        Several references per caption.
    hypotheses : sequence of str
        One caption per item.

    Returns
    -------
    tuple
        Four corpus figures, and four lists with one figure per caption, as
        ``pycocoevalcap.bleu.Bleu(4).compute_score`` gives them (Papineni et al., 2002).

    Examples
    --------
    >>> [round(x, 3) for x in bleu([["a zebra near a bus"]], ["a zebra near a bus"])[0]]
    [1.0, 1.0, 1.0, 1.0]
    """
    tiny, small = 1e-15, 1e-9
    total_correct, total_guess = [0] * 4, [0] * 4
    total_length = total_reference = 0
    each: list[list[float]] = [[], [], [], []]
    for refs, hyp in zip(references, hypotheses, strict=True):
        words = hyp.split()
        most: dict[Ngram, int] = {}
        lengths = []
        for ref in refs:
            tokens = ref.split()
            lengths.append(len(tokens))
            for gram, count in ngrams(tokens).items():
                most[gram] = max(most.get(gram, 0), count)
        correct = [0] * 4
        for gram, count in ngrams(words).items():
            correct[len(gram) - 1] += min(most.get(gram, 0), count)
        guess = [max(0, len(words) - n) for n in range(4)]
        closest = min((abs(length - len(words)), length) for length in lengths)[1]
        ratio = (len(words) + tiny) / (closest + small)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        product = 1.0
        for n in range(4):
            product *= (correct[n] + tiny) / (guess[n] + small)
            each[n].append(product ** (1 / (n + 1)) * brevity)
            total_correct[n] += correct[n]
            total_guess[n] += guess[n]
        total_length += len(words)
        total_reference += closest
    ratio = (total_length + tiny) / (total_reference + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, corpus = 1.0, []
    for n in range(4):
        product *= (total_correct[n] + tiny) / (total_guess[n] + small)
        corpus.append(product ** (1 / (n + 1)) * brevity)
    return corpus, each


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        corner = 0
        for j, y in enumerate(b):
            corner, row[j + 1] = (
                row[j + 1],
                corner + 1 if x == y else max(row[j], row[j + 1]),
            )
    return row[-1]


def rouge_l(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> tuple[float, list[float]]:
    """Return mean and single ROUGE-L figures (beta 1.2; best precision, best recall).

    Examples
    --------
    >>> round(rouge_l([["man on horse", "a man riding a horse"]], ["a horse riding a man"])[0], 6)
    0.6
    """
    beta, scores = 1.2, []
    for refs, hyp in zip(references, hypotheses, strict=True):
        words = hyp.split(" ")
        precision = recall = 0.0
        for ref in refs:
            tokens = ref.split(" ")
            common = _longest_common(tokens, words)
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(tokens))
        if precision and recall:
            scores.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision))
        else:
            scores.append(0.0)
    return (float(np.mean(scores)) if scores else 0.0), scores


class CiderD:
    """CIDEr-D with the references' vectors computed once (Vedantam et al., 2015).

    ``pycocoevalcap``'s "CIDEr" is this clipped, length-penalised variant. The quirks of its code
    are kept: a caption's length counts its bigrams, and a missing n-gram has document frequency 1.

    Parameters
    ----------
    references : mapping from a key to sequences of tokens
        Reference captions of each image: strings, or sequences of word numbers.
    frequencies : mapping from n-gram to int, optional
        Document frequencies; those of ``references`` by default.
    documents : int, optional
        Number of images behind ``frequencies``.
    sigma : float
        Width of the length penalty, in bigrams.

    Examples
    --------
    >>> refs = {0: ["a zebra near a bus"], 1: ["a pizza on a couch"]}
    >>> CiderD(refs).scores([0, 1, 1], ["a zebra near a bus", "a pizza", ""]).round(3).tolist()
    [10.0, 2.377, 0.0]
    """

    def __init__(
        self,
        references: Mapping[Hashable, Sequence[str | Sequence[int]]],
        frequencies: Mapping[Ngram, int] | None = None,
        documents: int | None = None,
        sigma: float = 6.0,
    ) -> None:
        self.sigma = sigma
        self._native = None
        module = compiled()
        counted = {key: [ngrams(_words(r)) for r in refs] for key, refs in references.items()}
        if frequencies is None:
            found: Counter[Ngram] = Counter()
            for counts in counted.values():
                found.update(set().union(*counts))
            frequencies, documents = found, len(counted)
        self.frequencies = frequencies
        self.log_documents = math.log(documents or 1)
        if module is not None:
            self._native = module.CiderD(frequencies, self.log_documents, sigma)
            self._numbers = {k: self._native.add(refs) for k, refs in references.items()}
            return
        self._idf: dict[Ngram, float] = {
            gram: self.log_documents - math.log(max(1.0, count))
            for gram, count in frequencies.items()
        }
        self._penalty = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(400)]
        self._cached = {key: self._prepare(counts) for key, counts in counted.items()}

    def _prepare(
        self, references: list[Counter[Ngram]]
    ) -> tuple[dict[Ngram, list[tuple[int, float, float]]], list[int]]:
        """Return n-gram -> [(reference, weight, weight over that order's norm)], and lengths."""
        table: dict[Ngram, list[tuple[int, float, float]]] = defaultdict(list)
        lengths = []
        for number, counts in enumerate(references):
            weights = {gram: count * self._weight(gram) for gram, count in counts.items()}
            square = [0.0] * 5
            for gram, weight in weights.items():
                square[len(gram)] += weight * weight
            norm = [math.sqrt(x) for x in square]
            for gram, weight in weights.items():
                n = len(gram)
                if weight:
                    table[gram].append((number, weight, weight / norm[n]))
            lengths.append(sum(count for gram, count in counts.items() if len(gram) == 2))
        return dict(table), lengths

    def _weight(self, gram: Ngram) -> float:
        return self._idf.get(gram, self.log_documents)

    def score(self, key: Hashable, caption: str | Sequence[int]) -> float:
        """Return the CIDEr-D of one caption against the references of ``key`` (0 to 10)."""
        if self._native is not None:
            return float(self._native.score(self._numbers[key], caption))
        table, lengths = self._cached[key]
        words = _words(caption)
        idf, default = self._idf, self.log_documents
        penalty = self._penalty
        bigrams = max(0, len(words) - 1)
        scale = [
            penalty[d]
            if (d := abs(bigrams - length)) < 400
            else math.exp(-(d**2) / (2 * self.sigma**2))
            for length in lengths
        ]
        total = 0.0
        for n in range(1, 5):
            counts: dict[Ngram, int] = {}
            for gram in zip(*(words[i:] for i in range(n))):
                counts[gram] = counts.get(gram, 0) + 1
            square = dot = 0.0
            for gram, count in counts.items():
                weight = count * idf.get(gram, default)
                square += weight * weight
                for number, ref, relative in table.get(gram, ()):
                    dot += (weight if weight < ref else ref) * relative * scale[number]
            if square:
                total += dot / math.sqrt(square)
        return 10 * total / (4 * len(lengths))

    def scores(
        self, keys: Sequence[Hashable], captions: Sequence[str | Sequence[int]]
    ) -> np.ndarray:
        """Return the CIDEr-D of many captions, each against the references of its key."""
        if self._native is not None:
            numbers = [self._numbers[key] for key in keys]
            return np.array(self._native.scores(numbers, list(captions)), dtype=float)
        return np.array([self.score(key, text) for key, text in zip(keys, captions, strict=True)])


def _words(text: str | Sequence[int]) -> Sequence[Hashable]:
    return text.split() if isinstance(text, str) else text


def cider(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> tuple[float, list[float]]:
    """Return mean and single CIDEr figures with the document frequencies of ``references``.

    The same as ``pycocoevalcap.cider.Cider().compute_score``.

    Examples
    --------
    >>> cider([["a zebra near a bus"], ["a pizza"]], ["a zebra near a bus", "a bus"])[0]
    5.0
    """
    scorer = CiderD(dict(enumerate(references)))
    scores = scorer.scores(list(range(len(references))), list(hypotheses)).tolist()
    return (float(np.mean(scores)) if scores else 0.0), scores
