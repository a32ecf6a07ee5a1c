"""The HTML page: a template, filled from saved results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

__all__ = ["environment_line", "render"]

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
{% for figure in section.figures or ([section.figure] if section.figure else []) %}<figure>
<img src="{{ figure }}" alt="{{ section.title }}"></figure>{% endfor %}
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
        Each with ``title`` and any of ``text``, ``pre``, ``figure`` (relative path), ``figures``
        (several), ``columns`` and ``rows``.
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
