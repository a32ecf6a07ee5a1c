"""Figures of the bundled BERT-style model: gaps, joints, ensembles for BERT-style models."""

from __future__ import annotations

import numpy as np
from _common import goal, options, table, write
from mlm_consistency import ConsistencyEvaluator, EvaluatorConfig, held_out_sentences, stats
from mlm_consistency.masked_ensemble import ensemble_conditional, unary_nll
from mlm_consistency.metrics import pair_metrics
from mlm_consistency.paper import AUTHORS_ORDER_TEST
from mlm_consistency.result import column

MEMBERS = {
    "MLM itself": ("mlm",), "Arnold-Gokhale": ("ag",), "Hodge": ("hodge",),
    "MLM + Arnold-Gokhale": ("mlm", "ag"), "MLM + flip": ("mlm", "flip"),
    "MLM + flip + Arnold-Gokhale": ("mlm", "flip", "ag"),
}  # fmt: skip


def main() -> None:
    arguments = options("bench_reproduction", __doc__)
    pairs = 60 if arguments.quick else 300
    evaluator = ConsistencyEvaluator(
        "mini-bert", config=EvaluatorConfig(top_k=32, candidates="all")
    )
    probes = evaluator.probes(held_out_sentences(), pairs)
    tables = evaluator.tables(probes.probes)
    rows = [pair_metrics(t) for t in tables]
    gamma, path = np.abs(column(rows, "u_gamma_gold")), np.abs(column(rows, "p_path_gold"))
    g, p = stats.bootstrap(gamma), stats.bootstrap(path)
    nll = {m: column(rows, f"joint_{m}_u_nll") for m in ("ag", "mlm", "hcb", "mrf_local", "naive")}
    steps = [("ag", "mlm"), ("mlm", "hcb"), ("hcb", "mrf_local")]
    tests = {s: stats.paired_bootstrap(nll[s[1]], nll[s[0]]) for s in steps}
    ordered = all(t.p_value < 0.01 for t in tests.values())
    base = nll["mlm"]
    gains = []
    for name, members in MEMBERS.items():
        values = np.asarray(
            [unary_nll(t, [ensemble_conditional(t, a, members) for a in (0, 1)]) for t in tables]
        )
        found = stats.paired_bootstrap(base, values)
        gains.append([name, float(values.mean()), 100 * found.difference.estimate / base.mean(),
                      100 * found.difference.low / base.mean(),
                      100 * found.difference.high / base.mean()])  # fmt: skip
    best = max(gains[1:], key=lambda row: row[2])
    authors = AUTHORS_ORDER_TEST["bert-base"]
    goals = [
        goal("median |gamma| of the gold quadruple", "0.4 to 0.8 nats", f"{g}",
             0.4 <= g.estimate <= 0.8),
        goal("median |log J1/J2|", f"0.5 to 0.8 nats (bert-base: {authors['log_median']})", f"{p}",
             0.5 <= p.estimate <= 0.8),
        goal("unary NLL: Arnold-Gokhale < MLM < HCB < local MRF", "each step p < 0.01",
             "; ".join(f"{a} {nll[a].mean():.3f} < {b} {nll[b].mean():.3f}: p = {t.p_value:.2g}"
                       for (a, b), t in tests.items()), ordered),
        goal("ensemble for BERT-style models: unary NLL", "at least 2 % lower",
             f"{best[2]:.2f} % [{best[3]:.2f}, {best[4]:.2f}] ({best[0]})", best[2] >= 2,
             "" if best[2] >= 2 else "tried: every pool of the table; Bayes flips, which use the"
             " both-masked pattern, raise it"),
    ]  # fmt: skip
    write(
        arguments.out, "bench_reproduction", f"The BERT-style miniature on {len(tables)} pairs",
        goals,
        [
            table("Order test beside the authors' bert-base", ["measure", "ours", "bert-base"],
                  [["median |log J1/J2|", p.estimate, authors["log_median"]],
                   ["mean |log J1/J2|", float(path.mean()), authors["log_mean"]],
                   ["median relative difference",
                    float(np.median(column(rows, "p_relative_gold"))), authors["relative_median"]],
                   ["mean relative difference", float(column(rows, "p_relative_gold").mean()),
                    authors["relative_mean"]]]),
            table("Unary NLL of joints, nats per token", ["joint", "mean"],
                  [[m, float(v.mean())] for m, v in nll.items()]),
            table("Ensembles of conditionals",
                  ["members (geometric pool)", "unary NLL", "gain %", "low", "high"], gains),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
