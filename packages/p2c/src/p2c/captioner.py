"""A tag transformer: captions from object tags and regions with tied, frozen embeddings.

Tags and regions see each other and never the caption; a caption word sees all of them and the words
before it. Each word is predicted at a [MASK] that stands at its place (Oscar; VinVL).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .errors import require
from .vocabulary import CLS, MASK, PAD, SEP, UNK


@dataclass
class Memory:
    """What a captioner knows of images: keys and values per layer, and the last states."""

    keys: list[Float[Tensor, "batch heads places width"]]
    values: list[Float[Tensor, "batch heads places width"]]
    mask: Bool[Tensor, "batch places"]
    states: Float[Tensor, "batch places dim"]

    def rows(self, index: slice | Tensor) -> Memory:
        """Return the memory of some of the images."""
        return Memory(
            [k[index] for k in self.keys],
            [v[index] for v in self.values],
            self.mask[index],
            self.states[index],
        )


@dataclass
class Captions:
    """Generated captions.

    Attributes
    ----------
    ids : (batch, samples, length)
        Words, end token, padding; a caption that was cut has no end token.
    log_prob : (batch, samples, length)
        Log-probability of each token that was chosen, the end token included; 0 at padding.
    """

    ids: Int[Tensor, "batch samples length"]
    log_prob: Float[Tensor, "batch samples length"]


class Captioner(Protocol):
    """What the training stages need of a captioner."""

    def encode(self, *inputs: Tensor) -> Any:
        """Return the memory of a batch of images."""

    def generate(self, memory: Any, samples: int, max_length: int, **options: Any) -> Captions:
        """Return several captions of each image."""

    def log_prob(
        self, memory: Any, ids: Int[Tensor, "batch samples length"]
    ) -> Float[Tensor, "batch samples length"]:
        """Return the log-probability of each token of given captions."""


def token_log_prob(
    logits: Float[Tensor, "batch samples length words"], ids: Int[Tensor, "batch samples length"]
) -> Float[Tensor, "batch samples length"]:
    """Return each token's log-probability, the end token included; 0 at padding."""
    chosen = logits.log_softmax(-1).gather(-1, ids.clamp(min=SEP)[..., None])[..., 0]
    return chosen.masked_fill(ids == PAD, 0.0)


