"""Consistency fine-tuning of Sapiens (antibody heavy chains) on sequences of its own.

No corpus of sequences is at hand: the model's own samples stand in for one. Chains start from two
published sequences; in every sweep each position is masked once, an eighth of them at a time, and
drawn from the model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from _common import options, table, write
from bench_repair import NAMES, described, figures, log, repair_goals
from mlm_consistency import FinetuneConfig, finetune, load, zoo

STARTS = (
    "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSEDTAVYYCAA"
    "PYCSSISCNDGFDIWGQGTMVTVS",
    "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCAR"
    "RDYRFDMGFDYWGQGTTVTVSS",
)
GROUPS = 8


def samples(
    model: torch.nn.Module, tokenizer: object, start: str, chains: int, sweeps: int, seed: int
) -> list[str]:
    """Sequences after some sweeps of Gibbs sampling."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(tokenizer([start])["input_ids"]).repeat(chains, 1)
    special = list(tokenizer.all_special_ids)
    free = np.arange(1, ids.shape[1] - 1)
    rng = np.random.default_rng(seed)
    for _ in range(sweeps):
        for group in np.array_split(rng.permutation(free), GROUPS):
            masked = ids.clone()
            masked[:, group] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=masked).logits[:, group]
            logits[..., special] = -torch.inf
            flat = logits.flatten(0, 1).softmax(-1)
            ids[:, group] = torch.multinomial(flat, 1, generator=generator).view(chains, -1)
    return ["".join(tokenizer.convert_ids_to_tokens(row[1:-1].tolist())) for row in ids]


def main() -> None:
    arguments = options(
        "bench_repair_sapiens",
        __doc__,
        wheel={"type": Path, "default": None, "help": "sapiens-1.0.3-py3-none-any.whl"},
        steps={"type": int, "default": 400, "help": "optimiser steps"},
        chains={"type": int, "default": 128, "help": "sequences sampled from each start"},
        pairs={"type": int, "default": 60, "help": "pairs measured"},
    )
    if arguments.wheel is None:
        print("bench_repair_sapiens left out: it needs --wheel (pip download --no-deps sapiens)")
        return
    torch.set_num_threads(1)
    steps, chains, sweeps, pairs = arguments.steps, arguments.chains, 6, arguments.pairs
    if arguments.quick:
        steps, chains, sweeps, pairs = 35, 12, 1, 10
    with tempfile.TemporaryDirectory() as folder:
        zoo.convert(arguments.wheel, folder, "H")
        scorer, tokenizer = load(folder)
    texts = []
    for n, start in enumerate(STARTS):
        texts += samples(scorer.model, tokenizer, start, chains, sweeps, n)
    texts = [texts[n] for n in np.random.default_rng(0).permutation(len(texts))]
    held_out, train = texts[: len(texts) // 4], texts[len(texts) // 4 :]
    config = FinetuneConfig(
        steps=steps,
        learning_rate=5e-4,
        batch_size=12,
        tables=8,
        distill=1.0,
        max_length=130,
        content_share=0.0,
    )
    before = figures(scorer.model, tokenizer, held_out, pairs, 130)
    print("before", before, flush=True)
    finetune(scorer.model, tokenizer, train, config, log)
    after = figures(scorer.model, tokenizer, held_out, pairs, 130)
    print("after", after, flush=True)
    setting = (
        f"{described(config)}, sequences sampled from the model, {len(train)} to train on and"
        f" {len(held_out)} others to measure"
    )
    write(
        arguments.out,
        "bench_repair_sapiens",
        "Consistency fine-tuning of Sapiens, heavy chains",
        repair_goals("Sapiens", before, after, setting),
        [
            table(
                f"Medians on {pairs} neighbouring pairs",
                ["measure", "before", "repaired"],
                [list(row) for row in zip(NAMES, before, after)],
            )
        ],
        arguments=f" --wheel {arguments.wheel.name} --steps {steps} --chains {chains}"
        f" --pairs {pairs}",
    )


if __name__ == "__main__":
    main()
