"""Command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from .errors import InputError, VerdictError, require

app = cyclopts.App(
    name="mlm-consistency",
    version=version("mlm-consistency"),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    help="""Is there a joint distribution behind a masked language model, and how far is it away?

    Examples:

    - `mlm-consistency demo --out out/`
    - `mlm-consistency measure mini-bert verses.txt --pairs 200 --out run/`
    - `mlm-consistency pair mini-bert "and the [1] of the [2] came ." --top 8`
    - `mlm-consistency eoc mini-t5 task.jsonl --patterns baseline,offset:1-6,span:3x5x1`
    - `mlm-consistency compare runA runB --fail-if "gamma.median>+5%"`

    MODEL is `mini-bert` or `mini-t5` (they ship with the package), a folder, or a Hugging Face id.

    Exit codes: 0 success, 2 bad input, 3 the computation says no (a gate failed, not converged),
    130 Ctrl-C.
    """,
)
Json = Annotated[bool, Parameter(name="--json", negative="")]
Names = Annotated[list[str] | None, Parameter(name="--fail-if", negative="")]


def _say() -> Callable[[str], None]:
    """Status on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda text: None
    return lambda text: console.print(f"[dim]{text}[/dim]", end="\r", soft_wrap=True)


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name.replace("_", " "), justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{v:.5g}" if isinstance(v, float) else str(v) for v in row))
    Console().print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _texts(corpus: str) -> list[str]:
    """Lines of a file, or the bundled held-out verses under the name `held-out`."""
    from .mini import held_out_sentences
    from .mini_data import read_lines

    return held_out_sentences() if corpus == "held-out" else read_lines(corpus)


def _evaluator(
    model: str, top: int, candidates: str, seed: int, cache: Path | None, budget_mib: int,
    dtype: str, device: str, floor: int = 24,
) -> Any:  # fmt: skip
    from .evaluator import ConsistencyEvaluator, EvaluatorConfig
    from .scorers import load

    require(budget_mib >= 1, "budget_mib", budget_mib, "at least 1")
    scorer, tokenizer = load(model, dtype, device)
    config = EvaluatorConfig(top, candidates, floor, seed)
    found = ConsistencyEvaluator(scorer, tokenizer, config, cache, budget_mib * 2**20, _say())
    found.name = model
    return found


@app.command
def measure(
    model: str,
    corpus: str,
    /,
    *,
    out: Path,
    pairs: int = 200,
    top: int = 32,
    candidates: str = "words",
    distance: int = 1,
    seed: int = 0,
    probes: Path | None = None,
    floor_pairs: int = 24,
    dtype: str = "float32",
    device: str = "cpu",
    budget_mib: int = 256,
    json: Json = False,
) -> None:
    """Measure a masked language model; write report.html, report.json, probes.parquet, probes.csv.

    An interrupted run continues from the scores in OUT/cache.

    Example: `mlm-consistency measure mini-bert held-out --pairs 100 --out run/`

    Parameters
    ----------
    model
        mini-bert, a folder or a Hugging Face id.
    corpus
        Text file, one sentence a line; `held-out` for the verses that ship with the package.
    out
        Folder.
    pairs
        Probes: pairs of content words.
    top
        Candidates per position.
    candidates
        `words` (whole words) or `all` tokens.
    distance
        Tokens between the two positions; 1 for neighbours.
    seed
        Choice of sentences and pairs.
    probes
        File written by `probe`, in place of the corpus's own choice.
    floor_pairs
        Probes that are scored again in float64 for the noise floor.
    dtype, device
        Precision and device of the model.
    budget_mib
        Memory of one batch.
    json
        Print the summary as JSON.
    """
    from .probes import ProbeSet

    evaluator = _evaluator(
        model, top, candidates, seed, out / "cache", budget_mib, dtype, device, floor_pairs
    )
    found = (
        ProbeSet.load(probes)
        if probes
        else evaluator.probes(_texts(corpus), pairs, distance=distance)
    )
    report = evaluator.measure(found)
    report.save(out)
    if json:
        _print_json(report.to_json())
        return
    rows = [
        [name, entry["level"], entry.get("median", ""), entry["mean"]]
        for name, entry in report.summary.items()
        if isinstance(entry, dict) and "level" in entry
    ]
    _table(f"{model}: {len(report.rows)} probes", ["measure", "level", "median", "mean"], rows)
    print(f"wrote {out / 'report.html'}")


