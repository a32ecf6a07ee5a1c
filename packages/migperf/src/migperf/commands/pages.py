"""HTML pages of the subcommands whose answer is short: a table, mostly with a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat import CompatRow
from ..loadgen.slo import SloSearch
from ..partitions.base import Availability
from ..planner.validate import DemandCheck
from ..report import environment_line, render
from ..study import environment
from .common import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compat_page", "doctor_page", "simulate_page", "slo_page"]


def _write(
    out: Path, title: str, lead: str, section: Mapping[str, Any], figure: Figure | None = None
) -> None:
    if figure is not None:
        from ..figures import save_figure

        path = out.with_suffix(".svg")
        save_figure(figure, path)
        section = {**section, "figure": path.name}
    write_text(out, render(title, lead, [section], environment_line(environment())))


def doctor_page(out: Path, found: Mapping[str, tuple[Availability, str]]) -> None:
    """Write which backends work here."""
    works = sum(state.ok for state, _ in found.values())
    _write(
        out, "migperf doctor", f"{works} of {len(found)} ways to share this machine work.",
        {"title": "Backends", "columns": ["backend", "works", "isolates", "why not"],
         "rows": [[k, a.ok, i, a.reason] for k, (a, i) in found.items()]},
    )  # fmt: skip


def compat_page(out: Path, rows: Sequence[CompatRow]) -> None:
    """Write which frameworks ran, with their throughput."""
    from ..figures import bar_groups

    names = list(dict.fromkeys(r.framework for r in rows if r.status == "ok"))
    series = {
        mode: [
            next((r.throughput for r in rows
                  if (r.framework, r.mode, r.status) == (name, mode, "ok")), float("nan"))
            for name in names
        ]
        for mode in ("infer", "train")
    }  # fmt: skip
    title = "Small models, batch 8, one core"
    figure = bar_groups(names, series, title, "samples/s", number="{:,.0f}") if names else None
    _write(
        out, "migperf compat", f"{len(names)} frameworks ran on this machine.",
        {"title": "Frameworks", "columns": ["framework", "model", "mode", "status", "samples/s",
                                            "why not"],
         "text": "Every cell is a run in a process of its own. The models differ between the rows "
         "(perceptron, ResNet-18, DistilBERT), so only rows of equal models compare.",
         "rows": [[r.framework, r.model, r.mode, r.status,
                   f"{r.throughput:,.0f}" if r.status == "ok" else "", r.detail] for r in rows]},
        figure,
    )  # fmt: skip


def slo_page(out: Path, found: SloSearch, bound: float, workload: str) -> None:
    """Write the search for the largest rate within a bound.

    Parameters
    ----------
    out : Path
        HTML file.
    found : SloSearch
        What was searched.
    bound : float
        Latency bound, seconds.
    workload : str
        What served.
    """
    from ..figures import curves

    trials = sorted(found.trials)
    rates = [r for r, _ in trials]
    series = {
        "p99 of a trial": (rates, [1000 * v for _, v in trials]),
        "bound": ([rates[0], rates[-1]], [1000 * bound] * 2),
    }
    figure = curves(series, f"{workload}: p99 against the Poisson rate", "requests/s", "ms",
                    log=True)  # fmt: skip
    lead = (
        f"{found.rate:.1f} requests/s meet {1000 * bound:g} ms (p99 {1000 * found.latency:.2f} ms, "
        "the worst of the confirmations); flooded, the server reaches "
        f"{found.saturated_rate:.1f}/s."
    )
    _write(
        out, "migperf slo", lead,
        {"title": "Trials", "text": "In the order of the search: bracketing, bisection on common "
         "random numbers, confirmations with fresh seeds.",
         "columns": ["requests/s", "p99 ms", "within the bound"],
         "rows": [[f"{r:.1f}", f"{1000 * v:.2f}", v <= bound] for r, v in found.trials]},
        figure,
    )  # fmt: skip


def simulate_page(out: Path, gpus: float, seeds: int, checks: Sequence[DemandCheck]) -> None:
    """Write how a plan fared when it was played."""
    from ..figures import bar_groups

    bounded = [c for c in checks if c.slo_ms < float("inf")]
    figure = None
    if bounded:
        series = {
            "worst p99 of all seeds": [max(c.p99_ms) for c in bounded],
            "bound": [c.slo_ms for c in bounded],
        }
        figure = bar_groups([c.demand for c in bounded], series, "Latency in the simulation", "ms",
                            number="{:,.4g}")  # fmt: skip
    met = all(c.share_met >= 0.99 for c in checks)
    _write(
        out, "migperf simulate",
        f"{gpus:g} GPUs, {seeds} seeds: the bounds are {'met' if met else 'NOT met'}.",
        {"title": "Demands", "text": "Poisson requests on every instance; waiting requests are "
         "served together up to the batch size.",
         "columns": ["demand", "load", "worst p99 ms", "bound ms", "seeds within the bound"],
         "rows": [[c.demand, f"{c.offered:.1%}", f"{max(c.p99_ms):.2f}", f"{c.slo_ms:g}",
                   f"{c.share_met:.0%}"] for c in checks]},
        figure,
    )  # fmt: skip
