"""Train the miniature models that ship with the package, and load them.

They exist so that every figure of this package can be had without a network: a BERT-style and a
T5-style model with about a million parameters each, trained on the King James Bible in minutes on
one core.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import mini_data as data
from .errors import InputError, require
from .files import write_atomic, write_json, write_text

BUNDLED = Path(__file__).parent / "data"
NAMES = {"mini-bert": "bert", "mini-t5": "t5"}


@dataclass(frozen=True)
class MiniConfig:
    """Settings of one training; the defaults made the bundled weights.

    Parameters
    ----------
    kind : "bert" or "t5"
    steps, batch_size, learning_rate, warmup : optimiser
        AdamW, linear warm-up over `warmup` steps, linear decay to zero.
    embedding_factor : float
        Learning rate of the token embeddings over that of the other weights. T5's embeddings start
        at a standard deviation of 1, its query matrices at 0.016: one rate suits not both.
    vocab_size, hidden, layers, heads, feed_forward : architecture
    longest : int
        Sentences with more tokens are left out.
    seed : int
    cooldown_from, slow_decay_to : int
        With `cooldown_from`, the rate falls as if the training had `slow_decay_to` steps, and from
        `cooldown_from` on linearly to zero at `steps`.
    checkpoint_every : int
        Steps between checkpoints and held-out losses.
    """

    kind: str
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    vocab_size: int = 4096
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 512
    longest: int = 62
    seed: int = 0
    checkpoint_every: int = 100
    embedding_factor: float = 1.0
    cooldown_from: int = 0
    slow_decay_to: int = 0


def bert_config(**changes: Any) -> MiniConfig:
    """Return the settings of the bundled BERT-style model."""
    return MiniConfig(**{"kind": "bert", **changes})


def t5_config(**changes: Any) -> MiniConfig:
    """Return the settings of the bundled T5-style model (2 + 2 layers, gated-gelu)."""
    settings: dict[str, Any] = {
        "kind": "t5",
        "steps": 1900,
        "learning_rate": 1e-3,
        "layers": 2,
        "feed_forward": 256,
        "embedding_factor": 3.0,
        "cooldown_from": 1500,
        "slow_decay_to": 3000,
    }
    return MiniConfig(**{**settings, **changes})


def build_model(config: MiniConfig) -> Any:
    """Make the untrained network."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(config.seed)
    if config.kind == "bert":
        return BertForMaskedLM(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.feed_forward,
                max_position_embeddings=512,
                type_vocab_size=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=data.PAD,
            )
        )
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size + data.NUM_SENTINELS,
        "d_model": config.hidden,
        "d_kv": config.hidden // config.heads,
        "d_ff": config.feed_forward,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "tie_word_embeddings": True,
        "pad_token_id": data.PAD,
        "eos_token_id": data.SEP,
        "decoder_start_token_id": data.PAD,
    }
    return T5ForConditionalGeneration(T5Config(**settings))


def loss_of(model: Any, config: MiniConfig, rows: list[np.ndarray], rng: Any) -> Any:
    """Mean loss over the predicted tokens of one batch."""
    import torch
    from torch.nn.functional import cross_entropy

    if config.kind == "bert":
        inputs, chosen, original = data.masked_batch(rows, config.vocab_size, rng)
        attention = torch.from_numpy((original != data.PAD).astype(np.int64))
        hidden = model.bert(torch.from_numpy(inputs), attention_mask=attention).last_hidden_state
        mask = torch.from_numpy(chosen)
        return cross_entropy(model.cls(hidden[mask]), torch.from_numpy(original)[mask])
    pairs = [data.corrupt(ids, rng, config.vocab_size) for ids in rows]
    encoder = data.pad([e for e, _ in pairs], data.PAD)
    labels = data.pad([d for _, d in pairs], -100)
    return model(
        input_ids=torch.from_numpy(encoder),
        attention_mask=torch.from_numpy((encoder != data.PAD).astype(np.int64)),
        labels=torch.from_numpy(labels),
    ).loss