@app.command
def probe(
    model: str,
    corpus: str,
    /,
    *,
    out: Path,
    pairs: int = 200,
    distance: int = 1,
    per_sentence: int = 1,
    max_length: int = 128,
    seed: int = 0,
) -> None:
    """Choose probes of a corpus and write them as JSON lines, with counts of what was left out.

    Example: `mlm-consistency probe mini-bert verses.txt --pairs 500 --out probes.jsonl`

    Parameters
    ----------
    model
        Whose tokenizer is used.
    corpus
        Text file, one sentence a line, or `held-out`.
    out
        File.
    pairs, distance, per_sentence
        Probes wanted, tokens between the positions, probes per sentence.
    max_length
        Longer sentences are left out, never truncated.
    seed
        Seed.
    """
    from .probes import pair_probes
    from .scorers import load_tokenizer

    found = pair_probes(
        _texts(corpus), load_tokenizer(model), pairs, distance=distance,
        per_sentence=per_sentence, max_length=max_length, seed=seed,
    )  # fmt: skip
    require(bool(found.probes), "corpus", corpus, f"text with probes; left out: {found.skipped}")
    found.save(out)
    print(f"{len(found.probes)} probes of {found.sentences} sentences, left out: {found.skipped}")


@app.command
def pair(
    model: str,
    text: str,
    /,
    *,
    top: int = 16,
    joint: str = "ag",
    words: str = "",
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Examine one pair of positions: verdict, worst quadruple, a joint.

    Example: `mlm-consistency pair mini-bert "and the [1] of the [2] came ." --joint ag --top 8`

    Parameters
    ----------
    model
        mini-bert, a folder or a Hugging Face id.
    text
        Sentence with [1] and [2] in place of two tokens.
    top
        Candidates per position.
    joint
        ag, hodge, hcb, mrf, mrf_local, naive, chain_ij, chain_ji or umr.
    words
        Candidates in place of the model's own: `word,word/word,word`; each must be one token.
    out
        Page (html).
    json
        Print JSON.
    """
    from . import compat, figures, gibbs, joints
    from .evaluator import ConsistencyEvaluator
    from .report import render

    require(joint in joints.METHODS, "joint", joint, f"one of {', '.join(joints.METHODS)}")
    sets = None
    if words:
        sides = [[w.strip() for w in side.split(",") if w.strip()] for side in words.split("/")]
        require(len(sides) == 2 and min(map(len, sides)) >= 2, "words", words,
                "two lists of two or more words, as lord,king/land,city")  # fmt: skip
        sets = (sides[0], sides[1])
    table = ConsistencyEvaluator(model, progress=_say()).pair(text, top_k=top, words=sets)
    verdict = compat.test(table)
    made = joints.METHODS[joint](table)
    tv = gibbs.scan_orders(table).tv
    frame = made.to_frame().head(10)
    if out:
        render(out, text, [f"{verdict.certificate.describe(table)}; Gibbs scan orders differ by a"
                           f" total variation of {tv:.4g}."],
               [("Curl by candidate", figures.token_heatmap(table), "Zero where consistent.")],
               [{"title": f"Joint: {joint}", "columns": ["[1]", "[2]", "probability"],
                 "rows": frame.values.tolist()}])  # fmt: skip
    if json:
        _print_json(
            {
                "verdict": verdict.to_json(),
                "certificate": verdict.certificate.describe(table),
                "gibbs_tv": tv,
                "joint": {"method": made.method,
                          "gap": None if made.gap != made.gap else made.gap,
                          "cells": frame.values.tolist()},
            }
        )  # fmt: skip
        return
    print(f"compatible: {'yes' if verdict else 'no'}; worst {verdict.certificate.describe(table)}")
    print(f"Gibbs scan orders: total variation {tv:.4g}")
    _table(repr(made), ["[1]", "[2]", "probability"], frame.values.tolist())


@app.command
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
        Of max (the paper's), avg, geo, arith, ag, fitted (weights fitted on the other folds).
    out
        Folder for eoc.json and report.html.
    dtype, device
        Precision and device.
    json
        Print JSON.
    """
    from .eoc import EnsembleOfConditionals, read_items
    from .files import write_json
    from .pooling import POOLS
    from .report import ensemble_page
    from .scorers import load_infill

    pools = [p.strip() for p in pool.split(",") if p.strip()]
    for name in pools:
        require(name in (*POOLS, "fitted"), "pool", name, f"of {', '.join([*POOLS, 'fitted'])}")
    items = read_items(task)
    scorer, tokenizer = load_infill(model, dtype, device)
    ensemble = EnsembleOfConditionals(scorer, patterns, tokenizer=tokenizer)
    say = _say()
    result = ensemble.evaluate(items, lambda done, total: say(f"item {done} of {total}"))
    if "fitted" in pools and len(result.answers) < 5:
        raise InputError(f"pool = 'fitted': allowed with 5 or more items, task has {len(items)}")
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
        _print_json(summary)
    else:
        _table(
            f"{len(result.answers)} items, disagreement {result.disagreement():.3f}",
            ["name", "accuracy", "low", "high", "McNemar p"],
            [list(r.values()) for r in rows],
        )


@app.command
def score(
    model: str,
    file: Path,
    /,
    *,
    pll: str = "original",
    out: Path | None = None,
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
    dtype, device
        Precision and device.
    budget_mib
        Memory of one batch.
    json
        Print JSON.
    """
    import csv
    import io

    from .files import write_text
    from .mini_data import read_lines
    from .planner import Planner
    from .pll import METRICS, pseudo_log_likelihood
    from .scorers import load

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
    if json:
        _print_json([{"text": s.text, "pll": s.total, "tokens": list(s.tokens),
                      "log_p": s.log_p.tolist()} for s in found])  # fmt: skip
    elif not out:
        for total, _, _, text in rows:
            print(f"{total:.4f}\t{text}")


@app.command
def compare(
    a: Path, b: Path, /, *, fail_if: Names = None, out: Path | None = None, json: Json = False
) -> None:
    """Is run B more consistent than run A? Exit code 3 when a gate fails.

    Example: `mlm-consistency compare runA runB --fail-if "gamma.median>+5%"`

    Parameters
    ----------
    a, b
        Folders written by `measure`, best with the same probes.
    fail_if
        MEASURE.STATISTIC>NUMBER[%]; with % the change of B against A, without the value of B.
    out
        Page (html).
    json
        Print JSON.
    """
    from .report import comparison_page
    from .result import ConsistencyReport
    from .result import compare as run_compare

    result = run_compare(ConsistencyReport.load(a), ConsistencyReport.load(b), fail_if or [])
    if out:
        comparison_page(result, out)
    if json:
        _print_json(result)
    else:
        rows = [
            [r["measure"], r["level"], r["a"], r["b"], r["change_percent"] or 0.0,
             r.get("p_b_smaller", "")]
            for r in result["rows"]
        ]  # fmt: skip
        head = ["measure", "level", "median A", "median B", "change %", "p (B smaller)"]
        _table(f"{result['paired']} common probes", head, rows)
    if result["failed"]:
        raise VerdictError(f"gate failed: {'; '.join(result['failed'])}")


@app.command
def report(run: Path, /, *, out: Path | None = None) -> None:
    """Make the page of a finished measurement again.

    Parameters
    ----------
    run
        Folder written by `measure`.
    out
        Page; RUN/report.html by default.
    """
    from .report import measurement_page
    from .result import ConsistencyReport

    print(measurement_page(ConsistencyReport.load(run), out or run / "report.html"))


@app.command(name="train-mini")
def train_mini(
    kind: str,
    /,
    *,
    corpus: Path,
    out: Path,
    steps: int | None = None,
    tokenizer: str = "bundled",
    seed: int = 0,
    threads: int = 1,
    json: Json = False,
) -> None:
    """Train a miniature as the bundled ones were; an interrupted training continues.

    The corpus of the bundled weights is the King James Bible, one verse a line. Debian's package
    bible-kjv-text carries it: `apt-get install bible-kjv`, then
    `bible -f gen1:1-rev22:21 > kjv.txt`.

    Example: `mlm-consistency train-mini bert --corpus kjv.txt --out mini/`

    Parameters
    ----------
    kind
        `bert` or `t5`.
    corpus
        Text, one sentence a line.
    out
        Folder for weights (fp16), tokenizer and manifest.
    steps
        Optimiser steps; those of the bundled weights by default.
    tokenizer
        `bundled`, `new` (trained on the corpus) or a tokenizer.json.
    seed
        Seed; with one thread the same seed gives the same bytes on one machine.
    threads
        Threads of torch.
    json
        Print the manifest.
    """
    import torch

    from . import mini

    require(kind in ("bert", "t5"), "kind", kind, "'bert' or 't5'")
    require(threads >= 1, "threads", threads, "at least 1")
    changes: dict[str, Any] = {"seed": seed}
    if steps is not None:
        changes |= {"steps": steps, "warmup": min(100, max(1, steps // 10))}
    config = mini.bert_config(**changes) if kind == "bert" else mini.t5_config(**changes)
    torch.set_num_threads(threads)
    say = _say()
    given: Path | None = None if tokenizer == "new" else Path(tokenizer)
    if tokenizer == "bundled":
        given = mini.bundled(f"mini-{kind}") / "tokenizer.json"
    manifest = mini.train(
        corpus,
        out,
        config,
        lambda step, loss: say(f"step {step} of {config.steps}, {loss:.3f}"),
        tokenizer=given,
    )
    if json:
        _print_json(manifest)
    else:
        print(f"held-out loss {manifest['held_out_loss']}, weights in {out}")


zoo_app = cyclopts.App(
    name="zoo",
    help="""Real masked models inside PyPI wheels.

    Examples:

    - `pip download --no-deps sapiens==1.0.3`
    - `mlm-consistency zoo convert sapiens-1.0.3-py3-none-any.whl --out sapiens-h/`
    - `mlm-consistency score ./sapiens-h sequences.txt`
    """,
)
app.command(zoo_app)


@zoo_app.command(name="convert")
def zoo_convert(wheel: Path, /, *, out: Path, chain: str = "H") -> None:
    """Convert the model in a wheel to a Hugging Face folder; nothing of the wheel is installed.

    Parameters
    ----------
    wheel
        sapiens-1.0.3 or antiberty-0.1.3.
    out
        Folder.
    chain
        `H` or `L` (Sapiens).
    """
    from .zoo import convert

    manifest = convert(wheel, out, chain)
    print(f"{manifest['model']}: {manifest['parameters']} parameters in {out}")


@app.command
def doctor(*, json: Json = False) -> None:
    """Check the installation: bundled models, their checksums, exactness on a known joint.

    Parameters
    ----------
    json
        Print JSON.
    """
    from .doctor import run_checks

    checks = run_checks()
    if json:
        _print_json(checks)
    else:
        _table("doctor", ["check", "found", "good"],
               [[c["name"], c["found"], "yes" if c["good"] else "NO"] for c in checks])  # fmt: skip
    bad = [c["name"] for c in checks if not c["good"]]
    if bad:
        raise VerdictError(f"doctor: {', '.join(bad)}")


@app.command
def demo(*, out: Path, seed: int = 0) -> None:
    """Show the paper's claim with the bundled models on real sentences.

    Example: `mlm-consistency demo --out out/`

    Parameters
    ----------
    out
        Folder for result.json, report.html and the figures.
    seed
        Choice of sentences, pairs and wrong answers.
    """
    from .demo import run_demo

    require(0 <= seed < 2**31, "seed", seed, "0 to 2**31 - 1")
    result = run_demo(out, seed, _say())
    rows = [[c["name"], f"{c['measured']} {c['unit']}", str(c["met"])] for c in result["claims"]]
    _table(f"demo: {result['seconds']} s", ["claim", "measured", "met"], rows)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors become one line and an exit code."""
    _quiet_transformers()
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        _fail(str(error), 2)
    except InputError as error:
        _fail(str(error), 2)
    except VerdictError as error:
        _fail(str(error), 3)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _quiet_transformers() -> None:
    """Keep transformers' progress bars and advice out of a command's output, unless asked for."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _fail(text: str, code: int) -> None:
    print(f"mlm-consistency: {' '.join(text.split())}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
