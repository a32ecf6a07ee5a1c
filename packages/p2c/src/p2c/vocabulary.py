"""Words and their numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import require

PAD, MASK, CLS, SEP, UNK = range(5)
SPECIAL = ("[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]")


def tokenize(text: str) -> list[str]:
    """Split a caption into lower-case words; hyphens and apostrophes stay inside a word.

    Examples
    --------
    >>> tokenize("A man's T-shirt, on a café table.")
    ['a', "man's", 't-shirt', 'on', 'a', 'café', 'table']
    """
    folded = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    return re.findall(r"\w+(?:['-]\w+)*", folded)


class Vocabulary:
    """A closed list of words; everything else is ``[UNK]``.

    Parameters
    ----------
    words : iterable of str
        Words in the order of their numbers, which start behind the five special tokens.

    Examples
    --------
    >>> v = Vocabulary(["a", "zebra"])
    >>> v.encode("a zebra", 4).tolist(), v.decode([5, 6, 3, 0])
    ([5, 6, 3, 0], 'a zebra')
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = [*SPECIAL, *words]
        self.index = {word: number for number, word in enumerate(self.words)}
        require(
            len(self.index) == len(self.words), "words", len(self.words), "words without repeats"
        )

    def __len__(self) -> int:
        return len(self.words)

    def ids(self, text: str) -> list[int]:
        """Return the numbers of a text's words."""
        return [self.index.get(word, UNK) for word in tokenize(text)]

    def encode(self, text: str, length: int) -> Int[Tensor, " length"]:
        """Return words, end token and padding; a text over ``length`` is cut, without end token."""
        ids = [*self.ids(text), SEP][:length]
        return torch.tensor(ids + [PAD] * (length - len(ids)))

    def encode_all(self, texts: Sequence[str], length: int) -> Int[Tensor, "batch length"]:
        """Encode several texts into one matrix."""
        if not texts:
            return torch.zeros(0, length, dtype=torch.long)
        return torch.stack([self.encode(text, length) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words up to the end token."""
        words = []
        for number in ids:
            if number in (SEP, PAD):
                break
            words.append(self.words[int(number)])
        return " ".join(words)

    def decode_all(self, ids: Int[Tensor, "batch length"]) -> list[str]:
        """Decode the rows of a matrix."""
        return [self.decode(row) for row in ids.tolist()]
