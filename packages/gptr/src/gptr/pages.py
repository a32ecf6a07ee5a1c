"""The pages that the commands write: what was drawn, found wrong, measured, compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptr import figures
from gptr.data.dataset import DiagramDataset
from gptr.data.doctor import Finding
from gptr.detections import Detections
from gptr.evaluation.bootstrap import Comparison
from gptr.evaluation.coco import Evaluation
from gptr.report import Section, write_report


def write_evaluation(
    found: Evaluation, out: Path, history: list[dict[str, Any]] | None = None
) -> None:
    """Write evaluation.json, report.html and figures; with a history, the training too."""
    found.save(out)
    figures.save(figures.evaluation(found), out / "evaluation.png")
    sections = [
        Section(
            "Figures",
            "COCO's twelve; -1 where nothing is of that size.",
            list(found.stats),
            [[f"{v:.3f}" for v in found.stats.values()]],
        ),
        Section(
            "By class frequency in training",
            "",
            list(found.frequency),
            [[f"{v:.3f}" for v in found.frequency.values()]],
        ),
        Section("Curves, classes, errors", repr(found), figures=["evaluation.png"]),
        Section(
            "Classes",
            "",
            ["class", "AP", "AP50"],
            [
                [n, "absent" if a is None else f"{a:.3f}", "" if b is None else f"{b:.3f}"]
                for n, a, b in zip(found.class_names, found.class_ap, found.class_ap50)
            ],
        ),
    ]
    if history:
        figures.save(figures.training_curves({"run": history}), out / "training.png")
        sections.insert(2, Section("Training", figures=["training.png"]))
    lead = "What the detector finds and what fails."
    write_report(out / "report.html", f"gptr: {out.name}", lead, sections)


def write_generated(splits: Mapping[str, DiagramDataset], out: Path) -> None:
    """Write report.html of drawn sets: samples with their boxes, objects per class."""
    shown, titles = [], []
    for name, data in splits.items():
        for record in data.records[:4]:
            image = record.load()
            d = Detections(
                record.xyxy, np.ones(len(record.xyxy)), record.labels, image.shape[:2],
                tuple(data.class_names), image=image,
            )  # fmt: skip
            shown.append(d)
            titles.append(name)
    figures.save(figures.detections(shown, titles), out / "samples.png")
    counts = next(iter(splits.values())).counts
    order = np.argsort(-counts, kind="stable")
    names = next(iter(splits.values())).class_names
    bars = {names[i]: float(counts[i]) for i in order[:30]}
    figures.save(figures.bars(bars, "objects in the first split"), out / "classes.png")
    rows = [[n, len(d), int(d.counts.sum()), int((d.counts > 0).sum())] for n, d in splits.items()]
    sections = [
        Section("Splits", "", ["split", "images", "objects", "classes seen"], rows),
        Section("Samples", "Boxes are annotations.", figures=["samples.png"]),
        Section("Classes", "The most frequent, thirty at most.", figures=["classes.png"]),
    ]
    lead = "Drawn diagrams; the splits share no layout."
    write_report(out / "report.html", "gptr generate", lead, sections)


def write_diagnosis(found: Sequence[Finding], annotations: Path, out: Path) -> None:
    """Write report.html of a diagnosis: how often each fault, and where."""
    counts = Counter(f"{f.level}: {f.code}" for f in found)
    sections = []
    if counts:
        kinds = {k: float(v) for k, v in counts.most_common()}
        figures.save(figures.bars(kinds, "findings"), out / "findings.png")
        sections.append(Section("Kinds", figures=["findings.png"]))
    rows = [[f.level, f.code, f.where, f.message] for f in found]
    columns = ["level", "code", "where", "what"]
    sections.append(Section("Findings", "" if rows else "None.", columns, rows))
    lead = f"{len(found)} findings in {annotations.name}."
    write_report(out / "report.html", "gptr doctor", lead, sections)


def write_comparison(found: Sequence[Comparison], names: tuple[str, str], out: Path) -> None:
    """Write report.html of a paired bootstrap."""
    figures.save(figures.intervals(found, f"{names[1]} - {names[0]}"), out / "differences.png")
    rows = [
        [c.figure, f"{c.a:.3f}", f"{c.b:.3f}", f"{c.difference:+.3f}",
         f"{c.low:+.3f} to {c.high:+.3f}", f"{c.p:.3f}"]
        for c in found
    ]  # fmt: skip
    columns = ["figure", *names, "difference", "95 %", "p"]
    text = "Paired bootstrap over images: both detectors saw the same ones."
    section = Section("Differences", text, columns, rows, ["differences.png"])
    write_report(out / "report.html", "gptr compare", f"{names[1]} against {names[0]}.", [section])


def write_times(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write report.html of times in milliseconds."""
    figures.save(figures.bars({r["what"]: r["ms"] for r in rows}, "ms (median)"), out / "times.png")
    section = Section(
        "Times", "", ["what", "ms"], [[r["what"], f"{r['ms']:.2f}"] for r in rows], ["times.png"]
    )
    write_report(out / "report.html", "gptr bench", "Medians on this machine.", [section])
