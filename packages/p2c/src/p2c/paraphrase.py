"""Paraphrases proposed by a masked language model that never sees the image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .errors import require
from .vocabulary import CLS, MASK, PAD, SEP, UNK, Vocabulary

Tagger = Callable[[Sequence[str]], list[str]]
Policy = Literal["verb", "non-noun", "all"]


def lexicon_tagger(verbs: Collection[str], nouns: Collection[str]) -> Tagger:
    """Return a part-of-speech tagger for a closed vocabulary (Penn tags VBZ, NN, DT, IN).

    Examples
    --------
    >>> lexicon_tagger({"sits"}, {"zebra"})(["a", "zebra", "sits", "on"])
    ['DT', 'NN', 'VBZ', 'IN']
    """
    verbs, nouns = set(verbs), set(nouns)
    fixed = dict.fromkeys(("a", "an", "the", "one", "this"), "DT")
    fixed |= dict.fromkeys(("is", "are"), "VBZ")

    def tag(words: Sequence[str]) -> list[str]:
        return [
            fixed.get(w) or ("VBZ" if w in verbs else "NN" if w in nouns else "IN") for w in words
        ]

    return tag


@dataclass
class Paraphrase:
    """Proposals for a batch of captions.

    Attributes
    ----------
    masked, ids : (batch, length)
        Captions with [MASK] at the rewritten places, and with the model's words there.
    teacher : (batch, length)
        The model's words at the masked places, 0 elsewhere.
    """

    masked: Int[Tensor, "batch length"]
    ids: Int[Tensor, "batch length"]
    teacher: Int[Tensor, "batch length"]


class Paraphraser(Protocol):
    """What stage 1 needs of a language model."""

    def propose(
        self,
        ids: Int[Tensor, "batch length"],
        generator: torch.Generator | None = None,
        rank: int = 0,
    ) -> Paraphrase | None:
        """Return paraphrases of captions, or None when no caption has a word to rewrite.

        A ``rank`` above 0 asks for an alternative: the next best words, or another draw.
        """


class SmallMaskedLM(nn.Module):
    """A bidirectional masked language model with tied embeddings.

    Parameters
    ----------
    words, length : int
        Size of the vocabulary; longest caption.
    dim, layers, heads : int
        Of the transformer.
    """

    def __init__(
        self, words: int, length: int, dim: int = 96, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        nn.init.normal_(self.words.weight, std=0.3)
        self.place = nn.Parameter(0.1 * torch.randn(length, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, 0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))

    def forward(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length words"]:
        """Return the scores of every word at every place."""
        x = self.words(ids) + self.place[: ids.shape[1]]
        blind = ids == PAD
        blind[:, 0] = False
        scores = self.head(self.body(x, src_key_padding_mask=blind)) @ self.words.weight.T
        ban = torch.zeros(scores.shape[-1], dtype=scores.dtype, device=scores.device)
        ban[[PAD, MASK, CLS, SEP, UNK]] = -torch.inf
        allowed: Tensor = scores + ban
        return allowed

    def loss(
        self, ids: Int[Tensor, "batch length"], generator: torch.Generator, rate: float = 0.25
    ) -> Tensor:
        """Return the cross-entropy at randomly masked words (at least one in the batch)."""
        word = ids > UNK
        hide = word & (torch.rand(ids.shape, generator=generator) < rate)
        hide[0, 0] |= word[0, 0]
        scores = self(ids.masked_fill(hide, MASK))
        return nn.functional.cross_entropy(scores[hide], ids[hide])


class Rewriter:
    """Chooses the words of a caption that may be rewritten (stage 1, step 3).

    Parameters
    ----------
    vocabulary : Vocabulary
        Of the captions.
    tagger : callable
        Words to part-of-speech tags, one each.
    policy : "verb", "non-noun" or "all"
        Which words may be rewritten.
    max_masks : int
        How many words of a caption at most.
    exclude : collection of str
        Words that stay.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tagger: Tagger,
        policy: Policy = "verb",
        max_masks: int = 2,
        exclude: Collection[str] = ("is", "are"),
    ) -> None:
        require(policy in ("verb", "non-noun", "all"), "policy", policy, "verb, non-noun or all")
        require(max_masks >= 1, "max_masks", max_masks, "at least 1")
        self.vocabulary, self.tagger = vocabulary, tagger
        self.policy, self.max_masks, self.exclude = policy, max_masks, frozenset(exclude)

    def candidates(self, words: Sequence[str]) -> list[int]:
        """Return the places that the policy allows to rewrite."""
        tags = self.tagger(words)
        require(len(tags) == len(words), "tagger", len(tags), f"{len(words)} tags, one per word")
        places = []
        for place, (word, tag) in enumerate(zip(words, tags)):
            allowed = (
                self.policy == "all"
                or (self.policy == "verb" and "VB" in tag)
                or (self.policy == "non-noun" and not tag.startswith(("NN", "DT", ".")))
            )
            if allowed and word not in self.exclude:
                places.append(place)
        return places

    def hide(
        self, ids: Int[Tensor, "batch length"], generator: torch.Generator | None
    ) -> Bool[Tensor, "batch length"]:
        """Return which words of captions are to be rewritten, drawn among the candidates."""
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        for row, line in enumerate(ids.tolist()):
            places = self.candidates(self.vocabulary.decode(line).split())
            order = torch.randperm(len(places), generator=generator).tolist()
            for k in order[: self.max_masks]:
                hidden[row, places[k]] = True
        return hidden


