"""Corpus, tokenizer and training examples of the miniature models."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from .errors import InputError, require

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
NUM_SENTINELS = 20
HELD_OUT_SHARE = 10
_REFERENCE = re.compile(r"^([1-3]?[A-Za-z]+\d+):\d+\s+(.+)$")
WHERE_TO_GET_THE_KJV = (
    "The text is in Debian's package bible-kjv-text: `apt-get install bible-kjv` and then"
    " `bible -f gen1:1-rev22:21 > kjv.txt` write the file, one verse a line."
)


@dataclass(frozen=True)
class Corpus:
    """Sentences for training and sentences kept apart, split by chapter.

    Parameters
    ----------
    train, held_out : list of str
        One sentence each, without the reference.
    """

    train: list[str]
    held_out: list[str]


def read_lines(path: str | Path, name: str = "corpus") -> list[str]:
    """Read the lines of a UTF-8 text file that are not empty.

    Raises
    ------
    InputError
        The file cannot be read, is not UTF-8 or holds no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{name} = {str(path)!r}: allowed is a readable text file; {error.strerror}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} = {str(path)!r}: allowed is UTF-8 text; byte {error.start} is not"
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    require(bool(lines), name, str(path), "a file with at least one line of text")
    return lines


def read_corpus(path: str | Path) -> Corpus:
    """Read one sentence a line; every tenth chapter (by checksum) is held out.

    A line may begin with a reference such as ``Ge1:1``; its chapter decides the side. Lines
    without a reference are split in blocks of 25.
    """
    train: list[str] = []
    held_out: list[str] = []
    for number, line in enumerate(read_lines(path)):
        match = _REFERENCE.match(line)
        chapter, text = (match[1], match[2]) if match else (f"block {number // 25}", line)
        side = held_out if zlib.crc32(chapter.encode()) % HELD_OUT_SHARE == 0 else train
        side.append(text)
    require(
        min(len(train), len(held_out)) >= 100,
        "corpus",
        str(path),
        "a text with at least 100 lines on each side of the split",
        WHERE_TO_GET_THE_KJV,
    )
    return Corpus(train, held_out)


def train_tokenizer(sentences: list[str], vocab_size: int, sentinels: int = 0) -> str:
    """Train a lower-case WordPiece tokenizer; return its JSON.

    Sentinels ``<extra_id_0>`` ... follow the vocabulary, as in T5.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import WordPiece as WordPieceDecoder
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import WordPieceTrainer

    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    # The trainer numbers the continuing letters in the order of a hash table, and breaks ties by
    # number: two runs would differ. Numbered beforehand, as if they were special, they do not.
    letters = sorted(
        {c for s in sentences for w in s.split() for c in tokenizer.normalizer.normalize_str(w)}
    )
    continuing = [f"##{c}" for c in letters]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL, *continuing], show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if sentinels:
        tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in range(sentinels)])
        single = "$A [SEP]"
    else:
        single = "[CLS] $A [SEP]"
    tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return str(tokenizer.to_str())


def read_tokenizer(path: str | Path, vocab_size: int, sentinels: int) -> str:
    """Read a tokenizer's JSON; refuse one whose vocabulary has another size."""
    from tokenizers import Tokenizer

    try:
        text = Path(path).read_text(encoding="utf-8")
        size = Tokenizer.from_str(text).get_vocab_size()
    except Exception as error:  # the parser raises bare exceptions; all mean the same
        words = " ".join(str(error).split())[:160]
        raise InputError(
            f"tokenizer = {str(path)!r}: allowed is a tokenizer.json; {words}"
        ) from None
    wanted = vocab_size + sentinels
    require(size == wanted, "tokenizer", f"{path} with {size} tokens", f"{wanted} tokens")
    return text


