"""HTML pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from .environment import describe
from .figures import f1_bars, gallery, growth, hacking, reward_curves, save_png
from .files import write_text
from .result import PipelineResult
from .summary import Arm, gains, unseen_f1

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c2330; max-width: 1060px;
       margin: 32px auto; padding: 0 18px; background: #fff; }
h1 { font-size: 26px; margin-bottom: 4px; } h2 { font-size: 19px; margin-top: 34px; }
table { border-collapse: collapse; margin: 10px 0; font-size: 14px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid #dfe3ea;
         vertical-align: top; }
th { font-size: 12px; color: #5d6778; } td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; } .note { color: #5d6778; font-size: 13px; }
.flag { background: #fdecea; border-left: 4px solid #b0413e; padding: 8px 12px; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% for flag in flags %}<p class="flag">{{ flag }}</p>{% endfor %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.rows %}
<table><thead><tr>{% for c in section.columns %}<th>{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.rows %}<tr>{% for v in row %}<td>{{ v }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endif %}
{% for figure in section.figures %}<p><img src="{{ figure }}" alt="{{ section.title }}"></p>{%
endfor %} {% endfor %}
<p class="note">{{ environment }}</p>
</body></html>
"""


@dataclass
class Section:
    """A part of a page: text, a table, figures (file names beside the page)."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    figures: Sequence[str] = field(default_factory=list)


def write_report(
    path: str | Path,
    title: str,
    lead: str,
    sections: Sequence[Section],
    flags: Sequence[str] = (),
    threads: int = 1,
) -> Path:
    """Write a page, whole or not at all."""
    about = describe(threads)
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    line = f"Python {about['python']}, {about['platform']}, {about['cpu']}, {versions}"
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    page = template.render(title=title, lead=lead, sections=sections, flags=flags, environment=line)
    return write_text(path, page)


_ARM_COLUMNS = (
    "captioner",
    "novel F1 (95 %)",
    "CIDEr in",
    "near",
    "out",
    "verb",
    "evaluator R@1",
    "hallucinated",
    "verbs",
    "words",
)


def _arm_row(arm: Arm) -> tuple[Any, ...]:
    return (
        arm.name,
        arm.novel.macro,
        *(f"{arm.cider.get(d, 0.0):.2f}" for d in ("in", "near", "out")),
        arm.verb,
        arm.evaluator,
        f"{100 * arm.hallucination:.0f} %",
        arm.verbs_used,
        arm.words_used,
    )


def flags_of(arms: dict[str, Arm]) -> list[str]:
    """Return warnings: captions that list tags, or that name an object twice."""
    found = []
    for name, arm in arms.items():
        share, listed = arm.listing
        if listed:
            found.append(
                f"{name}: {100 * share:.0f} % of the words are object names. These captions list "
                "tags; F1 does not speak for them."
            )
        if arm.repeated > 0.2:
            found.append(
                f"{name}: {100 * arm.repeated:.0f} % of the captions name one object twice."
            )
    return found


def write_run_report(
    out: Path, result: PipelineResult, arms: dict[str, Arm], threads: int = 1
) -> list[dict[str, str]]:
    """Write figures and ``report.html``; return the figures' names and titles."""
    figures = [
        ("f1.png", "F1 of eight objects that no caption named, after each stage", f1_bars(arms)),
        ("gallery.png", "Captions of scenes with held-out objects", gallery(result)),
        ("words.png", "Words that the captions use", growth(arms)),
    ]
    if result.curves["rewards"]:
        figures.append(("rewards.png", "Reward terms in stage 2", reward_curves(result)))
    if "stage 2" in result.captions and "VIVO + XE" in result.captions:
        figures.append(("hacking.png", "Reward against an independent evaluator", hacking(result)))
    for name, _, figure in figures:
        save_png(figure, out / name)
    kept = [a for a in result.paraphrases if a.accepted]
    right = sum(a.true_verb in a.after.split() for a in kept)
    any_right = sum(a.true_verb in a.after.split() for a in result.paraphrases)
    shown = [
        (a.before, a.after, f"{a.a_before:.2f}", f"{a.a_after:.2f}", a.true_verb) for a in kept[:12]
    ]
    sections = [
        Section(
            "After each stage",
            "Test scenes. Verb: the caption has the verb that is seen; evaluator: an association "
            "model that no stage used finds the scene among all test scenes from the caption.",
            _ARM_COLUMNS,
            [_arm_row(a) for a in arms.values()],
            ["f1.png"],
        ),
        Section("Before and after", figures=["gallery.png"]),
        Section(
            "Paired tests on figures that were no reward",
            "Bootstrap over test scenes, one-sided.",
            ("comparison", "against", "gain (95 %)", "p"),
            [(key, row[1], row[3], f"{row[4]:.4f}") for key, row in gains(result).items()],
        ),
        Section(
            "Paraphrases that the gate accepted",
            f"{len(kept)} of {len(result.paraphrases)} proposals gain more than "
            f"{result.margin:.2f}; of the accepted {right} have "
            f"the true verb, of all {any_right}.",
            ("greedy caption", "paraphrase", "A before", "A after", "true verb"),
            shown,
        ),
    ]
    if result.sweep:
        sections.append(
            Section(
                "The margin, calibrated",
                "Paraphrases of validation scenes, and how many of the accepted are right.",
                ("margin", "accepted", "right"),
                [(f"{m:.2f}", int(n), f"{100 * p:.0f} %") for m, n, p in result.sweep if n],
            )
        )
    if result.unseen is not None:
        rows = [(name, f1.macro, arms[name].novel.macro) for name, f1 in unseen_f1(result).items()]
        sections.append(
            Section(
                "The same scenes in a style that nothing was trained on",
                "Drawn with Noto Color Emoji.",
                ("captioner", "novel F1 (95 %)", "in the trained style"),
                rows,
            )
        )
    for name, title, _ in figures[2:]:
        sections.append(Section(title, figures=[name]))
    sections.append(
        Section(
            "Seconds",
            columns=("stage", "seconds"),
            rows=[(k, f"{v:.1f}") for k, v in result.seconds.items()],
        )
    )
    write_report(
        out / "report.html",
        "Objects that no caption taught",
        "Scenes drawn from emoji art. Captions teach other objects with one generic verb; eight "
        "objects come with detector tags only, specific verbs only in the text corpus. "
        "Art: OpenMoji, "
        "CC BY-SA 4.0.",
        sections,
        flags_of(arms),
        threads,
    )
    return [{"path": name, "title": title} for name, title, _ in figures]
