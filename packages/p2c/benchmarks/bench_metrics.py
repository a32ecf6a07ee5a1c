"""Metrics against pycocoevalcap: equality on 50,000 captions, speed of the CIDEr-D reward."""

from __future__ import annotations

import os

import numpy as np
from _common import goal, interleaved, options, ratio, write
from p2c import metrics, native
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge


def cases(count: int, seed: int) -> tuple[list[list[str]], list[str]]:
    g = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(300)]
    rank = 1 / np.arange(1, 301)

    def text(low: int) -> str:
        return " ".join(g.choice(words, g.integers(low, 15), p=rank / rank.sum()))

    refs = [[text(1) for _ in range(g.integers(1, 6))] for _ in range(count)]
    hyps = [str(g.choice(r)) if g.random() < 0.2 else text(0) for r in refs]
    return refs, hyps


def main() -> None:
    out = options("bench_metrics", __doc__ or "").out
    worst = {"BLEU": 0.0, "ROUGE-L": 0.0, "CIDEr": 0.0}
    count = 0
    for seed in range(10):
        refs, hyps = cases(5000, seed)
        gts, res = dict(enumerate(refs)), {i: [h] for i, h in enumerate(hyps)}
        pairs = {
            "BLEU": (metrics.bleu(refs, hyps), Bleu(4).compute_score(gts, res, verbose=0)),
            "ROUGE-L": (metrics.rouge_l(refs, hyps), Rouge().compute_score(gts, res)),
            "CIDEr": (metrics.cider(refs, hyps), Cider().compute_score(gts, res)),
        }
        for name, (ours, theirs) in pairs.items():
            for a, b in zip(ours, theirs):
                gap = float(np.abs(np.asarray(a) - np.asarray(b)).max())
                worst[name] = max(worst[name], gap)
        count += len(hyps)
    refs, hyps = cases(1000, 99)
    keys = [i for i in range(1000) for _ in range(6)]  # five samples and a greedy caption
    many = [hyps[(i * 7 + k) % 1000] for i in range(1000) for k in range(6)]
    gts = {n: refs[i] for n, i in enumerate(keys)}
    res = {n: [h] for n, h in enumerate(many)}
    compiled = metrics.CiderD(dict(enumerate(refs)))
    os.environ[native.VARIABLE] = "off"
    python = metrics.CiderD(dict(enumerate(refs)))
    os.environ[native.VARIABLE] = "on"
    times = interleaved(
        {
            "p2c, compiled": lambda: compiled.scores(keys, many),
            "p2c, Python": lambda: python.scores(keys, many),
            "pycocoevalcap": lambda: Cider().compute_score(gts, res),
        },
        3,
    )
    goals = [
        goal(
            f"{name} against pycocoevalcap, {count} captions, corpus and each",
            "difference at most 1e-6",
            f"{gap:.1e}",
            gap <= 1e-6,
        )
        for name, gap in worst.items()
    ]
    for who, least in (("Python", 10), ("compiled", 50)):
        value, words = ratio(times, "pycocoevalcap", f"p2c, {who}")
        goals.append(
            goal(
                f"CIDEr-D reward of 6000 captions (1000 images, cached references), {who}",
                f"at least {least} times faster than pycocoevalcap's CIDEr",
                words,
                value >= least,
                "the peer reads references and frequencies anew in every call, as its interface "
                "has it",
            )
        )
    gap = float(np.abs(compiled.scores(keys, many) - python.scores(keys, many)).max())
    goals.append(
        goal(
            "compiled CIDEr-D against Python, 6000 captions",
            "difference at most 1e-6",
            f"{gap:.1e}",
            gap <= 1e-6,
        )
    )
    rows = [[k, float(np.median(v)), min(v), max(v)] for k, v in times.items()]
    table = {"title": "Seconds", "columns": ["who", "median", "min", "max"], "rows": rows}
    write(out, "bench_metrics", "Metrics against pycocoevalcap", goals, [table])


if __name__ == "__main__":
    main()
