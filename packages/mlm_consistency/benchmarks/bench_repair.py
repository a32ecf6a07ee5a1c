"""Consistency fine-tuning of the bundled BERT-style model, measured on held-out verses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _common import goal, options, table, write
from mlm_consistency import ConsistencyEvaluator, EvaluatorConfig, FinetuneConfig, finetune, load
from mlm_consistency.finetune import held_out_masked_loss
from mlm_consistency.metrics import pair_metrics
from mlm_consistency.mini_data import read_corpus

NAMES = ("masked loss", "gamma, gold", "gamma, grid", "path, gold", "Gibbs variation")
DEFAULT = FinetuneConfig()


def figures(
    model: torch.nn.Module, tokenizer: object, texts: list[str], pairs: int, longest: int = 64
) -> list[float]:
    """Masked loss and medians of the gaps."""
    evaluator = ConsistencyEvaluator(model, tokenizer, EvaluatorConfig(12, "all"))
    tables = evaluator.tables(evaluator.probes(texts, pairs).probes)
    rows = [pair_metrics(t, quality=False) for t in tables]
    names = ("u_gamma_gold", "u_gamma_median", "p_path_gold", "u_gibbs_tv")
    medians = [float(np.median([abs(row[name]) for row in rows])) for name in names]
    return [held_out_masked_loss(model, texts, tokenizer, longest=longest), *medians]


def log(step: int, point: dict[str, float]) -> None:
    if step % 50 == 0:
        print(step, {name: round(value, 4) for name, value in point.items()}, flush=True)


def described(config: FinetuneConfig) -> str:
    return (
        f"{config.steps} steps, rate {config.learning_rate:g}, weights {config.curl_weight:g} of"
        f" the curl and {config.path_weight:g} of the path gap, {config.tables} tables of"
        f" {config.candidates} x {config.candidates} a step"
    )


def repair_goals(what: str, before: list[float], after: list[float], setting: str) -> list[dict]:
    """Rows of both gaps: how many times smaller they are, and what that cost."""
    loss = 100 * (after[0] / before[0] - 1)
    return [
        goal(
            f"{what}: {name} at no more than 1 % more masked loss",
            f"{bar} times smaller",
            f"{before[n] / after[n]:.2f} times ({before[n]:.3f} to {after[n]:.3f} nats),"
            f" loss {loss:+.1f} % ({before[0]:.3f} to {after[0]:.3f}; {setting})",
            before[n] / after[n] >= bar and loss <= 1,
        )
        for name, n, bar in (("median |gamma|", 1, 5), ("median |log J1/J2|", 3, 3))
    ]


def main() -> None:
    arguments = options(
        "bench_repair",
        __doc__,
        corpus={"type": Path, "default": None, "help": "King James Bible, one verse a line"},
        steps={"type": int, "default": DEFAULT.steps, "help": "optimiser steps"},
        rate={"type": float, "default": DEFAULT.learning_rate, "help": "learning rate"},
        curl={"type": float, "default": DEFAULT.curl_weight, "help": "weight of the curl"},
        path={"type": float, "default": DEFAULT.path_weight, "help": "weight of the path gap"},
        pairs={"type": int, "default": 200, "help": "pairs of each half of the held-out verses"},
        control={"action": "store_true", "help": "also train as long without penalties"},
        save={"type": Path, "default": None, "help": "folder for the repaired model"},
    )
    if arguments.corpus is None:
        print("bench_repair left out: it needs --corpus kjv.txt (Debian bible-kjv-text)")
        return
    torch.set_num_threads(1)
    corpus = read_corpus(arguments.corpus)
    half = len(corpus.held_out) // 2
    halves = {"first": corpus.held_out[:half], "second": corpus.held_out[half:]}
    pairs = 40 if arguments.quick else arguments.pairs
    config = FinetuneConfig(
        steps=40 if arguments.quick else arguments.steps,
        learning_rate=arguments.rate,
        curl_weight=arguments.curl,
        path_weight=arguments.path,
    )
    runs = {"before": None, "repaired": config}
    if arguments.control:
        runs["trained on without penalties"] = replace(config, curl_weight=0.0, path_weight=0.0)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in halves}
    for name, settings in runs.items():
        scorer, tokenizer = load("mini-bert")
        if settings is not None:
            finetune(scorer.model, tokenizer, corpus.train, settings, log)
        for part, texts in halves.items():
            found[part][name] = figures(scorer.model, tokenizer, texts, pairs)
            print(name, part, found[part][name], flush=True)
        if name == "repaired" and arguments.save:
            scorer.model.save_pretrained(arguments.save)
            tokenizer.save_pretrained(arguments.save)
    before, after = found["second"]["before"], found["second"]["repaired"]
    setting = (
        f"{described(config)}; settings chosen on the first half of the held-out verses, measured"
        " on the second"
    )
    goals = repair_goals("fine-tuning", before, after, setting)
    write(
        arguments.out,
        "bench_repair",
        "Consistency fine-tuning",
        goals,
        [
            table(
                f"Medians on {pairs} pairs of the {part} half of the held-out verses",
                ["measure", *runs],
                [list(row) for row in zip(NAMES, *found[part].values())],
            )
            for part in halves
        ],
        arguments=f" --corpus kjv.txt --steps {config.steps} --rate {config.learning_rate:g}"
        f" --curl {config.curl_weight:g} --path {config.path_weight:g} --pairs {pairs}"
        + (" --control" if arguments.control else ""),
    )


if __name__ == "__main__":
    main()
