"""The paper's claim on real sentences with the bundled models, computed on the spot."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from . import compat, figures, paper, report
from .environment import describe
from .eoc import EnsembleOfConditionals, EnsembleResult, last_word_items
from .evaluator import ConsistencyEvaluator, EvaluatorConfig
from .files import write_json
from .metrics import pair_metrics
from .mini import held_out_sentences
from .probes import Vocabulary
from .result import ConsistencyReport, column
from .scorers import InfillScorer, Request, TableScorer, load_infill
from .stats import bootstrap
from .tables import PairTable

PAIRS, TOP, ITEMS, BIGRAMS = 120, 20, 300, 200
PATTERNS = "baseline,offset:1-6,span:3x5x1,span:3x5x2,span:3x10x1"


def control(seed: int = 0) -> dict[str, float]:
    """Run the whole path on a model that has a joint: every number must be zero."""
    from .planner import Planner

    rng = np.random.default_rng(seed)
    scorer = TableScorer(rng.normal(size=(6, 6, 6)))
    planner, mask, values = Planner(scorer), scorer.mask_id, tuple(range(6))
    worst = {"gamma": 0.0, "path": 0.0, "marginal": 0.0}
    for i, j in itertools.combinations(range(3), 2):
        base = [int(v) for v in rng.integers(0, 6, 3)]

        def ids(changes: dict[int, int], base: list[int] = base) -> tuple[int, ...]:
            return tuple(changes.get(n, v) for n, v in enumerate(base))

        both = ids({i: mask, j: mask})
        requests = [Request(both, i, values), Request(both, j, values)]
        requests += [Request(ids({i: mask, j: b}), i, values) for b in values]
        requests += [Request(ids({i: a, j: mask}), j, values) for a in values]
        scores = [s.log_p for s in planner.score(requests)]
        table = PairTable(np.stack(scores[2:8], 1), np.stack(scores[8:]), scores[0], scores[1],
                          gold=(base[i], base[j]))  # fmt: skip
        found = pair_metrics(table, quality=False)
        worst["gamma"] = max(worst["gamma"], abs(compat.worst_quadruple(table).gap))
        worst["path"] = max(worst["path"], found["p_path_median"], abs(found["p_path_gold"]))
        worst["marginal"] = max(worst["marginal"], found["m_tv_i"], found["m_tv_j"])
    return worst


def order_summary(rows: list[dict[str, Any]]) -> paper.OrderSummary:
    """Order test of the measured pairs."""
    path = column(rows, "p_path_gold")
    zero = np.zeros(len(path))
    return paper.order_test(path, zero, zero, zero, log=True)


def bigram_test(
    scorer: InfillScorer, tokenizer: Any, sentences: list[str], pairs: int, seed: int
) -> paper.BigramTest:
    """Bigram test with the model's own most probable other word as the alternative."""
    vocabulary = Vocabulary(tokenizer)
    rng = np.random.default_rng(seed)
    ids_of, encoders = [], []
    places: list[int] = []
    for line in rng.permutation(len(sentences)):
        if len(places) == pairs:
            break
        ids = tokenizer(sentences[line], add_special_tokens=False)["input_ids"]
        good = [
            at for at in range(len(ids) - 1)
            if vocabulary.whole_word(ids, at) and vocabulary.whole_word(ids, at + 1)
            and not vocabulary.common[ids[at]] and len(ids) <= 60
        ]  # fmt: skip
        if good:
            at = int(rng.choice(good))
            ids_of.append(ids)
            places.append(at)
            encoders.append(scorer.pattern(ids, [(at, at + 1)])[0])
    wanted = []
    for n, options in enumerate(scorer.first_tokens(encoders, 24)):
        at = places[n]
        others = [int(t) for t in options if t < len(vocabulary.tokens) and vocabulary.content[t]
                  and t != ids_of[n][at]]  # fmt: skip
        if others:
            wanted.append((n, at, others[0]))
    return paper.t5_bigram_test(scorer, ids_of, wanted)


