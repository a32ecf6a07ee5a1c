"""What each reward term, the language model and the judge are worth."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import PipelineConfig
from .errors import require
from .figures import intervals, save_png
from .files import write_json
from .metrics import Interval
from .pipeline import Pipeline, Say
from .report import Section, flags_of, write_report
from .summary import Arm, summarize

TERMS = ("association", "clipscore", "coverage", "repetition", "cider")


def variants(
    base: PipelineConfig, terms: Sequence[str], lms: Sequence[str], judges: Sequence[str]
) -> dict[str, tuple[PipelineConfig, str]]:
    """Return each run's settings and the last stage that it has in common with the base run.

    Raises
    ------
    InputError
        A term, language model or judge is not known, or there is nothing to compare.
    """
    found = {"everything": (base, "stage1")}
    for term in terms:
        require(term in TERMS, "grid", term, "terms of " + ", ".join(TERMS))
        found[f"no {term}"] = (base.with_(**{term: 0.0}), "stage1")
    for name in lms:
        found[f"language model {name}"] = (base.with_(language_model=name), "xe")
    for name in judges:
        found[f"judge {name}"] = (base.with_(judge=name), "")
    require(len(found) > 1, "grid", ",".join(terms), "something to leave out or to replace")
    return found


def run_ablation(
    out: Path,
    base: PipelineConfig,
    terms: Sequence[str],
    lms: Sequence[str] = (),
    judges: Sequence[str] = (),
    say: Say = lambda _: None,
) -> list[dict[str, str]]:
    """Train every variant; write ``ablation.json``, a figure and ``report.html``.

    Stages that variants have in common are trained once and taken from checkpoints, which gives
    the same weights as training them anew.

    Parameters
    ----------
    out : path
        Folder.
    base : PipelineConfig
        What is varied.
    terms : sequence of str
        Reward terms that are left out in turn.
    lms, judges : sequence of str
        Values of ``language_model`` and ``judge`` that are tried in turn.
    say : callable
        Takes progress lines.

    Returns
    -------
    list of dict
        A row for each variant.
    """
    base = base.with_(ablations=False)
    runs = variants(base, terms, lms, judges)
    arms: dict[str, Arm] = {}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        shared = Path(scratch)
        for stage in ("xe", "stage1"):
            Pipeline(base).train(stage, shared, resume=stage == "stage1", say=say)
            shutil.copy(shared / "checkpoint.pt", shared / stage)
        for name, (settings, stage) in runs.items():
            folder = shared / "run"
            folder.mkdir(exist_ok=True)
            if stage:
                shutil.copy(shared / stage, folder / "checkpoint.pt")
            result = Pipeline(settings).run(folder, resume=bool(stage), say=say)
            arm = arms[name] = summarize(result)["stage 2"]
            kept = [a for a in result.paraphrases if a.accepted]
            right = sum(a.true_verb in a.after.split() for a in kept)
            rows.append(_row(name, arm, f"{right} of {len(kept)}"))
    write_json(out / "ablation.json", rows)
    panels: dict[str, dict[str, Interval]] = {
        "novel macro-F1": {k: a.novel.macro for k, a in arms.items()},
        "true verb": {k: a.verb for k, a in arms.items()},
        "evaluator R@1": {k: a.evaluator for k, a in arms.items()},
    }
    save_png(intervals(panels), out / "ablation.png")
    columns = tuple(rows[0])
    section = Section("After stage 2", columns=columns, rows=[tuple(r.values()) for r in rows],
                      figures=["ablation.png"])  # fmt: skip
    lead = (
        "Every stage with one part left out or replaced. The evaluator is an association model "
        "that no stage used; right paraphrases are those that the gate accepted before stage 1 "
        "and that have the verb that is seen."
    )
    write_report(out / "report.html", "What each part is worth", lead, [section], flags_of(arms))
    return rows


def _row(name: str, arm: Arm, right: str) -> dict[str, Any]:
    return {
        "what": name,
        "novel F1 (95 %)": str(arm.novel.macro),
        "true verb (95 %)": str(arm.verb),
        "evaluator R@1 (95 %)": str(arm.evaluator),
        "CIDEr in": f"{arm.cider.get('in', 0.0):.2f}",
        "objects named twice": f"{100 * arm.repeated:.0f} %",
        "right paraphrases": right,
    }