def encode(tokenizer_json: str, sentences: list[str], longest: int) -> list[Int[np.ndarray, " n"]]:
    """Token ids without special tokens of the sentences with 4 to `longest` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    found = [
        np.asarray(e.ids, np.int64)
        for e in tokenizer.encode_batch(sentences, add_special_tokens=False)
    ]
    return [ids for ids in found if 4 <= len(ids) <= longest]


def batches(
    lengths: Int[np.ndarray, " n"], batch_size: int, seed: int, start: int
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Endless batches of similar length, from step `start`; a function of seed and step alone."""
    per_epoch = len(lengths) // batch_size
    epoch, skip = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(lengths))
        pools = [order[i : i + 16 * batch_size] for i in range(0, len(order), 16 * batch_size)]
        ordered = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
        ordered = ordered[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        for index in rng.permutation(per_epoch)[skip:]:
            yield ordered[index]
        epoch, skip = epoch + 1, 0


def pad(rows: list[Int[np.ndarray, " n"]], value: int) -> Int[np.ndarray, "rows longest"]:
    """Stack rows of different length, filled on the right."""
    out = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for row, ids in zip(out, rows):
        row[: len(ids)] = ids
    return out


def masked_batch(
    rows: list[Int[np.ndarray, " n"]], vocab_size: int, rng: np.random.Generator, rate: float = 0.15
) -> tuple[
    Int[np.ndarray, "rows longest"],
    Bool[np.ndarray, "rows longest"],
    Int[np.ndarray, "rows longest"],
]:
    """BERT's masking (15 %, of which 80/10/10 mask/random/kept): inputs, chosen, original ids."""
    full = [np.concatenate([[CLS], ids, [SEP]]) for ids in rows]
    original = pad(full, PAD)
    chosen = (rng.random(original.shape) < rate) & (original >= len(SPECIAL))
    kind = rng.random(original.shape)
    inputs = original.copy()
    inputs[chosen & (kind < 0.8)] = MASK
    swap = chosen & (kind >= 0.8) & (kind < 0.9)
    inputs[swap] = rng.integers(len(SPECIAL), vocab_size, int(swap.sum()))
    return inputs, chosen, original


def corrupt(
    ids: Int[np.ndarray, " n"], rng: np.random.Generator, first_sentinel: int
) -> tuple[Int[np.ndarray, " encoder"], Int[np.ndarray, " decoder"]]:
    """One training example of the T5 miniature: encoder ids and decoder ids, both ended by [SEP].

    Half of the examples mask a tail of 1 to 10 tokens, every second one of 1 to 3 (the text is cut
    at a random place before that, every second time), a quarter T5's spans (15 %, mean length 1 to
    3), a quarter both.
    """
    kind = rng.random()
    tail = 0
    if kind < 0.75:
        if rng.random() < 0.5 and len(ids) > 12:
            ids = ids[: rng.integers(10, len(ids) + 1)]
        longest = 3 if rng.random() < 0.5 else 10
        tail = int(rng.integers(1, min(longest, len(ids) - 2) + 1))
    head = len(ids) - tail
    spans: list[tuple[int, int]] = []
    if kind >= 0.5:
        wanted, mean = max(1, round(0.15 * head)), int(rng.integers(1, 4))
        number = min(max(1, round(wanted / mean)), NUM_SENTINELS - 3)
        starts = np.sort(rng.choice(head, min(number, head), replace=False))
        previous = -1
        for start in starts.tolist():
            stop = min(start + int(rng.integers(1, 2 * mean)), head)
            if start > previous and stop > start:
                spans.append((start, stop))
                previous = stop
    if tail:
        spans.append((head, len(ids)))
    return span_example(ids, spans, first_sentinel)


def span_example(
    ids: Int[np.ndarray, " n"], spans: list[tuple[int, int]], first_sentinel: int
) -> tuple[Int[np.ndarray, " encoder"], Int[np.ndarray, " decoder"]]:
    """Replace spans by sentinels in the encoder; the decoder holds them in T5's form."""
    encoder: list[int] = []
    decoder: list[int] = []
    position = 0
    for i, (start, stop) in enumerate(spans):
        encoder += [*ids[position:start].tolist(), first_sentinel + i]
        decoder += [first_sentinel + i, *ids[start:stop].tolist()]
        position = stop
    encoder += [*ids[position:].tolist(), SEP]
    decoder += [first_sentinel + len(spans), SEP]
    return np.asarray(encoder, np.int64), np.asarray(decoder, np.int64)
