"""From a corpus to probes: which two tokens of which sentence, and why others were left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from .errors import InputError, ProbeError, require
from .files import write_text
from .mini_data import read_lines

# Sixty of the most frequent English words: such tokens have hardly any alternatives. The paper
# uses a list of this kind; which words it holds is not known, so this one is ours.
_COMMON = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were all her she there would their we him been has when who will no more if
out so up said what its about than into them can only other
"""
COMMON_WORDS = frozenset(_COMMON.split())


@dataclass(frozen=True)
class PairProbe:
    """Two positions of one tokenised sentence.

    Parameters
    ----------
    id : str
        Source line and positions.
    ids : tuple of int
        Token ids, special tokens included.
    i, j : int
        Positions in `ids`; i < j.
    text : str
        The sentence with ``[1]`` and ``[2]`` for the two tokens.
    """

    id: str
    ids: tuple[int, ...]
    i: int
    j: int
    text: str


@dataclass
class ProbeSet:
    """Probes of a corpus and the counts of everything that was left out, by reason."""

    probes: list[PairProbe]
    skipped: dict[str, int] = field(default_factory=dict)
    sentences: int = 0

    def save(self, path: str | Path) -> Path:
        """Write JSON lines: a header with the counts, then one probe a line."""
        head = {"skipped": self.skipped, "sentences": self.sentences, "schema_version": 1}
        lines = [json.dumps(head), *(json.dumps(asdict(p)) for p in self.probes)]
        return write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ProbeSet:
        """Read what `save` wrote."""
        lines = read_lines(path, "probes")
        at = 1
        try:
            head = json.loads(lines[0])
            probes = []
            for at, line in enumerate(lines[1:], start=2):  # noqa: B007
                row = json.loads(line)
                probes.append(PairProbe(**{**row, "ids": tuple(map(int, row["ids"]))}))
            return cls(probes, dict(head["skipped"]), int(head["sentences"]))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"probes = {str(path)!r}: line {at} is no probe ({error}); allowed are files"
                " written by mlm-consistency probe"
            ) from None

    def __repr__(self) -> str:
        return f"ProbeSet({len(self.probes)} probes of {self.sentences} sentences)"


