"""Repair: fine-tune a masked language model so that its conditionals agree.

The loss is masked-LM cross-entropy, softened by the original model's own predictions, plus a
penalty on sampled pair tables: the squared curl of their quadruples, and the squared path gap of
their cells. Both vanish on every context exactly when the model has a joint distribution over the
pair and fills it in any order. A table of K x K candidates costs 2 K + 1 forwards and holds
(K - 1)^2 quadruples with the sentence's own tokens; a quadruple on its own costs five forwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import require
from .probes import Vocabulary


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of the repair.

    Parameters
    ----------
    steps, learning_rate, warmup : optimiser (AdamW, linear decay)
    batch_size : int
        Sentences of the masked-LM loss per step.
    tables : int
        Pair tables per step.
    candidates : int
        Candidates per position of a table: the sentence's token, the model's best alternative, and
        others drawn from the model.
    curl_weight, path_weight : float
    huber : float
        Gaps beyond this many nats count linearly, so that few extreme ones do not rule.
    distill : float
        Share of the masked-LM loss that compares with the original model's distribution in place of
        the token that stood there; 0 to 1.
    content_share : float
        Share of tables at two content words; the others are at any two neighbouring words.
    mask_rate : float
    max_length : int
    seed : int
    """

    steps: int = 1500
    learning_rate: float = 1e-3
    warmup: int = 30
    batch_size: int = 64
    tables: int = 16
    candidates: int = 4
    curl_weight: float = 1.0
    path_weight: float = 0.3
    huber: float = 1.0
    distill: float = 0.5
    content_share: float = 0.7
    mask_rate: float = 0.15
    max_length: int = 48
    seed: int = 0


@dataclass(frozen=True)
class TableSample:
    """Pairs of positions to penalise.

    Parameters
    ----------
    rows : token ids of sentences
    places : (i, j) per row
    candidates : (K tokens for i, K tokens for j) per row
        The sentence's own tokens first.
    """

    rows: list[list[int]]
    places: list[tuple[int, int]]
    candidates: list[tuple[list[int], list[int]]]


def _rows(texts: Sequence[str], tokenizer: Any, longest: int) -> list[list[int]]:
    ids = tokenizer(list(texts), truncation=False)["input_ids"]
    return [row for row in ids if 6 <= len(row) <= longest]


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Any, Any]:
    import torch

    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = torch.tensor(row)
        mask[n, : len(row)] = 1
    return ids, mask


def _log_p(model: Any, ids: Any, mask: Any, row: Any, place: Any) -> Any:
    """Log-probabilities at the wanted places, the head evaluated only there."""
    import torch

    body = model.base_model

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[row, place][None]
        return output

    handle = body.register_forward_hook(hook)
    try:
        logits = model(input_ids=ids, attention_mask=mask).logits[0]
    finally:
        handle.remove()
    return torch.log_softmax(logits, dim=-1)


def consistency_loss(
    model: Any, sample: TableSample, mask_id: int, pad_id: int, huber: float = 1.0
) -> tuple[Any, Any]:
    """Mean penalties of pair tables: curl and path.

    Parameters
    ----------
    model : transformers masked language model
    sample : TableSample
    mask_id, pad_id : int
    huber : float

    Returns
    -------
    two scalar tensors
        Curl: over the quadruples of the sentence's cell with every other one. Path: one third the
        sentence's cell, two thirds the mean over all cells.
    """
    import torch
    from torch.nn.functional import huber_loss

    k = len(sample.candidates[0][0])
    n = len(sample.rows)
    patterns, wanted = [], []
    for ids, (i, j), (on_i, on_j) in zip(sample.rows, sample.places, sample.candidates):
        changes = [(mask_id, b, i) for b in on_j] + [(a, mask_id, j) for a in on_i]
        for x, y, at in [*changes, (mask_id, mask_id, i)]:
            row = list(ids)
            row[i], row[j] = x, y
            patterns.append(row)
            wanted.append(at)
    batch, attention = _padded(patterns, pad_id)
    lines = torch.arange(len(patterns))
    row_index = torch.cat([lines, lines[2 * k :: 2 * k + 1]])  # both-masked inputs are read twice
    place_index = torch.tensor([*wanted, *(j for _, j in sample.places)])
    log_p = _log_p(model, batch, attention, row_index, place_index)
    at_i, at_j = (torch.tensor([c[side] for c in sample.candidates]) for side in (0, 1))
    by_table = log_p[: len(patterns)].view(n, 2 * k + 1, -1)
    # [n, a, b]
    a_given_b = by_table[:, :k].gather(2, at_i[:, None].expand(n, k, k)).transpose(1, 2)
    b_given_a = by_table[:, k : 2 * k].gather(2, at_j[:, None].expand(n, k, k))
    marginal_i = by_table[:, 2 * k].gather(1, at_i)
    marginal_j = log_p[len(patterns) :].gather(1, at_j)
    d = a_given_b - b_given_a
    curl = (d[:, :1, :1] - d[:, 1:, :1] - d[:, :1, 1:] + d[:, 1:, 1:]).flatten()
    path = marginal_i[:, :, None] + b_given_a - marginal_j[:, None] - a_given_b

    def penalty(gaps: Any) -> Any:
        return huber_loss(gaps, torch.zeros_like(gaps), delta=huber)

    return penalty(curl), (penalty(path[:, 0, 0]) + 2 * penalty(path)) / 3


