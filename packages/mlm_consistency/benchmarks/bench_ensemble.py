"""Ensembles of conditionals of the bundled T5-style model on words of unseen sentences.

One item a sentence: held-out verses and, with --lambada, LAMBADA's passages. Pool and weights are
chosen on three tenths of the items; the figures are of the others.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from _common import goal, options, table, write
from mlm_consistency import EnsembleOfConditionals, held_out_sentences, last_word_items, load_infill
from mlm_consistency.eoc import LAMBADA_PATTERNS, EnsembleResult
from mlm_consistency.pooling import FITTED, POOLS, fit_weights
from mlm_consistency.stats import bootstrap, mcnemar, paired_bootstrap

LONGEST = 48  # tokens of a prompt: the model knows sentences of up to 62
CHOICE = ("avg", "arith", "fitted", "signed")


def part(results: list[EnsembleResult], chosen: list[np.ndarray]) -> EnsembleResult:
    """Join some items of several results."""
    return EnsembleResult(
        results[0].patterns,
        np.concatenate([r.scores[c] for r, c in zip(results, chosen)]),
        np.concatenate([r.answers[c] for r, c in zip(results, chosen)]),
    )


def main() -> None:
    arguments = options(
        "bench_ensemble",
        __doc__,
        lambada={"type": Path, "default": None, "help": "LAMBADA as JSON lines with a text each"},
    )
    torch.set_num_threads(1)
    scorer, tokenizer = load_infill("mini-t5")
    sources = {"held-out verses": list(dict.fromkeys(held_out_sentences()))}
    if arguments.lambada:
        lines = arguments.lambada.read_text(encoding="utf-8").splitlines()
        sources["LAMBADA"] = list(dict.fromkeys(json.loads(line)["text"] for line in lines))
    ensemble = EnsembleOfConditionals(scorer, LAMBADA_PATTERNS, tokenizer=tokenizer)
    results, dev, test = [], [], []
    for sentences in sources.values():
        items = last_word_items(sentences, tokenizer, anywhere=True, longest=LONGEST)
        results.append(ensemble.evaluate(items[:150] if arguments.quick else items))
        order = np.random.default_rng(0).permutation(len(results[-1].answers))
        cut = int(0.3 * len(order))
        dev.append(order[:cut])
        test.append(order[cut:])
    tuning, judged = part(results, dev), part(results, test)
    best = max(CHOICE, key=lambda name: float(tuning.correct(name).mean()))
    weights = {n: fit_weights(tuning.scores, tuning.answers, signed=s) for n, s in FITTED.items()}

    def right(found: EnsembleResult, name: str) -> np.ndarray:
        """Whether each item is answered right; fitted weights are those of the tuning items."""
        if name in FITTED:
            pooled = np.einsum("m,nmc->nc", weights[name], found.scores)
            return np.asarray(pooled.argmax(axis=1) == found.answers)
        return found.correct(name)

    single = judged.best_single()  # on the judged items themselves: a peer that cannot be beaten
    accuracy = {n: 100 * float(right(judged, n).mean()) for n in (best, "max", single)}
    tests = {
        name: paired_bootstrap(right(judged, best).astype(float), right(judged, name).astype(float))
        for name in ("max", single)
    }
    met = all(t.difference.low > 0 for t in tests.values())
    words = "; ".join(
        f"over {name} ({accuracy[name]:.1f} %): {100 * t.difference.estimate:+.1f}"
        f" [{100 * t.difference.low:.1f}, {100 * t.difference.high:.1f}] points,"
        f" McNemar p = {mcnemar(right(judged, best), right(judged, name)):.2g}"
        for name, t in tests.items()
    )
    tried = ", ".join(f"{n} {100 * float(tuning.correct(n).mean()):.1f} %" for n in CHOICE)
    goals = [
        goal(
            "a pool that beats the paper's max and the best single pattern,"
            f" {len(judged.answers)} sentences with one item each",
            "both intervals exclude zero, 2000 items",
            f"{best} {accuracy[best]:.1f} %: {words}; chosen on {len(tuning.answers)} other"
            f" sentences (there, cross-fitted: {tried})",
            met and len(judged.answers) >= 2000,
        )
    ]
    rows = []
    for name in [*judged.patterns, "max", *CHOICE]:
        row: list = [name]
        for found in (judged, *(part([r], [c]) for r, c in zip(results, test))):
            interval = bootstrap(right(found, name).astype(float), np.mean)
            row += [interval.estimate, f"{interval.low:.3f} to {interval.high:.3f}"]
        rows.append(row)
    head = [f"{n}{x}" for n in ("all", *sources) for x in ("", ", interval")]
    curves = {pool: judged.curve(pool, 60) for pool in ("max", "avg")}
    assert set(CHOICE) - set(FITTED) <= set(POOLS)
    write(
        arguments.out,
        "bench_ensemble",
        "Ensembles of conditionals of the T5-style miniature",
        goals,
        [
            table("Accuracy of patterns and pools", ["name", *head], rows),
            table(
                "Weights, fitted on the tuning sentences",
                ["pattern", *FITTED],
                [[p, *(float(weights[n][k]) for n in FITTED)]
                 for k, p in enumerate(judged.patterns)],
            ),
            table(
                "By number of conditionals",
                ["n", "max accuracy", "average accuracy", "disagreement"],
                [
                    [a["n"], a["accuracy"], b["accuracy"], a["disagreement"]]
                    for a, b in zip(curves["max"], curves["avg"])
                ],
            ),
        ],
        arguments=f" --lambada {arguments.lambada.name}" if arguments.lambada else "",
    )  # fmt: skip


if __name__ == "__main__":
    main()
