"""Measure, choose probes, examine one pair, compare, make a page again."""

from __future__ import annotations

from pathlib import Path

from ..errors import VerdictError, require
from .common import Json, Names, evaluator_of, print_json, show_table, status_line, texts


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
    from ..probes import ProbeSet

    evaluator = evaluator_of(
        model, top, candidates, seed, out / "cache", budget_mib, dtype, device, floor_pairs
    )
    found = (
        ProbeSet.load(probes)
        if probes
        else evaluator.probes(texts(corpus), pairs, distance=distance)
    )
    report = evaluator.measure(found)
    report.save(out)
    if json:
        print_json(report.to_json())
        return
    rows = [
        [name, entry["level"], entry.get("median", ""), entry["mean"]]
        for name, entry in report.summary.items()
        if isinstance(entry, dict) and "level" in entry
    ]
    show_table(f"{model}: {len(report.rows)} probes", ["measure", "level", "median", "mean"], rows)
    print(f"wrote {out / 'report.html'}")


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
    from ..probes import pair_probes
    from ..scorers import load_tokenizer

    found = pair_probes(
        texts(corpus), load_tokenizer(model), pairs, distance=distance,
        per_sentence=per_sentence, max_length=max_length, seed=seed,
    )  # fmt: skip
    require(bool(found.probes), "corpus", corpus, f"text with probes; left out: {found.skipped}")
    found.save(out)
    print(f"{len(found.probes)} probes of {found.sentences} sentences, left out: {found.skipped}")


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
    from .. import compat, figures, gibbs, joints
    from ..evaluator import ConsistencyEvaluator
    from ..report import number, render

    require(joint in joints.METHODS, "joint", joint, f"one of {', '.join(joints.METHODS)}")
    sets = None
    if words:
        sides = [[w.strip() for w in side.split(",") if w.strip()] for side in words.split("/")]
        require(len(sides) == 2 and min(map(len, sides)) >= 2, "words", words,
                "two lists of two or more words, as lord,king/land,city")  # fmt: skip
        sets = (sides[0], sides[1])
    table = ConsistencyEvaluator(model, progress=status_line()).pair(text, top_k=top, words=sets)
    verdict = compat.test(table)
    made = joints.METHODS[joint](table)
    tv = gibbs.scan_orders(table).tv
    frame = made.to_frame().head(10)
    if out:
        render(out, text, [f"{verdict.certificate.describe(table)}; Gibbs scan orders differ by a"
                           f" total variation of {tv:.4g}."],
               [("Curl by candidate", figures.token_heatmap(table), "Zero where consistent.")],
               [{"title": f"Joint: {joint}", "columns": ["[1]", "[2]", "probability"],
                 "rows": [[a, b, number(p)] for a, b, p in frame.values.tolist()]}])  # fmt: skip
    if json:
        print_json(
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
    show_table(repr(made), ["[1]", "[2]", "probability"], frame.values.tolist())


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
    from ..report import comparison_page
    from ..result import ConsistencyReport
    from ..result import compare as run_compare

    result = run_compare(ConsistencyReport.load(a), ConsistencyReport.load(b), fail_if or [])
    if out:
        comparison_page(result, out)
    if json:
        print_json(result)
    else:
        rows = [
            [r["measure"], r["level"], r["a"], r["b"], r["change_percent"] or 0.0,
             r.get("p_b_smaller", "")]
            for r in result["rows"]
        ]  # fmt: skip
        head = ["measure", "level", "median A", "median B", "change %", "p (B smaller)"]
        show_table(f"{result['paired']} common probes", head, rows)
        if out:
            print(f"wrote {out}")
    if result["failed"]:
        raise VerdictError(f"gate failed: {'; '.join(result['failed'])}")


def report(run: Path, /, *, out: Path | None = None) -> None:
    """Make the page of a finished measurement again.

    Parameters
    ----------
    run
        Folder written by `measure`.
    out
        Page; RUN/report.html by default.
    """
    from ..report import measurement_page
    from ..result import ConsistencyReport

    print(measurement_page(ConsistencyReport.load(run), out or run / "report.html"))
