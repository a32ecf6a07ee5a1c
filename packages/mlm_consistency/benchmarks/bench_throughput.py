"""Pseudo-log-likelihood against minicons, pair tables against a loop, memory of a long text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from _common import goal, interleaved, median, options, spread, table, write
from minicons import scorer as minicons
from mlm_consistency import (
    ConsistencyEvaluator,
    EvaluatorConfig,
    MaskedScorer,
    Planner,
    Request,
    held_out_sentences,
    load,
    pseudo_log_likelihood,
)
from transformers import BertConfig, BertForMaskedLM


def against_minicons(model: torch.nn.Module, tokenizer: object, texts: list[str], repeats: int):
    """Processor times of ours and of minicons at several batch sizes; largest score difference."""
    # minicons 0.3.39 calls a method that transformers 5 no longer has; the call itself is the same
    if not hasattr(tokenizer, "batch_encode_plus"):
        type(tokenizer).batch_encode_plus = lambda self, *a, **k: self(*a, **k)
    theirs = minicons.MaskedLMScorer(model, "cpu", tokenizer=tokenizer)
    ours = MaskedScorer(model, tokenizer.mask_token_id)

    def peer(size: int) -> list[list[tuple[str, float]]]:
        out = []
        for start in range(0, len(texts), size):
            out += theirs.token_score(texts[start : start + size])
        return out

    found = pseudo_log_likelihood(texts, Planner(ours), tokenizer)
    worst = max(
        float(np.abs(a.log_p - [s for t, s in b if t not in ("[CLS]", "[SEP]")]).max())
        for a, b in zip(found, peer(4))
    )
    functions = {"ours": lambda: pseudo_log_likelihood(texts, Planner(ours), tokenizer)}
    functions |= {f"minicons, batch {n}": (lambda n=n: peer(n)) for n in (1, 4, 8)}
    return interleaved(functions, repeats), worst, sum(len(s.tokens) for s in found)


def pair_tables(texts: list[str], repeats: int) -> tuple[dict[str, list[float]], float]:
    """Tables of 32 x 32 candidates: planner against one whole forward per candidate."""
    scorer, tokenizer = load("mini-bert")
    evaluator = ConsistencyEvaluator(scorer, tokenizer, EvaluatorConfig(32, "all"))
    probes = evaluator.probes(texts, 6).probes
    tables = evaluator.tables(probes)
    sets = [(t.info["ids_a"], t.info["ids_b"]) for t in tables]

    def loop() -> list[np.ndarray]:
        out = []
        for probe, (a, b) in zip(probes, sets):
            columns = []
            for side, (at, other, own, given) in enumerate(
                ((probe.i, probe.j, a, b), (probe.j, probe.i, b, a))
            ):
                for token in given:
                    ids = torch.tensor([probe.ids])
                    ids[0, at], ids[0, other] = scorer.mask_id, token
                    with torch.inference_mode():
                        logits = scorer.model(ids, attention_mask=torch.ones_like(ids)).logits
                    columns.append((side, torch.log_softmax(logits, -1)[0, at, own].numpy()))
            out.append(np.stack([c for side, c in columns if side == 0], 1))
        return out

    def planned() -> list[object]:
        return evaluator._tables(probes, 0, sets)[0]

    worst = max(float(np.abs(t.log_a_given_b - x).max()) for t, x in zip(planned(), loop()))
    return interleaved({"ours": planned, "loop": loop}, repeats), worst


def _status(name: str) -> int:
    """Read a figure of this process in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status")


def long_text() -> tuple[float, int]:
    """Peak memory in MiB that one text of 350 words adds to a model of bert-base's shape."""
    config = BertConfig(vocab_size=30_522)
    torch.manual_seed(0)
    scorer = MaskedScorer(BertForMaskedLM(config), 103)
    planner = Planner(scorer, 2**29)
    rng = np.random.default_rng(0)
    ids = [101, *rng.integers(1000, 30_000, 460).tolist(), 102]

    def requests(count: int) -> list[Request]:
        return [
            Request(tuple(103 if n == at else t for n, t in enumerate(ids)), at, (ids[at],))
            for at in range(1, 1 + count)
        ]

    planner.score(requests(1))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    # every batch has the size of the whole text's batches; the rest would repeat it
    planner.score(requests(26))
    after = _status("VmHWM")
    return (after - before) / 1024, len(ids)


def main() -> None:
    if sys.argv[1:] == ["--memory"]:
        print(*long_text())
        return
    arguments = options(
        "bench_throughput",
        __doc__,
        texts={"type": int, "default": 40, "help": "sentences of the token-score comparison"},
    )
    torch.set_num_threads(1)
    repeats, count = (2, 8) if arguments.quick else (5, arguments.texts)
    texts = [t for t in held_out_sentences() if len(t) < 250][:count]
    scorer, tokenizer = load("mini-bert")
    rows, goals = [], []
    torch.manual_seed(0)
    config = scorer.model.config.to_dict()
    wide = BertForMaskedLM(BertConfig(**{**config, "vocab_size": 30_522})).eval()
    for name, model in (("4,096", scorer.model), ("30,522", wide)):
        times, worst, tokens = against_minicons(model, tokenizer, texts, repeats)
        peers = {k: median(v) for k, v in times.items() if k != "ours"}
        best = min(peers, key=lambda k: peers[k])
        ratios = [a / b for a, b in zip(times[best], times["ours"])]
        for key, values in times.items():
            rows.append([name, key, tokens / median(values), spread(values)])
        goals.append(
            goal(f"pseudo-log-likelihood, vocabulary {name}, against minicons' best batch size",
                 "at least 2.5 times", f"{median(ratios):.2f} times ({spread(ratios)}; {best})",
                 median(ratios) >= 2.5)
        )  # fmt: skip
        goals.append(
            goal(f"token scores, vocabulary {name}, against minicons", "within 1e-4",
                 f"{worst:.1e}, largest of {tokens}", worst <= 1e-4)
        )  # fmt: skip
    times, worst = pair_tables(texts, repeats)
    ratios = [a / b for a, b in zip(times["loop"], times["ours"])]
    goals.append(
        goal("pair tables, 32 x 32 candidates, against one forward per candidate",
             "at least 5 times",
             f"{median(ratios):.2f} times ({spread(ratios)}; largest difference {worst:.1e})",
             median(ratios) >= 5)
    )  # fmt: skip
    out = subprocess.run(
        [sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True
    ).stdout.split()
    memory, length = float(out[-2]), int(out[-1])
    goals.append(
        goal("one text of 350 words (462 tokens), bert-base's shape: memory above the model",
             "below 1 GiB", f"{memory:.0f} MiB with a budget of 512 MiB, {length} tokens",
             memory < 1024)
    )  # fmt: skip
    write(
        arguments.out, "bench_throughput", "Throughput and memory", goals,
        [table("Tokens per processor second", ["vocabulary", "system", "tokens/s", "s"], rows)],
        packages=("minicons",),
        arguments=f" --texts {count}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