class Vocabulary:
    """What a tokenizer's tokens look like: word-initial, alphabetic, special.

    The marker of word starts is found from the vocabulary itself: ``##`` (WordPiece, on tokens that
    continue a word), ``Ġ`` (byte-level BPE) or ``▁`` (SentencePiece) on tokens that start one.
    Without a marker every token counts as a word (amino acids, characters).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        self.tokens = [""] * size
        for token, index in vocabulary.items():
            self.tokens[index] = token
        counts = {
            mark: sum(token.startswith(mark) for token in self.tokens) for mark in ("##", "Ġ", "▁")
        }
        best = max(counts, key=lambda mark: counts[mark])
        self.mark = best if counts[best] else ""
        self.special = frozenset(tokenizer.all_special_ids)

    def word(self, index: int) -> str:
        """Token without its marker."""
        token = self.tokens[index]
        return token[len(self.mark) :] if self.mark and token.startswith(self.mark) else token

    @cached_property
    def initial(self) -> Bool[np.ndarray, " vocab"]:
        """Tokens that start a word."""
        if not self.mark:
            found = np.ones(len(self.tokens), bool)
        else:
            marked = np.asarray([token.startswith(self.mark) for token in self.tokens])
            found = ~marked if self.mark == "##" else marked
        found[list(self.special)] = False
        return found

    @cached_property
    def content(self) -> Bool[np.ndarray, " vocab"]:
        """Tokens that start a word and are alphabetic."""
        letters = [self.word(i).isalpha() for i in range(len(self.tokens))]
        return np.asarray(self.initial & np.asarray(letters))

    @cached_property
    def common(self) -> Bool[np.ndarray, " vocab"]:
        """Tokens that are one of the common words."""
        return np.asarray([self.word(i).lower() in COMMON_WORDS for i in range(len(self.tokens))])

    def whole_word(self, ids: Sequence[int], at: int) -> bool:
        """Whether one token is one whole alphabetic word of the sentence."""
        if not self.content[ids[at]]:
            return False
        if not self.mark or at + 1 == len(ids):
            return True
        following = ids[at + 1]
        return bool(
            following in self.special
            or self.initial[following]
            or not self.word(following).isalpha()
        )


def single_token(tokenizer: Any, word: str) -> int:
    """Id of a word that is one token; refuse one that splits.

    Examples
    --------
    >>> from mlm_consistency.scorers import load_tokenizer
    >>> single_token(load_tokenizer("mini-bert"), "lord") > 4
    True
    """
    for text in (f" {word}", word):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    pieces = tokenizer.convert_ids_to_tokens(ids)
    raise ProbeError(
        f"candidate {word!r} is {len(ids)} tokens ({' '.join(pieces)}): allowed are candidates"
        " that are one known token; choose another word"
    )


def keeps_segmentation(
    tokenizer: Any, ids: Sequence[int], at: int, candidates: Sequence[int]
) -> Bool[np.ndarray, " n"]:
    """Whether putting each candidate at a position leaves all other tokens as they are.

    The new sentence is written out and tokenised again: a candidate that merges with a neighbour,
    splits, or changes one silently asks about another sentence.
    """
    special = set(tokenizer.all_special_ids)
    kept = [t for t in ids if t not in special]
    place = sum(t not in special for t in ids[:at])
    rows = []
    for candidate in candidates:
        row = list(kept)
        row[place] = int(candidate)
        rows.append(row)
    texts = [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]
    again = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.asarray([list(a) == row for a, row in zip(again, rows)], bool)


def mark_pair(tokenizer: Any, ids: Sequence[int], i: int, j: int) -> str:
    """Write a sentence with ``[1]`` and ``[2]`` in place of two tokens."""
    special = set(tokenizer.all_special_ids)

    def part(start: int, stop: int) -> str:
        kept = [t for t in ids[start:stop] if t not in special]
        return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False)).strip()

    (first, left), (second, right) = sorted(((i, "[1]"), (j, "[2]")))
    pieces = [part(0, first), left, part(first + 1, second), right, part(second + 1, len(ids))]
    return " ".join(p for p in pieces if p)


def pair_probes(
    texts: Sequence[str],
    tokenizer: Any,
    pairs: int,
    *,
    distance: int = 1,
    per_sentence: int = 1,
    max_length: int = 128,
    seed: int = 0,
    skip_common: bool = True,
) -> ProbeSet:
    """Choose pairs of whole content words at a given distance.

    Parameters
    ----------
    texts : sequence of str
    tokenizer : Hugging Face tokenizer
    pairs : int
        Number of probes wanted.
    distance : int
        Positions between the two tokens; 1 for neighbours, as in the paper.
    per_sentence : int
        Most probes of one sentence.
    max_length : int
        Longer sentences are left out (and counted), never truncated.
    seed : int
        Order of the sentences and choice of the positions.
    skip_common : bool
        Leave the sixty most common words out.

    Returns
    -------
    ProbeSet
        With counts per reason: "too long", "does not round-trip", "no pair of content words".
    """
    require(pairs >= 1, "pairs", pairs, "at least 1")
    require(distance >= 1, "distance", distance, "at least 1")
    vocabulary = Vocabulary(tokenizer)
    rng = np.random.default_rng(seed)
    skipped: Counter[str] = Counter()
    probes: list[PairProbe] = []
    used = 0
    for line in rng.permutation(len(texts)):
        if len(probes) >= pairs:
            break
        used += 1
        ids = tokenizer(texts[line], truncation=False)["input_ids"]
        if len(ids) > max_length:
            skipped["too long"] += 1
            continue
        plain = [t for t in ids if t not in vocabulary.special]
        text = tokenizer.decode(plain, clean_up_tokenization_spaces=False)
        if tokenizer(text, add_special_tokens=False)["input_ids"] != plain:
            skipped["does not round-trip"] += 1
            continue
        places = [
            at
            for at in range(len(ids))
            if vocabulary.whole_word(ids, at) and not (skip_common and vocabulary.common[ids[at]])
        ]
        starts = [at for at in places if at + distance in set(places)]
        if not starts:
            skipped["no pair of content words"] += 1
            continue
        chosen = rng.permutation(starts)[: min(per_sentence, pairs - len(probes))]
        for i in sorted(int(c) for c in chosen):
            j = i + distance
            name = f"{line}:{i}-{j}"
            probes.append(PairProbe(name, tuple(ids), i, j, mark_pair(tokenizer, ids, i, j)))
    return ProbeSet(probes, dict(skipped), used)


def parse_marked(text: str, tokenizer: Any) -> tuple[tuple[int, ...], int, int]:
    """Token ids of a sentence with ``[1]`` and ``[2]``, masks in their place, and the positions.

    Raises
    ------
    ProbeError
        A marker is missing or stands twice, or the tokenizer has no mask token.
    """
    mask = tokenizer.mask_token
    if mask is None:
        raise ProbeError("tokenizer has no mask token: allowed are masked language models")
    for marker in ("[1]", "[2]"):
        if text.count(marker) != 1:
            raise ProbeError(
                f"text = {text!r}: allowed is one {marker} in it, as in 'the [1] is at the [2] .'"
            )
    swap = text.index("[1]") > text.index("[2]")
    ids = tokenizer(text.replace("[1]", mask).replace("[2]", mask), truncation=False)["input_ids"]
    first, second = [at for at, t in enumerate(ids) if t == tokenizer.mask_token_id]
    return tuple(ids), *((second, first) if swap else (first, second))


__all__ = [
    "COMMON_WORDS",
    "PairProbe",
    "ProbeSet",
    "Vocabulary",
    "keeps_segmentation",
    "pair_probes",
    "parse_marked",
    "single_token",
]