def _claims(
    found: ConsistencyReport,
    order: paper.OrderSummary,
    bigram: paper.BigramTest,
    ensemble: EnsembleResult,
    zero: dict[str, float],
    command: str,
) -> list[dict[str, Any]]:
    gamma, floor = found.summary["gamma"], found.floor
    joints = found.summary["joints"]
    low, high = gamma["median_interval"]
    path_low, path_high = found.summary["path"]["median_interval"]
    names = ("ag", "mlm", "hcb", "mrf_local")
    nll = [joints[m]["u_nll"]["mean"] for m in names]
    ordered = all(x < y for x, y in itertools.pairwise(nll))
    base, ensembled = ensemble.accuracy("baseline"), ensemble.accuracy("max")
    single = ensemble.best_single()
    best = 100 * ensemble.accuracy(single).estimate
    gain = bootstrap(ensemble.correct("max").astype(float) - ensemble.correct("baseline"), np.mean)
    bert = f"mini-BERT, {len(found.rows)} pairs of held-out verses, {TOP} candidates; {command}"
    t5 = f"mini-T5, {len(ensemble.answers)} verses, last word of 4; {command}"
    authors = paper.AUTHORS_ORDER_TEST["bert-base"]
    t5_base = paper.AUTHORS_BIGRAM_TEST["t5-base"]
    large = paper.AUTHORS_BIGRAM_TEST["t5-large"]
    return [
        {
            "name": "The conditionals of a masked language model do not come from one joint:"
            " gaps above the noise floor",
            "paper": None,
            "measured": f"{100 * gamma['share_above_floor']:.1f}",
            "unit": "% of the pairs",
            "met": gamma["share_above_floor"] > 0.95,
            "how": f"|Γ| above {floor['gamma_p95']:.1e} nats, the 95 % quantile of the change under"
            f" {floor['how']}; {bert}",
        },
        {
            "name": "Size of the violation: median |Γ| of the gold quadruple",
            "paper": None,
            "measured": f"{gamma['median']:.3f} [{low:.3f}, {high:.3f}]",
            "unit": "nats",
            "met": low > 10 * floor["gamma_p95"],
            "how": f"zero exactly when a joint exists; met when far above the floor; {bert}",
        },
        {
            "name": "Order of filling two masks matters: median |log J1/J2|",
            "paper": authors["log_median"],
            "measured": f"{order.log_median:.3f} [{path_low:.3f}, {path_high:.3f}]",
            "unit": "nats",
            "met": 0.5 <= order.log_median <= 0.8,
            "how": f"paper: bert-base on 10,000 sentences, from the authors' files; met within 0.5"
            f" to 0.8; {bert}",
        },
        {
            "name": "Relative difference of both orders, median",
            "paper": authors["relative_median"],
            "measured": round(order.relative_median, 3),
            "unit": "",
            "met": abs(order.relative_median - authors["relative_median"]) <= 0.15,
            "how": f"met within 0.15; {bert}",
        },
        {
            "name": "T5: two-token span against one-token span, median |Δ| of log-ratios",
            "paper": t5_base["median"],
            "measured": f"{bigram.tokens_only.median:.3f} (with the closing sentinel"
            f" {bigram.with_sentinel.median:.3f})",
            "unit": "nats",
            "met": 0.5 <= bigram.tokens_only.median / t5_base["median"] <= 2,
            "how": f"paper: t5-base on C4 (t5-large {large['median']}); met within half to twice"
            f" its figure; mini-T5, {bigram.tokens_only.n} pairs, the alternative is the model's"
            f" own most probable other word; {command}",
        },
        {
            "name": "T5: spans and single masks prefer different words",
            "paper": round(100 * t5_base["disagreement"], 1),
            "measured": round(100 * bigram.tokens_only.disagreement, 1),
            "unit": "%",
            "met": 0.5 <= bigram.tokens_only.disagreement / t5_base["disagreement"] <= 2,
            "how": f"signs of log-ratios differ; met within half to twice the paper's figure;"
            f" mini-T5, {bigram.tokens_only.n} pairs; {command}",
        },
        {
            "name": "Unary NLL of joints: Arnold-Gokhale < MLM itself < HCB < local MRF",
            "paper": "this order (ACL 2023)",
            "measured": " / ".join(f"{v:.3f}" for v in nll),
            "unit": "nats per token",
            "met": ordered,
            "how": f"{bert}; with p-values on more pairs in benchmarks/bench_reproduction.py",
        },
        {
            "name": "Patterns of one conditional disagree on the answer",
            "paper": "41.08 (UL2-20B, LAMBADA, 10 conditionals)",
            "measured": round(100 * ensemble.disagreement(), 1),
            "unit": "%",
            "met": ensemble.disagreement() > 0.05,
            "how": f"{len(ensemble.patterns)} patterns; {t5}",
        },
        {
            "name": "Ensemble of conditionals (max) against the baseline: accuracy",
            "paper": "71.42 to 74.04 (UL2-20B, LAMBADA)",
            "measured": f"{100 * base.estimate:.1f} to {100 * ensembled.estimate:.1f}, difference"
            f" [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
            f" (best single pattern, {single}: {best:.1f})",
            "unit": "%",
            "met": gain.estimate > 0,
            "how": f"95 % bootstrap interval of the paired difference; {t5}",
        },
        {
            "name": "Control: the same code on a model that has a joint (largest gap of any level)",
            "paper": 0,
            "measured": f"{max(zero.values()):.1e}",
            "unit": "nats",
            "met": max(zero.values()) < 1e-10,
            "how": f"exact masked predictor of a random joint of three positions; {command}",
        },
    ]