class Student(Protocol):
    """What stages 1 and 2 train: a captioner over numbers of one vocabulary."""

    def encode(self, tags: Tensor, regions: Tensor, /) -> Any:
        """Return the memory of a batch of images."""

    def masked_logits(self, memory: Any, ids: Int[Tensor, "batch samples length"]) -> Tensor:
        """Return logits (batch, samples, length, words) at each place, given the words before."""

    def log_prob(self, memory: Any, ids: Int[Tensor, "batch samples length"]) -> Tensor:
        """Return each token's log-probability, the end token included; 0 at padding."""

    def generate(
        self,
        memory: Any,
        samples: int = 1,
        max_length: int | None = None,
        *,
        greedy: bool = False,
        generator: torch.Generator | None = None,
        forced: Int[Tensor, "batch samples prefix"] | None = None,
    ) -> Captions:
        """Return captions, several per image."""


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., q, dim) -> query, key, value of (..., heads, q, width)."""
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.unbind(-3)
        return q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(-3, -2).flatten(-2))
        out: Tensor = x + self.mlp(self.between(x))
        return out


class TagTransformerCaptioner(nn.Module):
    """Oscar-style captioner over object tags and region features.

    Parameters
    ----------
    embedding : (words, dim)
        Word vectors, tied to the output. Frozen by default: a word that is seen only as a tag or by
        the language model then keeps its logits in reach.
    feature_dim : int
        Length of a region's features, box included.
    layers, heads : int
        Of the transformer (pre-norm).
    max_length : int
        Longest caption, end token included.
    freeze_embedding : bool
        Whether the word vectors are trained.

    Examples
    --------
    >>> net = TagTransformerCaptioner(torch.randn(9, 8), feature_dim=3, heads=2, max_length=4)
    >>> memory = net.encode(torch.tensor([[5, 6]]), torch.zeros(1, 2, 3))
    >>> ids = net.generate(memory, samples=5, max_length=4).ids  # as long as the longest of them
    >>> ids.shape[:2], ids.shape[2] <= 4
    (torch.Size([1, 5]), True)
    """

    def __init__(
        self,
        embedding: Float[Tensor, "words dim"],
        feature_dim: int,
        layers: int = 2,
        heads: int = 4,
        max_length: int = 12,
        freeze_embedding: bool = True,
    ) -> None:
        super().__init__()
        dim = embedding.shape[1]
        require(dim % heads == 0, "heads", heads, f"a divisor of {dim}")
        self.max_length, self.dim = max_length, dim
        self.words = nn.Embedding.from_pretrained(embedding.clone(), freeze=freeze_embedding)
        self.positions = nn.Parameter(0.1 * torch.randn(max_length + 1, dim))
        self.kinds = nn.Parameter(0.1 * torch.randn(3, dim))  # caption, tag, region
        self.regions = nn.Sequential(nn.Linear(feature_dim, dim), nn.LayerNorm(dim))
        self.layers = nn.ModuleList(_Layer(dim, heads) for _ in range(layers))
        self.last = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(1))

    def _blocks(self) -> Iterator[_Layer]:
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            yield layer

    def encode(
        self,
        tags: Int[Tensor, "batch tags"],
        regions: Float[Tensor, "batch regions features"],
        region_mask: Bool[Tensor, "batch regions"] | None = None,
    ) -> Memory:
        """Return keys and values of tags (0 is padding) and regions; images may have no tags.

        Raises
        ------
        InputError
            A feature is not finite.
        """
        require(
            bool(torch.isfinite(regions).all()), "regions", "NaN or infinite", "finite features"
        )
        if region_mask is None:
            region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        x = torch.cat(
            [self.words(tags) + self.kinds[1], self.regions(regions) + self.kinds[2]], dim=1
        )
        mask = torch.cat([tags != PAD, region_mask], dim=1)
        keys, values = [], []
        for layer in self._blocks():
            q, k, v = layer.split(x)
            keys.append(k)
            values.append(v)
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = _softmax(scores.masked_fill(~mask[:, None, None], -torch.inf))
            x = layer.finish(x, weights @ v)
        return Memory(keys, values, mask, x)

    def logits(self, states: Float[Tensor, "*place dim"]) -> Float[Tensor, "*place words"]:
        """Return word scores by the tied embedding; tokens that no caption holds get -inf."""
        scores = self.head(self.last(states)) @ self.words.weight.T
        ban = torch.zeros(scores.shape[-1], dtype=scores.dtype, device=scores.device)
        ban[[PAD, MASK, CLS, UNK]] = -torch.inf
        masked: Tensor = scores + ban
        return masked

    def _run(
        self,
        memory: Memory,
        x: Float[Tensor, "batch samples places dim"],
        visible: Bool[Tensor, "places seen"],
        cache: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run caption places over the memory; all samples of an image share its keys and values."""
        _, samples, places, _ = x.shape
        kept = []
        for depth, layer in enumerate(self._blocks()):
            q, k, v = layer.split(x)  # batch, samples, heads, places, width
            kept.append((k, v))
            if cache is not None:
                k = torch.cat([cache[depth][0], k], dim=3)
                v = torch.cat([cache[depth][1], v], dim=3)
            width = q.shape[-1]
            flat = q.transpose(1, 2).flatten(2, 3)  # batch, heads, samples * places, width
            far = flat @ memory.keys[depth].transpose(-1, -2)
            far = far.masked_fill(~memory.mask[:, None, None], -torch.inf)
            far = far.unflatten(2, (samples, places)).transpose(1, 2)
            near = (q @ k.transpose(-1, -2)).masked_fill(~visible, -torch.inf)
            weights = torch.cat([far, near], dim=-1).div(math.sqrt(width)).softmax(-1)
            split = far.shape[-1]
            w_far = weights[..., :split].transpose(1, 2).flatten(2, 3)
            attended = (w_far @ memory.values[depth]).unflatten(2, (samples, places))
            attended = attended.transpose(1, 2) + weights[..., split:] @ v
            x = layer.finish(x, attended)
        return x, kept

    def masked_logits(
        self, memory: Memory, ids: Int[Tensor, "batch samples length"]
    ) -> Float[Tensor, "batch samples length words"]:
        """Return, for every place of a caption, the logits at a [MASK] seeing only earlier words.

        One pass over two streams: the words, and a [MASK] for each of them. It computes what
        decoding word by word computes.
        """
        length = ids.shape[-1]
        require(
            length <= self.max_length, "ids", length, f"captions up to {self.max_length} tokens"
        )
        start = torch.full_like(ids[..., :1], CLS)
        place = self.positions[: length + 1]
        words = self.words(torch.cat([start, ids[..., :-1]], -1)) + place[:length]
        queries = (self.words.weight[MASK] + place[1:]).expand_as(words)
        x = torch.cat([words, queries], dim=2) + self.kinds[0]
        lower = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        eye, none = torch.eye(length, dtype=torch.bool, device=ids.device), torch.zeros_like(lower)
        visible = torch.cat([torch.cat([lower, none], 1), torch.cat([lower, eye], 1)])
        states, _ = self._run(memory, x, visible)
        return self.logits(states[:, :, length:])

    def log_prob(
        self, memory: Memory, ids: Int[Tensor, "batch samples length"]
    ) -> Float[Tensor, "batch samples length"]:
        """Return each token's log-probability, the end token included; 0 at padding."""
        return token_log_prob(self.masked_logits(memory, ids), ids)

    @torch.no_grad()
    def generate(
        self,
        memory: Memory,
        samples: int = 1,
        max_length: int | None = None,
        *,
        greedy: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        forced: Int[Tensor, "batch samples prefix"] | None = None,
    ) -> Captions:
        """Return captions, several per image over one shared memory with cached words.

        Parameters
        ----------
        samples : int
            Captions per image.
        max_length : int, optional
            Longest caption, end token included.
        greedy : bool
            Take the best word instead of sampling.
        temperature : float
            Divides the logits before sampling; ``log_prob`` is that of temperature 1.
        generator : torch.Generator, optional
            Source of the samples.
        forced : (batch, samples, prefix), optional
            First words to begin with (0 = free).
        """
        limit = self.max_length if max_length is None else max_length
        require(1 <= limit <= self.max_length, "max_length", limit, f"1 to {self.max_length}")
        require(samples >= 1, "samples", samples, "at least 1")
        require(temperature > 0, "temperature", temperature, "above 0")
        batch, device = len(memory.mask), memory.mask.device
        last = torch.full((batch, samples), CLS, device=device)
        done = torch.zeros(batch, samples, dtype=torch.bool, device=device)
        cache: list[tuple[Tensor, Tensor]] | None = None
        ids, logs = [], []
        for step in range(limit):
            pair = torch.stack([last, torch.full_like(last, MASK)], -1)
            x = self.words(pair) + self.positions[step : step + 2] + self.kinds[0]
            visible = torch.ones(2, step + 2, dtype=torch.bool, device=device)
            visible[0, -1] = False
            states, new = self._run(memory, x, visible, cache)
            word = [(k[..., :1, :], v[..., :1, :]) for k, v in new]
            cache = (
                word
                if cache is None
                else [
                    (torch.cat([c[0], w[0]], 3), torch.cat([c[1], w[1]], 3))
                    for c, w in zip(cache, word)
                ]
            )
            log = self.logits(states[:, :, 1]).log_softmax(-1)
            if greedy:
                choice = log.argmax(-1)
            else:
                p = (log / temperature).softmax(-1).flatten(0, 1)
                choice = torch.multinomial(p, 1, generator=generator).view(batch, samples)
            if forced is not None and step < forced.shape[-1]:
                choice = torch.where(forced[..., step] != PAD, forced[..., step], choice)
            choice = choice.masked_fill(done, PAD)
            chosen = log.gather(-1, choice.clamp(min=SEP)[..., None])[..., 0]
            ids.append(choice)
            logs.append(chosen.masked_fill(done, 0.0))
            done, last = done | (choice == SEP), choice
            if bool(done.all()):
                break
        return Captions(torch.stack(ids, -1), torch.stack(logs, -1))

    @torch.no_grad()
    def next_log_probs(
        self, memory: Memory, prefixes: Int[Tensor, "beams prefix"]
    ) -> Float[Tensor, "beams words"]:
        """Return the distribution after each of several prefixes of one image (for beam search)."""
        filler = torch.full((len(prefixes), 1), SEP, device=prefixes.device)
        open_end = torch.cat([prefixes, filler], 1)
        return self.masked_logits(memory, open_end[None])[0, :, -1].log_softmax(-1)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax in which a row without any allowed place gives zeros."""
    return scores.softmax(-1).nan_to_num(0.0)