class NullParaphraser:
    """Proposes nothing: stage 1 without a language model, for ablations."""

    def propose(
        self,
        ids: Int[Tensor, "batch length"],
        generator: torch.Generator | None = None,
        rank: int = 0,
    ) -> Paraphrase | None:
        """Return None."""
        return None


class MaskedLMParaphraser(Rewriter):
    """Masks some words of a caption and lets a masked language model fill them (stage 1, step 3-4).

    Parameters
    ----------
    model : callable
        Word numbers (batch, length) to scores (batch, length, words): a `SmallMaskedLM`, or an
        `HFMaskedLM` around BERT and its kin.
    vocabulary : Vocabulary
        Of the captions and of the model.
    tagger, policy, max_masks, exclude
        As of `Rewriter`.
    choose : "argmax", "sample" or "top"
        Take the best word, as the authors do; or sample one; or, for the proposal of rank k, the
        word of rank k: without improbable words the gate has less to refuse.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        vocabulary: Vocabulary,
        tagger: Tagger,
        policy: Policy = "verb",
        max_masks: int = 2,
        exclude: Collection[str] = ("is", "are"),
        choose: Literal["argmax", "sample", "top"] = "argmax",
    ) -> None:
        super().__init__(vocabulary, tagger, policy, max_masks, exclude)
        require(choose in ("argmax", "sample", "top"), "choose", choose, "argmax, sample or top")
        self.model, self.choose = model, choose

    @torch.no_grad()
    def propose(
        self,
        ids: Int[Tensor, "batch length"],
        generator: torch.Generator | None = None,
        rank: int = 0,
    ) -> Paraphrase | None:
        """Return paraphrases of captions, or None when no caption has a word to rewrite."""
        hide = self.hide(ids, generator)
        if not bool(hide.any()):
            return None
        masked = ids.masked_fill(hide, MASK)
        scores = self.model(masked)[hide]
        if self.choose == "argmax":
            words_ids = scores.argmax(-1)
        elif self.choose == "top":
            words_ids = scores.topk(min(rank + 1, scores.shape[-1])).indices[:, -1]
        else:
            words_ids = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
        teacher = torch.zeros_like(ids)
        teacher[hide] = words_ids
        return Paraphrase(masked, torch.where(hide, teacher, ids), teacher)