def run_demo(
    out: str | Path, seed: int = 0, say: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """Measure both miniatures; write result.json, report.html and figures.

    Parameters
    ----------
    out : folder
    seed : choice of sentences and pairs
    say : callable, optional
        Receives status lines.

    Returns
    -------
    dict
        Content of result.json.
    """
    import torch

    say = say or (lambda text: None)
    out = Path(out)
    start = time.perf_counter()
    sentences = held_out_sentences()
    say("control: a model that has a joint")
    zero = control(seed)
    say("mini-BERT")
    evaluator = ConsistencyEvaluator(
        "mini-bert", config=EvaluatorConfig(TOP, floor_pairs=16, seed=seed), progress=say
    )
    found = evaluator.measure(sentences, PAIRS)
    order = order_summary(found.rows)
    say("mini-T5: bigrams")
    scorer, tokenizer = load_infill("mini-t5")
    bigram = bigram_test(scorer, tokenizer, sentences, BIGRAMS, seed)
    say("mini-T5: ensemble")
    items = last_word_items(sentences, tokenizer, seed=seed)
    chosen = np.random.default_rng(seed).permutation(len(items))[:ITEMS]
    ensemble = EnsembleOfConditionals(scorer, PATTERNS, tokenizer=tokenizer).evaluate(
        [items[n] for n in sorted(chosen)], lambda done, total: say(f"item {done} of {total}")
    )
    curves = {pool: ensemble.curve(pool, 60, seed) for pool in ("max", "avg", "arith")}
    claims = _claims(found, order, bigram, ensemble, zero,
                     f"mlm-consistency demo --out DIR --seed {seed}")  # fmt: skip
    worst = next(t for t in found.tables if t.info["id"] == found.worst(1)[0]["id"])
    drawings = {
        "gaps.png": ("Gaps and their noise floor", figures.gap_histogram(found),
                     "Left of the grey band nothing could be told from rounding."),
        "joints.png": ("Quality of joints", figures.joint_bars(found),
                       "Mean with 95 % bootstrap interval, lower is better; not from zero."),
        "authors.png": ("Order test beside the authors' figures", figures.against_authors(
            asdict(order), paper.AUTHORS_ORDER_TEST),
            "bert-base and bert-large: recomputed from the authors' files, 10,000 sentences."),
        "ensemble.png": ("Ensemble of conditionals", figures.eoc_curves(
            curves, paper.AUTHORS_EOC_LAMBADA),
            "Averages over subsets that hold the baseline; other task and model than the paper's."),
        "heatmap.png": ("Where the worst pair contradicts itself", figures.token_heatmap(worst),
                        worst.text),
        "levels.png": ("Unary and path level", figures.path_scatter(found), "One point per pair."),
    }  # fmt: skip
    for name, (_, figure, _) in drawings.items():
        figures.save(figure, out / name)
    result = {
        "schema_version": 1,
        "package": "mlm_consistency",
        "version": version("mlm-consistency"),
        "seed": seed,
        "claims": claims,
        "figures": [{"path": name, "title": title} for name, (title, _, _) in drawings.items()],
        "seconds": round(time.perf_counter() - start, 1),
        "environment": describe(torch.get_num_threads()),
    }
    write_json(out / "result.json", result)
    table = {
        "title": "Ensemble: patterns and pools",
        "columns": ["name", "accuracy", "low", "high", "McNemar p"],
        "rows": [[report.number(v) for v in row.values()] for row in ensemble.table()],
    }
    report.render(
        out / "report.html",
        "Is there a joint distribution behind a masked language model?",
        [
            "A masked language model answers many questions about one sentence, one per masking"
            " pattern. If a joint distribution stood behind it, the answers would fit together:"
            " every quadruple of unary conditionals would have Γ = 0, both orders of filling two"
            " masks would agree, and every masking pattern would name the same last word.",
            "Two miniatures with about a million parameters each, trained on the King James Bible,"
            " are asked about verses of chapters that they have not seen.",
        ],
        [(title, name, caption) for name, (title, _, caption) in drawings.items()],
        [report.summary_table(found), table],
        claims,
        found.worst(5),
    )
    return result
