"""Ensembles of conditionals of the bundled T5-style model on the last words of held-out verses."""

from __future__ import annotations

import numpy as np
from _common import goal, options, table, write
from mlm_consistency import EnsembleOfConditionals, held_out_sentences, last_word_items, load_infill
from mlm_consistency.stats import mcnemar, paired_bootstrap

PATTERNS = "baseline,offset:1-6,span:3x5x1,span:3x5x2,span:3x10x1"


def main() -> None:
    arguments = options("bench_ensemble", __doc__)
    scorer, tokenizer = load_infill("mini-t5")
    sentences = held_out_sentences()
    items = []
    for seed in range(2):  # wrong answers drawn twice: other items, the same prompts
        items += last_word_items(sentences, tokenizer, seed=seed)
    items = items[:200] if arguments.quick else items[:2000]
    result = EnsembleOfConditionals(scorer, PATTERNS, tokenizer=tokenizer).evaluate(items)
    pools = ("max", "avg", "arith", "fitted")
    rows = result.table(pools)
    accuracy = {row["name"]: row["accuracy"] for row in rows}
    single = result.best_single()
    best = max(("avg", "arith", "fitted"), key=lambda name: accuracy[name])
    right = {name: result.correct(name) for name in (best, "max", single)}
    tests = {
        name: paired_bootstrap(right[best].astype(float), right[name].astype(float))
        for name in ("max", single)
    }
    met = all(t.difference.low > 0 for t in tests.values())
    words = "; ".join(
        f"over {name} ({100 * accuracy[name]:.1f} %): {100 * t.difference.estimate:+.1f}"
        f" [{100 * t.difference.low:.1f}, {100 * t.difference.high:.1f}] points,"
        f" McNemar p = {mcnemar(right[best], right[name]):.2g}"
        for name, t in tests.items()
    )
    goals = [
        goal(f"a pool that beats the paper's max and the best single pattern, {len(items)} items",
             "both intervals exclude zero",
             f"{best} {100 * accuracy[best]:.1f} %: {words}", met,
             "" if met else "tried: average, arithmetic and cross-fitted log-linear pools of"
             " 10 patterns; the patterns share one small decoder"),
    ]  # fmt: skip
    curves = {pool: result.curve(pool, 60) for pool in ("max", "avg")}
    write(
        arguments.out, "bench_ensemble", "Ensembles of conditionals of the T5-style miniature",
        goals,
        [
            table("Patterns and pools", list(rows[0]), [list(row.values()) for row in rows]),
            table("By number of conditionals",
                  ["n", "max accuracy", "average accuracy", "disagreement"],
                  [[a["n"], a["accuracy"], b["accuracy"], a["disagreement"]]
                   for a, b in zip(curves["max"], curves["avg"])]),
        ],
    )  # fmt: skip
    assert np.isfinite(result.scores).all()


if __name__ == "__main__":
    main()