def masked_loss(
    model: Any,
    rows: Sequence[Sequence[int]],
    tokenizer: Any,
    rng: np.random.Generator,
    rate: float,
    teacher: Any = None,
    distill: float = 0.0,
) -> Any:
    """Masked-LM cross-entropy of a batch, masks drawn from `rng`; 80 % mask, 10 % random.

    With a teacher, the target is `distill` parts its distribution, the rest the token itself.
    """
    import torch
    from torch.nn.functional import nll_loss

    special = set(tokenizer.all_special_ids)
    ordinary = [t for t in range(len(tokenizer)) if t not in special]
    changed, lines, places, targets = [], [], [], []
    for n, ids in enumerate(rows):
        row = list(ids)
        free = [at for at, t in enumerate(ids) if t not in special]
        count = max(1, round(rate * len(free)))
        for at in sorted(rng.choice(free, count, replace=False).tolist()):
            kind = rng.random()
            if kind < 0.8:
                row[at] = tokenizer.mask_token_id
            elif kind < 0.9:
                row[at] = ordinary[int(rng.integers(len(ordinary)))]
            lines.append(n)
            places.append(at)
            targets.append(ids[at])
        changed.append(row)
    batch, attention = _padded(changed, tokenizer.pad_token_id or 0)
    at = torch.tensor(lines), torch.tensor(places)
    log_p = _log_p(model, batch, attention, *at)
    loss = nll_loss(log_p, torch.tensor(targets))
    if teacher is None or not distill:
        return loss
    with torch.no_grad():
        soft = _log_p(teacher, batch, attention, *at).exp()
    return (1 - distill) * loss - distill * (soft * log_p).sum(dim=-1).mean()


def held_out_masked_loss(
    model: Any, texts: Sequence[str], tokenizer: Any, seed: int = 0, longest: int = 64
) -> float:
    """Masked-LM loss on sentences with masks that depend on the seed alone."""
    import torch

    rows = _rows(texts, tokenizer, longest)
    rng = np.random.default_rng([seed, 5])
    losses, weights = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), 128):
            part = rows[start : start + 128]
            losses.append(float(masked_loss(model, part, tokenizer, rng, 0.15)))
            weights.append(sum(map(len, part)))
    return float(np.average(losses, weights=weights))


