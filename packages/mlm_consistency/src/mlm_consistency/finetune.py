"""Repair: fine-tune a masked language model so that its conditionals agree.

The loss is masked-LM cross-entropy plus a penalty on sampled quadruples: the squared curl, and the
squared path gap of the quadruple's four cells. Both vanish on every context exactly when the model
has a joint distribution over the pair and fills it in any order.
"""

from __future__ import annotations

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
    quadruples : int
        Quadruples per step (five forwards each).
    curl_weight, path_weight : float
    huber : float
        Gaps beyond this many nats count linearly, so that few extreme ones do not rule.
    mask_rate : float
    max_length : int
    seed : int
    """

    steps: int = 600
    learning_rate: float = 5e-4
    warmup: int = 30
    batch_size: int = 48
    quadruples: int = 32
    curl_weight: float = 1.0
    path_weight: float = 1.0
    huber: float = 1.0
    mask_rate: float = 0.15
    max_length: int = 48
    seed: int = 0


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
    model: Any,
    rows: Sequence[Sequence[int]],
    places: Sequence[tuple[int, int]],
    alternatives: Sequence[tuple[int, int]],
    mask_id: int,
    pad_id: int,
    huber: float = 1.0,
) -> tuple[Any, Any]:
    """Mean penalties of quadruples: curl and path.

    Parameters
    ----------
    rows : token ids
    places : (i, j) per row
    alternatives : (a', b') per row, tokens that may stand at i and j
    mask_id, pad_id : int
    huber : float

    Returns
    -------
    two scalar tensors
    """
    import torch
    from torch.nn.functional import huber_loss

    patterns, wanted = [], []
    for ids, (i, j), (a2, b2) in zip(rows, places, alternatives):
        a, b = ids[i], ids[j]
        for x, y, at in ((mask_id, b, i), (mask_id, b2, i), (a, mask_id, j), (a2, mask_id, j)):
            row = list(ids)
            row[i], row[j] = x, y
            patterns.append(row)
            wanted.append(at)
        row = list(ids)
        row[i] = row[j] = mask_id
        patterns.append(row)
        wanted.append(i)
    batch, attention = _padded(patterns, pad_id)
    n = len(rows)
    lines = torch.arange(5 * n)
    both = torch.arange(4, 5 * n, 5)
    row_index = torch.cat([lines, both])
    place_index = torch.tensor([*wanted, *(j for _, j in places)])
    log_p = _log_p(model, batch, attention, row_index, place_index)
    unary, m_j = log_p[: 5 * n].view(n, 5, -1), log_p[5 * n :]
    k = torch.arange(n)
    tokens_a = torch.tensor([[ids[i], a2] for ids, (i, _), (a2, _) in
                             zip(rows, places, alternatives)])  # fmt: skip
    tokens_b = torch.tensor([[ids[j], b2] for ids, (_, j), (_, b2) in
                             zip(rows, places, alternatives)])  # fmt: skip
    # [n, 2 (a, a'), 2 (b, b')]
    a_given_b = torch.stack(
        [unary[k, 0][k[:, None], tokens_a], unary[k, 1][k[:, None], tokens_a]], dim=2
    )
    b_given_a = torch.stack(
        [unary[k, 2][k[:, None], tokens_b], unary[k, 3][k[:, None], tokens_b]], dim=1
    )
    marginal_i = unary[k, 4][k[:, None], tokens_a]
    marginal_j = m_j[k[:, None], tokens_b]
    d = a_given_b - b_given_a
    curl = d[:, 0, 0] - d[:, 1, 0] - d[:, 0, 1] + d[:, 1, 1]
    path = marginal_i[:, :, None] + b_given_a - marginal_j[:, None] - a_given_b
    zero = torch.zeros(())
    return (
        huber_loss(curl, zero.expand_as(curl), delta=huber),
        huber_loss(path, zero.expand_as(path), delta=huber),
    )


def masked_loss(
    model: Any, rows: Sequence[Sequence[int]], tokenizer: Any, rng: np.random.Generator, rate: float
) -> Any:
    """Masked-LM cross-entropy of a batch, masks drawn from `rng`; 80 % mask, 10 % random."""
    import torch
    from torch.nn.functional import nll_loss

    special = set(tokenizer.all_special_ids)
    vocabulary = len(tokenizer)
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
                row[at] = int(rng.integers(len(special), vocabulary))
            lines.append(n)
            places.append(at)
            targets.append(ids[at])
        changed.append(row)
    batch, attention = _padded(changed, tokenizer.pad_token_id or 0)
    log_p = _log_p(model, batch, attention, torch.tensor(lines), torch.tensor(places))
    return nll_loss(log_p, torch.tensor(targets))


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


def _sample(
    model: Any,
    rows: Sequence[list[int]],
    vocabulary: Vocabulary,
    mask_id: int,
    pad_id: int,
    rng: np.random.Generator,
    count: int,
) -> tuple[list[list[int]], list[tuple[int, int]], list[tuple[int, int]]]:
    """Neighbouring word-initial tokens of random sentences, alternatives drawn from the model."""
    import torch

    chosen: list[list[int]] = []
    places: list[tuple[int, int]] = []
    patterns, reads = [], []
    while len(chosen) < count:
        ids = rows[int(rng.integers(len(rows)))]
        starts = [
            at for at in range(1, len(ids) - 2)
            if vocabulary.initial[ids[at]] and vocabulary.initial[ids[at + 1]]
        ]  # fmt: skip
        if not starts:
            continue
        i = int(rng.choice(starts))
        chosen.append(ids)
        places.append((i, i + 1))
        for at in (i, i + 1):
            row = list(ids)
            row[at] = mask_id
            patterns.append(row)
            reads.append(at)
    batch, attention = _padded(patterns, pad_id)
    with torch.no_grad():
        log_p = _log_p(model, batch, attention, torch.arange(len(patterns)), torch.tensor(reads))
    p = log_p.double().exp().numpy()
    p[:, list(vocabulary.special)] = 0
    for n, (ids, (i, j)) in enumerate(zip(chosen, places)):
        p[2 * n, ids[i]] = p[2 * n + 1, ids[j]] = 0
    # square root: alternatives from all over the head of the distribution, not only its mode
    p = np.sqrt(np.where(p > 1e-6, p, 0))
    p /= p.sum(axis=1, keepdims=True)
    draws = [int(rng.choice(p.shape[1], p=row)) for row in p]
    return chosen, places, list(zip(draws[::2], draws[1::2]))


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
        Losses per step: ``masked``, ``curl``, ``path``.
    """
    import torch

    config = config or FinetuneConfig()
    require(config.steps > config.warmup, "steps", config.steps, f"more than {config.warmup}")
    rows = _rows(texts, tokenizer, config.max_length)
    require(len(rows) >= config.batch_size, "texts", len(rows), "more sentences than batch_size")
    vocabulary = Vocabulary(tokenizer)
    pad, mask = int(tokenizer.pad_token_id or 0), int(tokenizer.mask_token_id)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    history = []
    for step in range(config.steps):
        rng = np.random.default_rng([config.seed, 9, step])
        ramp = min((step + 1) / config.warmup, (config.steps - step) / config.steps * 1.05, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * ramp
        batch = [rows[i] for i in rng.choice(len(rows), config.batch_size, replace=False)]
        lm = masked_loss(model, batch, tokenizer, rng, config.mask_rate)
        sample = _sample(model, rows, vocabulary, mask, pad, rng, config.quadruples)
        curl, path = consistency_loss(model, *sample, mask, pad, config.huber)
        loss = lm + config.curl_weight * curl + config.path_weight * path
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        point = {"masked": lm.item(), "curl": curl.item(), "path": path.item()}
        history.append(point)
        if on_step:
            on_step(step, point)
    model.eval()
    return history


__all__ = ["FinetuneConfig", "consistency_loss", "finetune", "held_out_masked_loss", "masked_loss"]
