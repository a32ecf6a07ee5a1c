"""Consistency fine-tuning of the bundled BERT-style model, measured on held-out verses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from _common import goal, options, table, write
from mlm_consistency import ConsistencyEvaluator, EvaluatorConfig, FinetuneConfig, finetune, load
from mlm_consistency.finetune import held_out_masked_loss
from mlm_consistency.metrics import pair_metrics
from mlm_consistency.mini_data import read_corpus


def figures(model: torch.nn.Module, tokenizer: object, texts: list[str], pairs: int) -> list[float]:
    evaluator = ConsistencyEvaluator(model, tokenizer, EvaluatorConfig(12, "all"))
    tables = evaluator.tables(evaluator.probes(texts, pairs).probes)
    rows = [pair_metrics(t, quality=False) for t in tables]
    names = ("u_gamma_gold", "u_gamma_median", "p_path_gold", "u_gibbs_tv")
    medians = [float(np.median([abs(row[name]) for row in rows])) for name in names]
    return [held_out_masked_loss(model, texts, tokenizer), *medians]


def main() -> None:
    arguments = options(
        "bench_repair",
        __doc__,
        corpus={"type": Path, "default": None, "help": "King James Bible, one verse a line"},
        steps={"type": int, "default": 400, "help": "optimiser steps"},
        rate={"type": float, "default": 5e-4, "help": "learning rate"},
        weight={"type": float, "default": 0.3, "help": "weight of both penalties"},
    )
    if arguments.corpus is None:
        print("bench_repair left out: it needs --corpus kjv.txt (Debian bible-kjv-text)")
        return
    torch.set_num_threads(1)
    corpus = read_corpus(arguments.corpus)
    scorer, tokenizer = load("mini-bert")
    model, pairs = scorer.model, 40 if arguments.quick else 200
    before = figures(model, tokenizer, corpus.held_out, pairs)
    steps = 40 if arguments.quick else arguments.steps
    config = FinetuneConfig(steps=steps, learning_rate=arguments.rate,
                            curl_weight=arguments.weight, path_weight=arguments.weight)  # fmt: skip
    finetune(model, tokenizer, corpus.train, config,
             lambda step, point: print(step, point) if step % 50 == 0 else None)  # fmt: skip
    after = figures(model, tokenizer, corpus.held_out, pairs)
    loss = 100 * (after[0] / before[0] - 1)
    gamma, path = before[1] / after[1], before[3] / after[3]
    setting = f"{steps} steps, rate {arguments.rate:g}, weight {arguments.weight:g}"
    note = setting
    goals = [
        goal("fine-tuning: median |gamma|, held-out text", "5 times smaller",
             f"{gamma:.1f} times ({before[1]:.3f} to {after[1]:.3f} nats)", gamma >= 5, note),
        goal("fine-tuning: median |log J1/J2|", "3 times smaller",
             f"{path:.1f} times ({before[3]:.3f} to {after[3]:.3f} nats)", path >= 3, note),
        goal("fine-tuning: masked loss, held-out text", "at most 1 % higher",
             f"{loss:+.1f} % ({before[0]:.3f} to {after[0]:.3f})", loss <= 1, note),
    ]  # fmt: skip
    names = ["masked loss", "gamma, gold", "gamma, grid", "path, gold", "Gibbs variation"]
    write(arguments.out, "bench_repair", "Consistency fine-tuning", goals,
          [table(setting, ["median", "before", "after"],
                 [list(row) for row in zip(names, before, after)])],
          arguments=f" --corpus kjv.txt --steps {steps} --rate {arguments.rate:g}"
          f" --weight {arguments.weight:g}")  # fmt: skip


if __name__ == "__main__":
    main()
