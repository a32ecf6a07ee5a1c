"""HTML reports and the environment that figures were measured in."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import torch

from elixir._files import write_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c2330; max-width: 960px;
       margin: 32px auto; padding: 0 18px; background: #fff; }
h1 { font-size: 26px; margin-bottom: 4px; } h2 { font-size: 19px; margin-top: 34px; }
table { border-collapse: collapse; margin: 10px 0; font-size: 14px; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid #dfe3ea;
         vertical-align: top; }
th { font-size: 12px; color: #5d6778; } td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; } .note { color: #5d6778; font-size: 13px; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p style="white-space: pre-wrap">{{ section.text }}</p>{% endif %}
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
    """A part of a report: text, a table, figures (file names beside the page)."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    figures: Sequence[str] = field(default_factory=list)


def environment() -> dict[str, Any]:
    """Return the machine, the versions and the threads that figures depend on."""
    versions = {}
    for name in ("elixir", "torch", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write a page, whole or not at all."""
    about = environment()
    versions: Mapping[str, str] = about["versions"]
    line = (
        f"Python {about['python']}, {about['platform']}, {about['cpu']}, {about['threads']} "
        f"thread(s); {', '.join(f'{k} {v}' for k, v in versions.items())}"
    )
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    write_text(path, template.render(title=title, lead=lead, sections=sections, environment=line))
