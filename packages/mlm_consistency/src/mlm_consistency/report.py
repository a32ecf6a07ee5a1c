"""HTML pages of one file, made from results."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from . import figures
from .files import write_text
from .tables import LEVELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .pll import SentenceScore
    from .result import ConsistencyReport

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-size:.9rem;margin:1rem 0}
td,th{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
img{max-width:100%}figure{margin:1.2rem 0}figcaption{font-size:.9rem;color:#555}
.wide{overflow-x:auto}.yes{color:#2c6e2c}.no{color:#a02c12}code{font-size:.9em}
.card{border-left:4px solid #b8402f;background:#f7f4f2;padding:.6rem 1rem;margin:.8rem 0}
.card b{color:#b8402f}
</style></head><body>
<h1>{{ title }}</h1>
{% for line in intro %}<p>{{ line }}</p>{% endfor %}
{% if claims %}<h2>Claims</h2><div class="wide"><table>
<tr><th>claim</th><th>paper</th><th>measured</th><th>met</th><th>how</th></tr>
{% for c in claims %}<tr><td>{{ c.name }}</td>
<td>{{ "no figure" if c.paper is none else c.paper }}</td>
<td>{{ c.measured }} {{ c.unit }}</td>
<td class="{{ 'yes' if c.met else 'no' if c.met is sameas false else '' }}">
{{ "yes" if c.met else "no" if c.met is sameas false else "shown" }}</td>
<td>{{ c.how }}</td></tr>{% endfor %}</table></div>{% endif %}
{% for f in drawings %}<h2>{{ f.title }}</h2><figure><img src="{{ f.src }}" alt="{{ f.title }}">
<figcaption>{{ f.caption }}</figcaption></figure>{% endfor %}
{% if cards %}<h2>Worst contradictions</h2>
{% for c in cards %}<div class="card"><p>{{ c.text }}</p><p><b>{{ c.quadruple }}</b></p></div>
{% endfor %}{% endif %}
{% for t in tables %}<h2>{{ t.title }}</h2><div class="wide"><table>
<tr>{% for c in t.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in t.rows %}<tr>{% for v in row %}
<td class="{{ 'n' if v is number else '' }}">{{ v }}</td>{% endfor %}</tr>{% endfor %}
</table></div>{% endfor %}
<p>mlm-consistency {{ version }}</p>
</body></html>
"""


