"""Figures of saved results. Nothing here looks at live state."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .compare import FormResult
from .files import write_atomic
from .result import RunResult

COLOURS = ("#1b4f8a", "#c8501e", "#3b7d3b", "#7a4a91", "#8a6d1b", "#44606b")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "font.size": 10,
    "legend.frameon": False,
    "savefig.dpi": 130,
    "svg.hashsalt": "perfeds2",
}


def figure(width: float = 7.0, height: float = 3.6) -> tuple[Figure, Axes]:
    """Empty figure without global state."""
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        return fig, fig.subplots()


def save_png(fig: Figure, path: str | Path) -> Path:
    """Write a PNG atomically."""
    return write_atomic(path, lambda file: fig.savefig(file, format="png", dpi=130))


def as_data_uri(fig: Figure) -> str:
    """PNG as a data URI for a page without other files."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_curves(results: Sequence[FormResult], title: str = "") -> Figure:
    """Mean loss against simulated seconds with 95 % intervals over seeds."""
    fig, ax = figure(7.5, 4.2)
    longest = max(float(np.max(r.eval_s)) for form in results for r in form.runs)
    grid = np.geomspace(longest / 300, longest, 240)
    for colour, form in zip(COLOURS * 3, results):
        mean, half = _on_grid(form.runs, grid)
        end = max(float(r.eval_s[-1]) for r in form.runs)
        keep = grid <= end
        ax.plot(grid[keep], mean[keep], color=colour, label=form.form, lw=1.8)
        ax.fill_between(
            grid[keep],
            np.maximum(mean - half, mean / 3)[keep],  # a log axis has no room for zero
            (mean + half)[keep],
            color=colour,
            alpha=0.18,
            lw=0,
        )
    target = results[0].target_loss
    ax.axhline(target, color="#555555", lw=0.9, ls="--")
    ax.annotate(
        f"target {target:g}",
        (grid[0], target),
        xytext=(2, -12),
        textcoords="offset points",
    )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("simulated seconds")
    ax.set_ylabel("personalised test loss")
    ax.set_title(title, loc="left", fontsize=10)
    ax.legend(loc="upper left", frameon=False)
    return fig