class _Sampler:
    """Batches of sentences of similar length, and pair tables on them."""

    def __init__(
        self, rows: list[list[int]], vocabulary: Vocabulary, mask_id: int, pad_id: int
    ) -> None:
        self.rows = sorted(rows, key=len)
        self.vocabulary, self.mask_id, self.pad_id = vocabulary, mask_id, pad_id
        initial, common = vocabulary.initial, vocabulary.common
        # per sentence: neighbouring word starts, and neighbouring whole content words
        self.words, self.content = [], []
        for ids in self.rows:
            inner = range(1, len(ids) - 2)
            whole = [
                vocabulary.whole_word(ids, at) and not common[ids[at]] for at in range(len(ids))
            ]
            self.words.append([at for at in inner if initial[ids[at]] and initial[ids[at + 1]]])
            self.content.append([at for at in inner if whole[at] and whole[at + 1]])
        self.usable = np.flatnonzero([bool(w) for w in self.words])

    @staticmethod
    def _near(among: Any, rng: np.random.Generator, count: int) -> Any:
        """Draw `count` of a sixteenth of the sentences, neighbours by length."""
        width = max(count, len(among) // 16)
        start = int(rng.integers(max(1, len(among) - width + 1)))
        part = among[start : start + width]
        return rng.choice(part, count, replace=len(part) < count)

    def sentences(self, rng: np.random.Generator, count: int) -> list[list[int]]:
        return [self.rows[n] for n in self._near(np.arange(len(self.rows)), rng, count)]

    def tables(
        self, model: Any, rng: np.random.Generator, count: int, k: int, content_share: float
    ) -> TableSample:
        """Neighbouring words of random sentences, alternatives drawn from the model."""
        import torch

        rows, places = [], []
        for n in self._near(self.usable, rng, count):
            content = self.content[n] if rng.random() < content_share else []
            i = int(rng.choice(content or self.words[n]))
            rows.append(self.rows[n])
            places.append((i, i + 1))
        patterns, reads = [], []
        for ids, pair in zip(rows, places):
            for at in pair:
                patterns.append([*ids[:at], self.mask_id, *ids[at + 1 :]])
                reads.append(at)
        batch, attention = _padded(patterns, self.pad_id)
        with torch.no_grad():
            log_p = _log_p(
                model, batch, attention, torch.arange(len(patterns)), torch.tensor(reads)
            )
        # square root: alternatives from all over the head of the distribution, not only its mode;
        # Gumbel noise draws without replacement
        score = 0.5 * np.maximum(log_p.double().numpy(), -60) + rng.gumbel(size=log_p.shape)
        score[:, list(self.vocabulary.special)] = -np.inf
        lines = np.arange(len(patterns))
        gold = [ids[at] for ids, pair in zip(rows, places) for at in pair]
        own = log_p.clone()
        own[lines, gold] = -np.inf
        own[:, list(self.vocabulary.special)] = -np.inf
        score[lines, own.argmax(dim=1).numpy()] = np.inf
        score[lines, gold] = -np.inf
        drawn = np.argsort(-score, axis=1)[:, : k - 1]
        chosen = [[g, *map(int, row)] for g, row in zip(gold, drawn)]
        return TableSample(rows, places, list(zip(chosen[::2], chosen[1::2])))


def finetune(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    config: FinetuneConfig | None = None,
    on_step: Callable[[int, dict[str, float]], object] | None = None,
) -> list[dict[str, float]]:
    """Fine-tune in place.

    Parameters
    ----------
    model : transformers masked language model
    tokenizer : its tokenizer
    texts : sequence of str
        Training sentences; measure on others.
    config : FinetuneConfig, optional
    on_step : callable, optional

    Returns
    -------
    list of dict
        Losses per step: ``masked``, and with positive weights ``curl`` and ``path``.
    """
    import torch

    config = config or FinetuneConfig()
    require(config.steps > config.warmup, "steps", config.steps, f"more than {config.warmup}")
    require(0 <= config.distill <= 1, "distill", config.distill, "0 to 1")
    rows = _rows(texts, tokenizer, config.max_length)
    require(len(rows) >= config.batch_size, "texts", len(rows), "more sentences than batch_size")
    vocabulary = Vocabulary(tokenizer)
    most = int(vocabulary.initial.size) - len(vocabulary.special) - 1
    require(2 <= config.candidates <= most, "candidates", config.candidates, f"2 to {most}")
    pad, mask = int(tokenizer.pad_token_id or 0), int(tokenizer.mask_token_id)
    sampler = _Sampler(rows, vocabulary, mask, pad)
    require(len(sampler.usable) >= 1, "texts", len(rows), "sentences with two neighbouring words")
    teacher = copy.deepcopy(model).eval() if config.distill else None
    penalised = config.curl_weight > 0 or config.path_weight > 0
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    history = []
    for step in range(config.steps):
        rng = np.random.default_rng([config.seed, 9, step])
        ramp = min((step + 1) / config.warmup, (config.steps - step) / config.steps * 1.05, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * ramp
        batch = sampler.sentences(rng, config.batch_size)
        lm = masked_loss(model, batch, tokenizer, rng, config.mask_rate, teacher, config.distill)
        point, loss = {"masked": lm.item()}, lm
        if penalised:
            sample = sampler.tables(
                model, rng, config.tables, config.candidates, config.content_share
            )
            curl, path = consistency_loss(model, sample, mask, pad, config.huber)
            loss = lm + config.curl_weight * curl + config.path_weight * path
            point |= {"curl": curl.item(), "path": path.item()}
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(point)
        if on_step:
            on_step(step, point)
    model.eval()
    return history


__all__ = [
    "FinetuneConfig",
    "TableSample",
    "consistency_loss",
    "finetune",
    "held_out_masked_loss",
    "masked_loss",
]