def render(
    path: str | Path,
    title: str,
    intro: Sequence[str],
    drawings: Sequence[tuple[str, Figure | str, str]] = (),
    tables: Sequence[dict[str, Any]] = (),
    claims: Sequence[dict[str, Any]] = (),
    cards: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write a page that opens without a network; figures are embedded or given by file name."""
    shown = [
        {
            "title": heading,
            "caption": caption,
            "src": drawing if isinstance(drawing, str) else figures.data_uri(drawing),
        }
        for heading, drawing, caption in drawings
    ]
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    return write_text(
        path,
        page.render(
            title=title, intro=intro, drawings=shown, tables=tables, claims=claims, cards=cards,
            version=version("mlm-consistency"),
        ),
    )  # fmt: skip


def number(value: Any) -> Any:
    """Round a figure for a table."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def summary_table(report: ConsistencyReport) -> dict[str, Any]:
    """Table of the summary: measures by level with intervals."""
    rows = []
    for name, entry in report.summary.items():
        if isinstance(entry, dict) and "level" in entry:
            low, high = entry["median_interval" if "median" in entry else "mean_interval"]
            rows.append(
                [
                    entry["level"], name.replace("_", " "), number(entry.get("median", "")),
                    f"{low:.4g} to {high:.4g}", number(entry["mean"]), number(entry.get("p90", "")),
                ]
            )  # fmt: skip
    return {
        "title": "Measures by level",
        "columns": ["level", "measure", "median", "95 % interval", "mean", "90 % below"],
        "rows": rows,
    }


def measurement_page(report: ConsistencyReport, path: str | Path) -> Path:
    """Page of one measurement."""
    settings, floor = report.settings, report.floor
    gamma = report.summary["gamma"]
    intro = [
        f"{settings['model']}: {len(report.rows)} pairs of {settings['sentences']} sentences, "
        f"{settings['top_k']} candidates per position ({settings['candidates']}).",
        "Γ is the log odds-ratio gap of a quadruple of unary conditionals: zero everywhere exactly "
        f"when a joint distribution exists. Its median is {gamma['median']:.4g} nats"
        + (
            f"; computed {floor['how'].replace('a float64', 'with a float64')}, "
            f"95 % of the gaps move by less than {floor['gamma_p95']:.2g}."
            if floor.get("gamma_p95") is not None
            else "; the noise floor was not measured."
        ),
        "Levels are kept apart. " + "; ".join(f"{k}: {v}" for k, v in LEVELS.items()) + ".",
    ]
    drawings: list[tuple[str, Figure | str, str]] = [
        ("Gaps and their noise floor", figures.gap_histogram(report),
         "Gold quadruple: the sentence's tokens against the model's best alternatives."),
        ("Cumulative", figures.ecdf(report), "Both levels, each with its own floor."),
    ]  # fmt: skip
    if "path" in report.summary:
        drawings.append(
            ("Unary and path level", figures.path_scatter(report), "One point per probe.")
        )
    if report.summary["joints"]:
        drawings.append(
            ("Quality of joints", figures.joint_bars(report),
             "Mean with 95 % bootstrap interval, over the candidate sets.")
        )  # fmt: skip
    if report.tables:
        worst = report.worst(1)[0]["id"]
        table = next(t for t in report.tables if t.info.get("id") == worst)
        drawings.append(
            ("Where the worst pair contradicts itself", figures.token_heatmap(table), table.text)
        )
    skipped = {
        "title": "Left out",
        "columns": ["reason", "count"],
        "rows": [[k, v] for k, v in sorted(report.skipped.items())] or [["nothing", 0]],
    }
    return render(
        path, f"Consistency of {settings['model']}", intro, drawings,
        [summary_table(report), skipped], cards=report.worst(5),
    )  # fmt: skip


def comparison_page(result: dict[str, Any], path: str | Path) -> Path:
    """Page of a comparison of two runs."""
    first, second = result["a"]["model"], result["b"]["model"]
    rows = [
        [
            r["measure"].replace("_", " "), r["level"], number(r["a"]), number(r["b"]),
            "" if r["change_percent"] is None else f"{r['change_percent']:+.1f} %",
            "" if "interval" not in r else f"{r['interval'][0]:.4g} to {r['interval'][1]:.4g}",
            "" if "p_b_smaller" not in r else f"{r['p_b_smaller']:.2g}",
        ]
        for r in result["rows"]
    ]  # fmt: skip
    table = {
        "title": "Measures",
        "columns": ["measure", "level", "median A", "median B", "change",
                    "mean A - B, 95 %", "p (B smaller)"],
        "rows": rows,
    }  # fmt: skip
    verdict = (
        "Gates failed: " + "; ".join(result["failed"]) if result["failed"] else "No gate failed."
    )
    intro = [f"A is {first}, B is {second}; {result['paired']} common probes.", verdict]
    drawing = figures.comparison(result["rows"], "A", "B")
    change = ("Change", drawing, "Left of zero: B is more consistent.")
    return render(path, "Is B more consistent than A?", intro, [change], [table])


def ensemble_page(rows: Sequence[dict[str, Any]], curves: dict[str, Any], path: str | Path,
                  intro: Sequence[str]) -> Path:  # fmt: skip
    """Page of an ensemble of conditionals."""
    table = {
        "title": "Patterns and pools",
        "columns": ["name", "accuracy", "95 % interval", "McNemar p against the first"],
        "rows": [
            [r["name"], number(r["accuracy"]), f"{r['low']:.4f} to {r['high']:.4f}",
             number(r["mcnemar_p"])]
            for r in rows
        ],
    }  # fmt: skip
    drawing = ("By number of conditionals", figures.eoc_curves(curves),
               "Averaged over subsets that hold the first pattern.")  # fmt: skip
    return render(path, "Ensemble of conditionals", intro, [drawing], [table])


def score_page(
    scores: Sequence[SentenceScore], path: str | Path, intro: Sequence[str], largest: int = 40
) -> Path:
    """Page of pseudo-log-likelihoods: their spread, the least likely text token by token."""
    order = sorted((s for s in scores if len(s.tokens)), key=lambda s: s.per_token)
    drawings: list[tuple[str, Figure | str, str]] = [
        ("Texts", figures.score_histogram([s.per_token for s in order]),
         "Every token given all others of its text; nearer to zero is more likely."),
    ]  # fmt: skip
    if order:
        least = order[0]
        drawings.append(
            ("The least likely text", figures.token_bars(least.tokens, least.log_p.tolist()),
             least.text)
        )  # fmt: skip
    table = {
        "title": f"Texts, least likely first ({min(largest, len(order))} of {len(order)})",
        "columns": ["text", "per token", "sum", "tokens"],
        "rows": [
            [s.text, number(s.per_token), number(s.total), len(s.tokens)] for s in order[:largest]
        ],
    }
    return render(path, "Pseudo-log-likelihood", intro, drawings, [table])
