"""HTML report of a saved run."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from . import figures
from .files import write_text
from .result import RunResult
from .templates import PAGE


def render(
    path: str | Path,
    title: str,
    seed: int | None,
    intro: list[str],
    drawings: list[tuple[str, Figure | str, str]],
    tables: list[dict[str, Any]] | None = None,
    claims: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a page that opens without a network.

    Parameters
    ----------
    path : path
        File to write.
    title, intro : str and list of str
        Heading and first paragraphs.
    seed : int or None
        Seed of the run, where there is one.
    drawings : list of (title, figure or relative path of an image, caption)
        Figures; a `Figure` is embedded.
    tables : list of dict, optional
        Each with ``title``, ``columns`` and ``rows``.
    claims : list of dict, optional
        Claims of a ``result.json``.
    """
    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(PAGE).render(
        title=title,
        intro=intro,
        seed=seed,
        version=version("perfeds2"),
        claims=claims or [],
        tables=tables or [],
        figures=[
            {
                "title": heading,
                "caption": caption,
                "src": drawing if isinstance(drawing, str) else figures.as_data_uri(drawing),
            }
            for heading, drawing, caption in drawings
        ],
    )
    return write_text(path, page)


def run_report(run: RunResult, path: str | Path) -> Path:
    """Report of one run: loss, Gantt, staleness, participation, fairness, bandwidth."""
    s = run.summary()
    fig, ax = figures.figure(7.5, 3.8)
    run.plot(ax)
    rows = [[name.replace("_", " "), text(value)] for name, value in s.items()]
    c = run.config
    intro = [
        f"{c.method.name} on {c.data.source}: {c.schedule.participants} of {c.ues} UEs close a "
        f"round, scheduling {c.schedule.scheduling}, bandwidth {c.schedule.bandwidth}."
    ]
    drawings: list[tuple[str, Figure | str, str]] = [
        ("Loss against simulated seconds", fig, "Mean over UEs of the personal models' test loss.")
    ]
    if len(run.counts):
        drawings += [
            (
                "What each UE did",
                figures.gantt(run),
                "The first rounds. Uploads include waiting for a share and for outages.",
            ),
            (
                "Staleness",
                figures.staleness_histogram(run.staleness),
                "Rounds between weights and their use.",
            ),
            (
                "Participation",
                figures.participation_bars(run),
                "First-A rounds prefer UEs that are fast or near.",
            ),
            (
                "Fairness",
                figures.accuracy_cdf([("", run)]),
                f"Jain index {s['jain_fairness']:.4f}.",
            ),
            (
                "Bandwidth per round",
                figures.bandwidth_rounds(run),
                "Shares of the updates used in a round; blank where shares changed while sending.",
            ),
        ]
    table = {"title": "Summary", "columns": ["figure", "value"], "rows": rows}
    return render(path, "Simulation report", c.seed, intro, drawings, [table])


def text(value: Any) -> str:
    """Value as a table shows it: six digits, and a word for what is not there."""
    if value is None or (isinstance(value, float) and value == float("inf")):
        return "not reached"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
