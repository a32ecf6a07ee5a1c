"""Paraphrases by language models of transformers: masked ones (BERT), and T5's span filling."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import require
from .paraphrase import Paraphrase, Policy, Rewriter, Tagger
from .vocabulary import MASK, PAD, SEP, UNK, Vocabulary


class HFMaskedLM:
    """A masked language model of transformers that speaks a captioner's vocabulary.

    Captions are written out, cut into the model's word pieces, and the scores at a masked word are
    read at the piece that is that word; a word that the model spells in several pieces cannot be
    proposed. Words, not merged pieces, carry the places: hyphens and apostrophes shift nothing.

    Parameters
    ----------
    model : transformers model
        A ``...ForMaskedLM``. Nothing is downloaded.
    tokenizer : transformers fast tokenizer
        Of the model.
    vocabulary : Vocabulary
        Of the captions.
    """

    def __init__(self, model: Any, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self.model, self.tokenizer, self.vocabulary = model.eval(), tokenizer, vocabulary
        numbers = []
        for word in vocabulary.words:
            pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
            numbers.append(pieces[0] if len(pieces) == 1 else -1)
        self.piece = torch.tensor(numbers)
        self.piece[: UNK + 1] = -1
        self.piece[self.piece == tokenizer.unk_token_id] = -1
        require(bool((self.piece >= 0).any()), "tokenizer", "no common word", "a common word")

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length words"]:
        """Return the scores of every word at every masked place; minus infinity elsewhere."""
        lines = []
        for row in ids.tolist():
            words = self.vocabulary.decode(row).split()
            marks = [self.tokenizer.mask_token if w == "[MASK]" else w for w in words]
            lines.append(marks or [self.tokenizer.unk_token])
        made = self.tokenizer(lines, is_split_into_words=True, padding=True, return_tensors="pt")
        scores = self.model(**made).logits
        known = self.piece >= 0
        found = torch.full((*ids.shape, len(self.piece)), -torch.inf)
        for row in range(len(ids)):
            for place, word in enumerate(made.word_ids(row)):
                if word is not None and word < ids.shape[1] and ids[row, word] == MASK:
                    found[row, word, known] = scores[row, place, self.piece[known]].float()
        return found


class T5SpanParaphraser(Rewriter):
    """Replaces words by sentinels and lets T5 write what belongs there (stage 1, step 3-4).

    A place takes what T5 writes between its sentinel and the next, if that is one word of the
    vocabulary; captions must keep their length, for the student is taught word by word. A caption
    with any other filling is left as it was, and counted in ``left_out``.

    Parameters
    ----------
    model : transformers model
        A ``T5ForConditionalGeneration``. Nothing is downloaded.
    tokenizer : transformers tokenizer
        With the sentinels ``<extra_id_0>``, ``<extra_id_1>``, ...
    vocabulary, tagger, policy, max_masks, exclude
        As of `Rewriter`.
    sample : bool
        Sample the filling instead of taking the likeliest words.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        vocabulary: Vocabulary,
        tagger: Tagger,
        policy: Policy = "verb",
        max_masks: int = 2,
        exclude: Collection[str] = ("is", "are"),
        sample: bool = False,
    ) -> None:
        super().__init__(vocabulary, tagger, policy, max_masks, exclude)
        self.model, self.tokenizer, self.sample = model.eval(), tokenizer, sample
        self.sentinels = [
            tokenizer.convert_tokens_to_ids(f"<extra_id_{k}>") for k in range(max_masks + 1)
        ]
        good = None not in self.sentinels and tokenizer.unk_token_id not in self.sentinels
        require(good, "tokenizer", type(tokenizer).__name__, "one with <extra_id_k> sentinels")
        self.left_out = 0

    def spans(self, written: list[int], count: int) -> list[str]:
        """Return what stands behind each of the first sentinels; "" where one is missing.

        A span ends at any sentinel or special token; of a sentinel that stands twice, the first
        counts.
        """
        marks = {number: k for k, number in enumerate(self.sentinels)}
        parts: dict[int, list[int]] = {}
        here: list[int] | None = None
        for token in written:
            if token in marks:
                k = marks[token]
                here = parts.setdefault(k, []) if k not in parts else None
            elif token in self.tokenizer.all_special_ids:
                here = None
            elif here is not None:
                here.append(token)
        return [self.tokenizer.decode(parts.get(k, [])).strip().lower() for k in range(count)]

    @torch.no_grad()
    def propose(
        self,
        ids: Int[Tensor, "batch length"],
        generator: torch.Generator | None = None,
        rank: int = 0,
    ) -> Paraphrase | None:
        """Return paraphrases of captions, or None when no caption has a word to rewrite.

        The proposal of ``rank`` k is the k-th best of as many beams; a sampled one is another draw.
        """
        hide = self.hide(ids, generator)
        rows = hide.any(1).nonzero()[:, 0].tolist()
        if not rows:
            return None
        lines = []
        for row in rows:
            words = [self.vocabulary.words[w] for w in ids[row].tolist() if w not in (PAD, SEP)]
            for k, place in enumerate(hide[row].nonzero()[:, 0].tolist()):
                words[place] = f"<extra_id_{k}>"
            lines.append(" ".join(words))
        made = self.tokenizer(lines, padding=True, return_tensors="pt")
        if self.sample and generator is not None:  # transformers samples from the global generator
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        out = self.model.generate(
            input_ids=made["input_ids"], attention_mask=made["attention_mask"],
            do_sample=self.sample, max_new_tokens=4 * self.max_masks + 2,
            num_beams=1 if self.sample else rank + 1,
            num_return_sequences=1 if self.sample else rank + 1,
        )  # fmt: skip
        if not self.sample:
            out = out[rank :: rank + 1]
        teacher = torch.zeros_like(ids)
        for row, written in zip(rows, out.tolist()):
            places = hide[row].nonzero()[:, 0].tolist()
            spans = self.spans(written, len(places))
            if all(s in self.vocabulary.index and self.vocabulary.index[s] > UNK for s in spans):
                for place, word in zip(places, spans):
                    teacher[row, place] = self.vocabulary.index[word]
            else:
                self.left_out += 1
        new = teacher != PAD
        return Paraphrase(ids.masked_fill(new, MASK), torch.where(new, teacher, ids), teacher)
