"""Figures of the bundled BERT-style model: gaps, joints, ensembles for BERT-style models."""

from __future__ import annotations

import numpy as np
from _common import goal, options, table, write
from mlm_consistency import ConsistencyEvaluator, EvaluatorConfig, held_out_sentences, stats
from mlm_consistency.masked_ensemble import MEMBERS as SINGLE
from mlm_consistency.masked_ensemble import ensemble_conditional, member, unary_nll
from mlm_consistency.metrics import pair_metrics
from mlm_consistency.paper import AUTHORS_ORDER_TEST
from mlm_consistency.pooling import fit_weights
from mlm_consistency.result import column
from mlm_consistency.tables import PairTable
from scipy.special import log_softmax

MEMBERS = {
    "MLM itself": ("mlm",), "Arnold-Gokhale": ("ag",), "Hodge": ("hodge",),
    "MLM + Arnold-Gokhale": ("mlm", "ag"), "MLM + flip": ("mlm", "flip"),
    "MLM + flip + Arnold-Gokhale": ("mlm", "flip", "ag"),
}  # fmt: skip


FITTED = {
    "fitted temperature, MLM alone": (("mlm",), False),
    "fitted, MLM + flip + Arnold-Gokhale + Hodge": (SINGLE, False),
    "fitted, weights of any sign": (SINGLE, True),
}


def at_gold(tables: list[PairTable], members: tuple[str, ...]) -> np.ndarray:
    """Estimates [2 tables, members, candidates] of both gold tokens' conditionals; gold first."""
    out = []
    for t in tables:
        a, b = t.gold
        found = [(member(t, 0, m)[:, b], member(t, 1, m)[a]) for m in members]
        out += [np.stack([f[axis] for f in found]) for axis in (0, 1)]
    return np.stack(out)


def fitted_nll(
    tuning: list[PairTable], judged: list[PairTable], members: tuple[str, ...], signed: bool
) -> np.ndarray:
    """Unary NLL of a log-linear pool with weights of the tuning pairs, per judged pair."""
    scores = at_gold(tuning, members)
    w = fit_weights(scores, np.zeros(len(scores), np.int64), signed=signed)
    pooled = log_softmax(np.einsum("m,nmc->nc", w, at_gold(judged, members)), axis=1)
    return -pooled[:, 0].reshape(-1, 2).mean(axis=1)


def main() -> None:
    arguments = options(
        "bench_reproduction",
        __doc__,
        pairs={"type": int, "default": 1000, "help": "pairs measured"},
        tuning={"type": int, "default": 300, "help": "other pairs, for fitted weights"},
    )
    pairs, more = (60, 40) if arguments.quick else (arguments.pairs, arguments.tuning)
    evaluator = ConsistencyEvaluator(
        "mini-bert", config=EvaluatorConfig(top_k=32, candidates="all")
    )
    probes = evaluator.probes(held_out_sentences(), pairs + more)
    whole = [t for t in evaluator.tables(probes.probes) if t.shape == (32, 32)]
    tuning, tables = whole[:more], whole[more:]
    rows = [pair_metrics(t) for t in tables]
    gamma, path = np.abs(column(rows, "u_gamma_gold")), np.abs(column(rows, "p_path_gold"))
    g, p = stats.bootstrap(gamma), stats.bootstrap(path)
    nll = {m: column(rows, f"joint_{m}_u_nll") for m in ("ag", "mlm", "hcb", "mrf_local", "naive")}
    steps = [("ag", "mlm"), ("mlm", "hcb"), ("hcb", "mrf_local")]
    tests = {s: stats.paired_bootstrap(nll[s[1]], nll[s[0]]) for s in steps}
    ordered = all(t.p_value < 0.01 for t in tests.values())
    base = nll["mlm"]
    pools = {
        name: np.asarray(
            [unary_nll(t, [ensemble_conditional(t, a, members) for a in (0, 1)]) for t in tables]
        )
        for name, members in MEMBERS.items()
    }
    pools |= {name: fitted_nll(tuning, tables, *how) for name, how in FITTED.items()}
    gains = []
    for name, values in pools.items():
        found = stats.paired_bootstrap(base, values)
        percent = 100 / base.mean()
        difference = found.difference
        gains.append([name, float(values.mean()), percent * difference.estimate,
                      percent * difference.low, percent * difference.high])  # fmt: skip
    best = max((r for r in gains[1:] if r[0] in MEMBERS), key=lambda row: row[2])
    # fitted pools against a fitted temperature: what flattening the model does is no ensemble
    alone, *others = (r for r in gains if r[0] in FITTED)
    most = min(others, key=lambda row: row[1])
    beyond = stats.paired_bootstrap(pools[alone[0]], pools[most[0]]).difference
    share = [100 * v / alone[1] for v in (beyond.estimate, beyond.low, beyond.high)]
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
             f"{best[2]:.2f} % [{best[3]:.2f}, {best[4]:.2f}] ({best[0]}); with weights fitted on"
             f" {more} other pairs {share[0]:.2f} % [{share[1]:.2f}, {share[2]:.2f}] below the"
             f" model with a fitted temperature ({most[0]}; that temperature alone:"
             f" {alone[2]:.1f} %; tried: every pool of the table)", max(best[2], share[0]) >= 2),
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
                  ["members (geometric pool, or fitted)", "unary NLL", "gain %", "low", "high"],
                  gains),
        ],
        arguments=f" --pairs {pairs} --tuning {more}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