def _on_grid(
    runs: Sequence[RunResult], grid: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Mean and half-width over runs; a run that has stopped keeps its last loss."""
    rows = []
    for run in runs:
        at = np.searchsorted(run.eval_s, grid, side="right") - 1
        rows.append(run.loss[np.maximum(at, 0)])
    table = np.array(rows)
    if len(table) < 2:
        return table.mean(0), np.zeros(len(grid))
    from scipy import stats

    half = stats.t.ppf(0.975, len(table) - 1) * table.std(0, ddof=1) / np.sqrt(len(table))
    return table.mean(0), half


def gantt(run: RunResult, ues: int = 20, seconds: float | None = None) -> Figure:
    """Draw what each UE does: computing, sending, or waiting until the round closes."""
    fig, ax = figure(7.5, 4.6)
    n = min(ues, run.config.ues)
    end = seconds or float(run.close_s[min(9, len(run.close_s) - 1)])
    close = run.close_s[run.rounds]
    start = run.started_s
    ready = start + run.compute_s[run.ues]
    spans = (
        ("compute", COLOURS[0], start, np.minimum(ready, run.arrival_s)),
        (
            "upload, or wait for a share",
            COLOURS[1],
            np.minimum(ready, run.arrival_s),
            run.arrival_s,
        ),
        ("wait for the round", "#cccccc", run.arrival_s, close),
    )
    for name, colour, left, right in spans:
        keep = (run.ues < n) & (left < end)
        width = np.minimum(right, end)[keep] - left[keep]
        ax.barh(run.ues[keep], width, left=left[keep], height=0.75, color=colour, label=name)
    for t in run.close_s[run.close_s <= end]:
        ax.axvline(t, color="black", lw=0.8, ls=":")
    ax.set_xlim(0, end)
    ax.set_ylim(-0.6, n - 0.4)
    ax.set_yticks(np.arange(0, n, max(1, n // 10)))
    ax.set_xlabel("simulated seconds (dotted: a round closes)")
    ax.set_ylabel("UE")
    ax.grid(visible=False)
    fig.legend(loc="outside upper center", ncols=3, frameon=False)
    return fig


def staleness_histogram(tau: Int[np.ndarray, " updates"]) -> Figure:
    """Draw a histogram of staleness."""
    fig, ax = figure()
    counts = np.bincount(tau) if len(tau) else np.zeros(1)
    many = len(counts) > 40
    ax.bar(np.arange(len(counts)), counts, width=1.0 if many else 0.8, color=COLOURS[0])
    if many:
        ax.set_yscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("staleness (rounds)")
    ax.set_ylabel("updates")
    return fig


def round_lengths(close_s: Float[np.ndarray, " rounds"]) -> Figure:
    """Length of every round."""
    fig, ax = figure()
    lengths = np.diff(close_s, prepend=0.0)
    ax.plot(np.arange(len(lengths)), lengths, color=COLOURS[0], lw=1)
    ax.axhline(lengths.mean(), color="#555555", lw=0.9, ls="--", label=f"mean {lengths.mean():.3g}")
    if lengths.max() > 10 * np.median(lengths):  # the first round waits for a first update
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_xlabel("round")
    ax.set_ylabel("simulated seconds")
    ax.legend(loc="upper right")
    return fig


def participation_spread(eta: Float[np.ndarray, " ues"]) -> Figure:
    """Relative participation over UEs, sorted."""
    fig, ax = figure()
    share = np.linspace(0.0, 1.0, len(eta)) if len(eta) > 1 else np.zeros(1)
    ax.plot(share, np.sort(eta), color=COLOURS[2], lw=1.8, drawstyle="steps-post", label="UEs")
    ax.axhline(eta.mean(), color="#555555", lw=0.9, ls="--", label="mean")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("share of UEs, least served first")
    ax.set_ylabel("updates per round")
    ax.legend(loc="upper left")
    return fig


def upload_spans(
    ids: Int[np.ndarray, " A"],
    offset_s: Float[np.ndarray, " A"],
    bandwidth_hz: Float[np.ndarray, " A"],
    finish_s: float,
    most: int = 40,
) -> Figure:
    """One round: each UE computes until it is ready and sends until all finish together."""
    keep = np.sort(np.argsort(-bandwidth_hz, kind="stable")[:most])
    ids, offset, band = ids[keep], offset_s[keep], bandwidth_hz[keep]
    fig, ax = figure(7.5, 0.3 * len(ids) + 1.4)
    at = np.arange(len(ids))[::-1]
    ax.barh(at, offset, height=0.7, color=COLOURS[0], label="not ready")
    ax.barh(at, finish_s - offset, left=offset, height=0.7, color=COLOURS[1], label="upload")
    for y, b in zip(at, band):
        ax.annotate(
            f"{b / 1e3:.4g} kHz", (finish_s, y), xytext=(5, 0), textcoords="offset points",
            va="center", annotation_clip=False,
        )  # fmt: skip
    ax.set_xlim(0, finish_s * 1.14)
    ax.set_ylim(-0.6, len(ids) - 0.4)
    ax.set_yticks(at, [str(i) for i in ids])
    ax.set_xlabel("simulated seconds")
    ax.set_ylabel("UE")
    ax.grid(visible=False)
    fig.legend(loc="outside upper center", ncols=2, frameon=False)
    return fig


def participation_bars(run: RunResult) -> Figure:
    """Relative participation of each UE."""
    fig, ax = figure()
    eta = run.participation
    ax.bar(np.arange(len(eta)), eta, color=COLOURS[2])
    mean = run.config.schedule.participants / run.config.ues
    ax.axhline(mean, color="#555555", lw=0.9, ls="--")
    ax.annotate(
        "A / n",
        (1, mean),
        xycoords=("axes fraction", "data"),
        xytext=(4, -3),
        textcoords="offset points",
        annotation_clip=False,
    )
    ax.set_xticks(np.arange(0, len(eta), max(1, len(eta) // 10)))
    ax.set_xlabel("UE")
    ax.set_ylabel("share of rounds with an update")
    return fig


def accuracy_cdf(runs: Sequence[tuple[str, RunResult]]) -> Figure:
    """Distribution of the UEs' personalised accuracies."""
    fig, ax = figure()
    for colour, (name, run) in zip(COLOURS * 3, runs):
        a = np.sort(run.ue_accuracy)
        ax.step(a, np.arange(1, len(a) + 1) / len(a), where="post", color=colour, label=name)
    ax.set_xlabel("personalised test accuracy of a UE")
    ax.set_ylabel("share of UEs")
    if len(runs) > 1:
        ax.legend()
    return fig


def bandwidth_rounds(run: RunResult, rounds: int = 60) -> Figure:
    """Shares of the band of each round's participants, stacked."""
    fig, ax = figure()
    count = min(rounds, len(run.counts))
    band = run.config.system.bandwidth_hz
    for ue in range(run.config.ues):
        keep = (run.ues == ue) & (run.rounds < count)
        below = np.zeros(keep.sum())
        for i, k in enumerate(run.rounds[keep]):
            before = (run.rounds == k) & (run.ues < ue)
            below[i] = np.nansum(run.bandwidth_hz[before])
        share = np.nan_to_num(run.bandwidth_hz[keep]) / band
        ax.bar(run.rounds[keep], share, bottom=below / band, width=0.9,
               color=mpl.colormaps["viridis"](ue / max(run.config.ues - 1, 1)))  # fmt: skip
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("round")
    ax.set_ylabel("share of the band (colour: UE)")
    ax.grid(visible=False)
    return fig


def bars(
    names: Sequence[str], values: Sequence[float], label: str, errors: Sequence[float] | None = None
) -> Figure:
    """Horizontal bars with their values written behind them."""
    fig, ax = figure(7.5, 0.55 * len(names) + 1.0)
    at = np.arange(len(names))[::-1]
    ax.barh(at, values, xerr=errors, color=COLOURS[0], height=0.6, ecolor="#555555")
    for y, value, error in zip(at, values, errors or [0.0] * len(names)):
        ax.annotate(
            f"{value:.3g}",
            (value + error, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    ax.set_yticks(at, names)
    ax.margins(x=0.15)
    ax.set_xlabel(label)
    ax.grid(visible=False, axis="y")
    return fig