def held_out_loss(
    model: Any, config: MiniConfig, rows: list[np.ndarray], batches: int = 12
) -> float:
    """Loss on held-out sentences with fixed masks."""
    import torch

    size = 128
    with torch.no_grad():
        losses = [
            float(
                loss_of(
                    model,
                    config,
                    rows[i * size : (i + 1) * size],
                    np.random.default_rng([77, i]),
                )
            )
            for i in range(min(batches, max(1, len(rows) // size)))
        ]
    return float(np.mean(losses))


def _groups(model: Any, config: MiniConfig) -> list[dict[str, Any]]:
    """Parameter groups: one, or token embeddings apart where their rate differs."""
    embeddings = model.get_input_embeddings().weight
    if config.embedding_factor == 1.0:
        return [{"params": list(model.parameters()), "lr": config.learning_rate, "factor": 1.0}]
    rest = [p for p in model.parameters() if p is not embeddings]
    return [
        {"params": rest, "lr": config.learning_rate, "factor": 1.0},
        {"params": [embeddings], "lr": config.learning_rate, "factor": config.embedding_factor},
    ]


def _rate(config: MiniConfig, step: int) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.cooldown_from:
        turn = min(step, config.cooldown_from)
        slow = (config.slow_decay_to - turn) / (config.slow_decay_to - config.warmup)
        left = (config.steps - step) / (config.steps - config.cooldown_from)
        return slow * min(1.0, left)
    return (config.steps - step) / max(1, config.steps - config.warmup)


def train(
    corpus_path: str | Path,
    out: str | Path,
    config: MiniConfig,
    on_step: Callable[[int, float], object] | None = None,
    stop_after: int | None = None,
    tokenizer: str | Path | None = None,
) -> dict[str, Any]:
    """Train a miniature and export it; an interrupted training goes on from its checkpoint.

    Parameters
    ----------
    corpus_path : path
        Text, one sentence a line; the bundled weights come from the King James Bible.
    out : path
        Folder: ``model.safetensors`` (fp16), ``config.json``, ``tokenizer.json``,
        ``manifest.json``; ``checkpoint.pt`` while the training is under way.
    config : MiniConfig
    on_step : callable, optional
        Called with the step and the loss.
    stop_after : int, optional
        Leave after this many steps of this call, with a checkpoint.
    tokenizer : path, optional
        ``tokenizer.json`` to use instead of training one on the corpus.

    Returns
    -------
    dict
        The manifest; without ``sha256`` when the training was left early.

    Raises
    ------
    InputError
        The corpus is unreadable or small, or the checkpoint belongs to other settings.
    """
    import torch

    require(config.kind in ("bert", "t5"), "kind", config.kind, "'bert' or 't5'")
    require(config.steps > config.warmup, "steps", config.steps, f"more than {config.warmup}")
    out = Path(out)
    corpus = data.read_corpus(corpus_path)
    sentinels = data.NUM_SENTINELS if config.kind == "t5" else 0
    if tokenizer is None:
        words = data.train_tokenizer(corpus.train, config.vocab_size, sentinels)
    else:
        words = data.read_tokenizer(tokenizer, config.vocab_size, sentinels)
    rows = data.encode(words, corpus.train, config.longest)
    held_out = data.encode(words, corpus.held_out, config.longest)
    words_hash = hashlib.sha256(words.encode()).hexdigest()
    text_hash = hashlib.sha256("\n".join(corpus.train).encode()).hexdigest()
    threads = torch.get_num_threads()
    model = build_model(config).train()
    optimizer = torch.optim.AdamW(_groups(model, config), betas=(0.9, 0.98), weight_decay=0.01)
    state = _resume(out / "checkpoint.pt", config, text_hash + words_hash)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    else:
        state = {"step": 0, "seconds": 0.0, "tokens": 0, "curve": []}
    start = time.process_time() - state["seconds"]
    lengths = np.asarray([len(r) for r in rows])
    stream: Iterator[np.ndarray] = data.batches(
        lengths, config.batch_size, config.seed, state["step"]
    )
    last = config.steps if stop_after is None else min(config.steps, state["step"] + stop_after)
    for step in range(state["step"], last):
        batch = [rows[i] for i in next(stream)]
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * config.learning_rate * _rate(config, step)
        loss = loss_of(model, config, batch, np.random.default_rng([config.seed, 1, step]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state["tokens"] += int(sum(map(len, batch)))
        if on_step:
            on_step(step, loss.item())
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == last:
            state["seconds"] = time.process_time() - start
            point = [step + 1, round(held_out_loss(model, config, held_out, 4), 4)]
            state = {**state, "step": step + 1, "curve": [*state["curve"], point]}
            _save(out / "checkpoint.pt", model, optimizer, state, config, text_hash + words_hash)
    manifest = {
        "schema_version": 1,
        "config": asdict(config),
        "command": f"mlm-consistency train-mini {config.kind} --corpus kjv.txt --out DIR",
        "tokenizer": "trained on the corpus" if tokenizer is None else "given",
        "corpus": data.WHERE_TO_GET_THE_KJV,
        "corpus_train_sha256": text_hash,
        "tokenizer_sha256": words_hash,
        "train_sentences": len(rows),
        "held_out_sentences": len(held_out),
        "steps": state["step"],
        "tokens": state["tokens"],
        "processor_seconds": round(state["seconds"], 1),
        "threads": threads,
        "held_out_loss": round(held_out_loss(model, config, held_out), 4),
        "curve": state["curve"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if state["step"] == config.steps:
        manifest["sha256"] = _export(model, words, config, out)
        write_json(out / "manifest.json", manifest)
        (out / "checkpoint.pt").unlink(missing_ok=True)
    return manifest


def _save(
    path: Path, model: Any, optimizer: Any, state: dict[str, Any], config: MiniConfig, text: str
) -> None:
    import torch

    content = {
        **state,
        "config": json.dumps(asdict(config), sort_keys=True),
        "corpus": text,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_atomic(path, lambda file: torch.save(content, file))


def _resume(path: Path, config: MiniConfig, text: str) -> dict[str, Any] | None:
    import torch

    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # a broken archive raises many types; all mean the same
        words = " ".join(str(error).split())[:160]
        raise InputError(f"checkpoint = {str(path)!r}: allowed is a whole file; {words}") from None
    same = state.pop("config") == json.dumps(asdict(config), sort_keys=True)
    require(
        same and state.pop("corpus") == text,
        "checkpoint",
        str(path),
        "one of the same settings and corpus",
        "delete it to start again",
    )
    return state


def _export(model: Any, tokenizer: str, config: MiniConfig, out: Path) -> str:
    """Write weights in fp16, configuration and tokenizer; return the weights' checksum."""
    import torch
    from safetensors.torch import save

    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    tied |= {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    weights = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if name not in tied and value.is_floating_point()
    }
    content = save(weights, metadata={"format": "pt"})
    write_atomic(out / "model.safetensors", lambda file: file.write(content))
    write_text(out / "config.json", model.config.to_json_string())
    write_text(out / "tokenizer.json", tokenizer)
    special: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    if config.kind == "bert":
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    else:
        extra = [f"<extra_id_{i}>" for i in range(data.NUM_SENTINELS)]
        special |= {"eos_token": "[SEP]", "additional_special_tokens": extra}
    write_json(out / "tokenizer_config.json", special)
    return hashlib.sha256(content).hexdigest()


def bundled(name: str) -> Path:
    """Folder of a miniature that ships with the package.

    Parameters
    ----------
    name : "mini-bert" or "mini-t5"
    """
    require(name in NAMES, "model", name, f"one of {', '.join(NAMES)}")
    return BUNDLED / name


def held_out_sentences() -> list[str]:
    """Held-out verses of the King James Bible (public domain) that ship with the package."""
    import gzip

    with gzip.open(BUNDLED / "held_out.txt.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]
