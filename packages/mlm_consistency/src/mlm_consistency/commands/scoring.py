"""Ensembles of conditionals on a task, pseudo-log-likelihood of a file."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError, require
from .common import Json, print_json, show_table, status_line


def eoc(
    model: str,
    task: Path,
    /,
    *,
    patterns: str = "baseline,offset:1-6,span:3x5x1,span:3x5x2,span:3x10x1",
    pool: str = "max,avg,arith,fitted",
    out: Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: Json = False,
) -> None:
    """Ensemble of conditionals on a multiple-choice task.

    Example: `mlm-consistency eoc mini-t5 task.jsonl --patterns offset:1-6 --pool max,geo`

    Parameters
    ----------
    model
        mini-t5, a folder or a Hugging Face id of a T5, UL2 or BART model.
    task
        JSON lines: {"context": "...", "completions": ["...", "..."], "answer": 0}.
    patterns
        Of baseline, offset:K, offset:K1-K2, span:LxGxN.
    pool
        Of max (the paper's), avg, geo, arith, ag; fitted (weights fitted on the other folds) and
        signed (the same, weights of any sign).
    out
        Folder for eoc.json and report.html.
    dtype, device
        Precision and device.
    json
        Print JSON.
    """
    from ..eoc import EnsembleOfConditionals, read_items
    from ..files import write_json
    from ..pooling import FITTED, POOLS
    from ..report import ensemble_page
    from ..scorers import load_infill

    pools = [p.strip() for p in pool.split(",") if p.strip()]
    for name in pools:
        require(name in (*POOLS, *FITTED), "pool", name, f"of {', '.join([*POOLS, *FITTED])}")
    items = read_items(task)
    scorer, tokenizer = load_infill(model, dtype, device)
    ensemble = EnsembleOfConditionals(scorer, patterns, tokenizer=tokenizer)
    say = status_line()
    result = ensemble.evaluate(items, lambda done, total: say(f"item {done} of {total}"))
    if set(pools) & set(FITTED) and len(result.answers) < 5:
        raise InputError(f"pool = {pool!r}: fitted ones are allowed with 5 or more items, task has"
                         f" {len(items)}")  # fmt: skip
    rows = result.table(pools)
    curves = {p: result.curve(p, 100) for p in pools if p in ("max", "avg", "geo")}
    curves = curves or {"max": result.curve("max", 100)}
    summary = {
        "schema_version": 1, "model": model, "items": len(result.answers),
        "skipped_too_short": result.skipped, "disagreement": result.disagreement(),
        "rows": rows, "curves": curves,
    }  # fmt: skip
    if out:
        write_json(out / "eoc.json", summary)
        intro = (
            f"{model}: {len(result.answers)} items, {result.skipped} too short for a pattern;"
            f" the patterns disagree on {100 * result.disagreement():.1f} % of them."
        )
        ensemble_page(rows, curves, out / "report.html", [intro])
    if json:
        print_json(summary)
    else:
        show_table(
            f"{len(result.answers)} items, disagreement {result.disagreement():.3f}",
            ["name", "accuracy", "low", "high", "McNemar p"],
            [list(r.values()) for r in rows],
        )
        if out:
            print(f"wrote {out / 'report.html'}")


def score(
    model: str,
    file: Path,
    /,
    *,
    pll: str = "original",
    out: Path | None = None,
    page: Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    budget_mib: int = 256,
    json: Json = False,
) -> None:
    """Pseudo-log-likelihood of every line of a file.

    Example: `mlm-consistency score mini-bert verses.txt --pll within_word_l2r`

    Parameters
    ----------
    model
        mini-bert, a folder or a Hugging Face id.
    file
        One sentence a line.
    pll
        `original` or `within_word_l2r`.
    out
        CSV file.
    page
        Page (html).
    dtype, device
        Precision and device.
    budget_mib
        Memory of one batch.
    json
        Print JSON.
    """
    import csv
    import io

    from ..files import write_text
    from ..mini_data import read_lines
    from ..planner import Planner
    from ..pll import METRICS, pseudo_log_likelihood
    from ..report import score_page
    from ..scorers import load

    require(pll in METRICS, "pll", pll, f"one of {', '.join(METRICS)}")
    lines = read_lines(file, "file")
    scorer, tokenizer = load(model, dtype, device)
    found = pseudo_log_likelihood(lines, Planner(scorer, budget_mib * 2**20), tokenizer, pll)
    rows = [[s.total, s.per_token, len(s.tokens), s.text] for s in found]
    if out:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["pll", "per_token", "tokens", "text"])
        writer.writerows(rows)
        write_text(out, buffer.getvalue())
    if page:
        tokens = sum(len(s.tokens) for s in found)
        words = f"{model}: {len(found)} texts, {tokens} tokens, metric {pll}."
        score_page(found, page, [words])
    if json:
        print_json([{"text": s.text, "pll": s.total, "tokens": list(s.tokens),
                      "log_p": s.log_p.tolist()} for s in found])  # fmt: skip
    elif not out and not page:
        for total, _, _, text in rows:
            print(f"{total:.4f}\t{text}")
    else:
        for path in filter(None, (out, page)):
            print(f"wrote {path}")
