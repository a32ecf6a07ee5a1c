"""HTML reports, from saved results: a study's folder, or the demo."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from .errors import InputError
from .measurements import load_measurements

__all__ = ["render", "study_report"]

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2430; background: #fff; margin: 0; }
main { max-width: 58rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.lead { color: #475467; margin: 0 0 1.2rem; max-width: 44rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .45rem .7rem; border-bottom: 1px solid #e4e7ec;
         vertical-align: top; }
th { color: #667085; font-weight: 600; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.yes { color: #12715b; } .no { color: #a3342b; } .shown { color: #667085; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; display: block; }
pre { background: #f6f7f9; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem;
      border-radius: 6px; }
footer { color: #667085; font-size: .85rem; margin-top: 3rem; }
</style></head><body><main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.pre %}<pre>{{ section.pre }}</pre>{% endif %}
{% if section.figure %}<figure>
<img src="{{ section.figure }}" alt="{{ section.title }}"></figure>{% endif %}
{% if section.rows %}<div class="table"><table><thead><tr>
{% for c in section.columns %}<th>{{ c }}</th>{% endfor %}</tr></thead><tbody>
{% for row in section.rows %}<tr>{% for c in row %}
{% if c is sameas true %}<td class="yes">yes</td>
{% elif c is sameas false %}<td class="no">no</td>
{% elif c is none %}<td class="shown">shown only</td>
{% elif c is number %}<td class="number">{{ c }}</td>
{% else %}<td>{{ c }}</td>{% endif %}
{% endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}
{% endfor %}
<footer>{{ footer }}</footer>
</main></body></html>
"""


def render(title: str, lead: str, sections: Sequence[Mapping[str, Any]], footer: str) -> str:
    """Fill the page.

    Parameters
    ----------
    title, lead, footer : str
        Texts.
    sections : sequence of mapping
        Each with ``title`` and any of ``text``, ``pre``, ``figure`` (relative path), ``columns``
        and ``rows``.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE).render(
        title=title, lead=lead, sections=sections, footer=footer
    )


def environment_line(environment: Mapping[str, Any]) -> str:
    """Describe the machine in one line."""
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    return (
        f"{environment['cpu']}, {environment['threads']} threads, {environment['platform']}, "
        f"Python {environment['python']}, {versions}"
    )


def _load(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"runs: {str(folder / name)!r} cannot be read ({error})") from None
    if not isinstance(data, dict) or data.get("schema_version") != 1:
        raise InputError(f"runs: {str(folder / name)!r} is not of schema version 1")
    return data


def _tail(folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Complementary distribution of the latencies of each case."""
    values: dict[str, list[float]] = {}
    with (folder / "samples.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["done"]:
                latency = (float(row["done"]) - float(row["scheduled"])) * 1000
                values.setdefault(row["case"], []).append(latency)
    found = {}
    for case, latencies in values.items():
        ordered = sorted(latencies)
        shares = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
        kept = [s for s in shares if len(ordered) >= 10 / (1 - s) or s <= 0.9]
        picks = [ordered[min(len(ordered) - 1, math.floor(s * len(ordered)))] for s in kept]
        found[case] = ([100 * s for s in kept], picks)
    return found


def study_report(runs: Path, out: Path) -> None:
    """Write the report of a study folder, with its figures beside it.

    Parameters
    ----------
    runs : Path
        Folder that `migperf run` wrote.
    out : Path
        HTML file.
    """
    summary, meta = _load(runs, "summary.json"), _load(runs, "meta.json")
    rows = [r for r in summary["rows"] if r["status"] in ("ok", "partial")]
    if not rows:
        raise InputError(f"runs: {str(runs)!r} has no case that ran")
    # Imported here: matplotlib takes longer to import than most commands run.
    from .figures import bar_groups, curves, save_figure

    cases = list(dict.fromkeys(r["case"] for r in rows))
    totals = [sum(r["throughput"] for r in rows if r["case"] == c) for c in cases]
    stem = out.stem
    throughput = f"{stem}-throughput.svg"
    save_figure(
        bar_groups(cases, {"sum of tenants": totals}, "Throughput by case", "samples/s",
                   number="{:.4g}"),
        out.parent / throughput,
    )  # fmt: skip
    tail = f"{stem}-latency.svg"
    save_figure(curves(_tail(runs), "Latency percentiles", "percentile", "ms"), out.parent / tail)
    columns = ["case", "tenant", "partition", "status", "throughput", "p50 ms", "p95 ms", "p99 ms"]
    table = [
        [r["case"], r["tenant"], r["partition"], r["status"], r.get("throughput_text", ""),
         *(_short(r.get(k)) for k in ("p50_ms", "p95_ms", "p99_ms"))]
        for r in summary["rows"]
    ]  # fmt: skip
    sections: list[dict[str, Any]] = [
        {"title": "Throughput", "figure": throughput,
         "text": "Mean over repeats; the table gives 95 % bootstrap intervals over repeats."},
        {"title": "Latency", "figure": tail,
         "text": "Done minus scheduled, over all raw samples; nothing is averaged over tenants."},
        {"title": "Cases", "columns": columns, "rows": table},
    ]  # fmt: skip
    if meta["noise"]:
        sections.append(
            {"title": "Disturbed windows", "text": "Kept on request. Read the figures with care.",
             "columns": ["case and cause"], "rows": [[n] for n in meta["noise"]]}
        )  # fmt: skip
    points = load_measurements(runs)
    sections.append(
        {
            "title": "Measured points",
            "text": "What `migperf plan --profiles` reads from this folder.",
            "columns": ["workload", "mode", "partition", "batch", "ms per batch", "samples/s"],
            "rows": [
                [m.workload, m.mode, m.profile, m.batch, f"{m.latency_ms:.3g}", f"{m.rate:.4g}"]
                for m in points
            ],
        }
    )
    from .commands.common import write_text

    lead = f"{len(cases)} cases, {meta['seconds']:.0f} seconds of measurement."
    write_text(out, render("migperf study", lead, sections, environment_line(meta["environment"])))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "too few samples"
