"""Figures from saved results: layouts as slices, bars with intervals, curves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .boards import Board
from .placement import Placement

__all__ = [
    "Panel",
    "SliceRow",
    "bar_groups",
    "curve_panels",
    "curves",
    "draw_cores",
    "draw_layouts",
    "interference_heatmap",
    "pareto_figure",
    "save_figure",
]

INK, MUTED, GRID = "#1f2430", "#667085", "#e4e7ec"
COLOURS = ("#2f6fb0", "#d9822b", "#3a9278", "#8a5fb0", "#b0463c", "#7a7f87")
_BY_SLICES = {1: "#9cc3e6", 2: "#6aa5d8", 3: "#3a80bd", 4: "#2a659c", 7: "#1d4a75"}
_DARK_TEXT = {1, 2}


@dataclass(frozen=True)
class SliceRow:
    """One GPU to draw.

    Parameters
    ----------
    title : str
        What the row shows.
    placements : sequence of Placement
        Its instances.
    running : mapping of int to str
        Text on the instance that starts at this slice, such as the name of a job.
    new : set of int
        Starts of instances that were just created.
    """

    title: str
    placements: Sequence[Placement]
    running: Mapping[int, str]
    new: frozenset[int] = frozenset()


def draw_layouts(board: Board, rows: Sequence[SliceRow], title: str) -> Figure:
    """Draw layouts as blocks over the memory slices of a GPU, one row each."""
    figure, axes = _slots(board.memory_slices, [r.title for r in rows], title, "memory slice")
    for number, row in enumerate(rows):
        y = len(rows) - 1 - number
        for place in row.placements:
            slices = board.profile(place.profile).compute_slices
            job = row.running.get(place.start)
            fresh = place.start in row.new
            _block(
                axes, place.start, y + 0.12, place.size, 0.66, _BY_SLICES.get(slices, "#3a80bd"),
                edgecolor="#d9822b" if job else INK if fresh else "white",
                linewidth=2.6 if job else 1.6 if fresh else 0.8,
                linestyle="--" if fresh and not job else "-",
            )  # fmt: skip
            text = place.profile.replace(".", ".\n", 1) if place.size == 1 else place.profile
            colour = INK if slices in _DARK_TEXT else "white"
            label = f"{text}\n{job}" if job else text
            axes.text(place.start + place.size / 2, y + 0.45, label, ha="center", va="center",
                      color=colour, fontsize=8.5, linespacing=1.25)  # fmt: skip
    return figure


def draw_cores(
    cores: int, rows: Sequence[tuple[str, Sequence[tuple[int, int, str]]]], title: str
) -> Figure:
    """Draw CPU partitions as blocks over the cores of the machine, one row each.

    Parameters
    ----------
    cores : int
        How many there are.
    rows : sequence of (title, blocks)
        Blocks are (first core, number of cores, text); those that share cores are drawn one above
        the other, those without a text are idle.
    title : str
        Title.
    """
    figure, axes = _slots(cores, [r[0] for r in rows], title, "core")
    for number, (_, blocks) in enumerate(rows):
        y = len(rows) - 1 - number
        crowd = max(sum(f <= c < f + n for f, n, _ in blocks) for c in range(cores))
        height = 0.66 / crowd
        for index, (first, count, text) in enumerate(blocks):
            level = index % crowd if crowd > 1 else 0
            base = y + 0.12 + height * (crowd - 1 - level)
            if not text:
                continue  # an idle partition: the empty slots show
            _block(axes, first, base, count, height, COLOURS[index % len(COLOURS)],
                   edgecolor="white", linewidth=0.8)  # fmt: skip
            axes.text(first + count / 2, base + height / 2, text, ha="center", va="center",
                      color="white", fontsize=8.5)  # fmt: skip
    return figure


def _slots(width: int, titles: Sequence[str], title: str, unit: str) -> tuple[Figure, Any]:
    """Make empty slots, one row per title."""
    figure = Figure(figsize=(8.6, 1.1 + 0.95 * len(titles)), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, width)
    axes.set_ylim(-0.05, len(titles))
    for number, text in enumerate(titles):
        y = len(titles) - 1 - number
        for slot in range(width):
            _block(axes, slot, y + 0.12, 1, 0.66, "#f4f5f7", edgecolor=GRID, linewidth=0.8)
        axes.text(-0.015 * width, y + 0.45, text, ha="right", va="center", fontsize=9, color=INK)
    axes.set_xticks(np.arange(width) + 0.5, [str(i) for i in range(width)], fontsize=8, color=MUTED)
    axes.set_xlabel(unit, fontsize=8.5, color=MUTED)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    return figure, axes


def _block(
    axes: Any, x: float, y: float, width: float, height: float, colour: str, **edge: Any
) -> None:
    gap = min(0.03, 0.004 * max(axes.get_xlim()))
    axes.add_patch(
        FancyBboxPatch(
            (x + gap, y), width - 2 * gap, height, boxstyle=f"round,pad=0,rounding_size={2 * gap}",
            facecolor=colour, **edge,
        )
    )  # fmt: skip


def _plain_axes(figure: Figure, title: str, ylabel: str) -> Any:
    return _style(figure.subplots(), title, ylabel)


def _log(axis: Any) -> None:
    """Logarithmic axis with ticks at 1, 2 and 5 in plain figures."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(10.0, (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _style(axes: Any, title: str, ylabel: str) -> Any:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    return axes


def bar_groups(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    title: str,
    ylabel: str,
    *,
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    number: str = "{:g}",
) -> Figure:
    """Bars side by side, with their figures written above them.

    Parameters
    ----------
    groups : sequence of str
        Labels along the axis.
    series : mapping of str to sequence of float
        Heights per group; NaN is left out.
    title, ylabel : str
        Texts.
    intervals : mapping of str to sequence of (low, high), optional
        Confidence intervals.
    number : str
        Format of the figures.
    """
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axes = _plain_axes(figure, title, ylabel)
    width = 0.8 / len(series)
    top = max((v for vs in series.values() for v in vs if v == v), default=1.0)
    for index, (name, values) in enumerate(series.items()):
        x = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
        colour = COLOURS[index % len(COLOURS)]
        axes.bar(x, values, width * 0.92, color=colour, label=name)
        for position, value in zip(x, values, strict=True):
            if value == value:
                bound = value
                if intervals and name in intervals:
                    low, high = intervals[name][list(x).index(position)]
                    if low == low:
                        axes.plot([position, position], [low, high], color=INK, lw=1.3)
                        bound = max(value, high)
                axes.text(position, bound + 0.015 * top, number.format(value),
                          ha="center", va="bottom", fontsize=8.5, color=INK)  # fmt: skip
    axes.set_xticks(np.arange(len(groups)), groups)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9, ncols=len(series), loc="upper right")
        axes.set_ylim(0, None)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * 1.12)
    return figure


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
    logy: bool = False,
) -> Figure:
    """Lines with markers.

    Parameters
    ----------
    series : mapping of str to (x, y)
        Points of each line.
    title, xlabel, ylabel : str
        Texts.
    log : bool
        Both axes logarithmic.
    logy : bool
        Only the y axis logarithmic.
    """
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axes = _plain_axes(figure, title, ylabel)
    for index, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, marker="o", markersize=4, lw=1.6, label=name,
                  color=COLOURS[index % len(COLOURS)])  # fmt: skip
    if log:
        _log(axes.xaxis)
    if log or logy:
        _log(axes.yaxis)
    axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    axes.legend(frameon=False, fontsize=9)
    return figure


@dataclass(frozen=True)
class Panel:
    """One of several axes side by side.

    Parameters
    ----------
    title, ylabel : str
        Texts.
    series : mapping of str to (x, y)
        Points of each line; equal names have equal colours in all panels.
    log : bool
        Logarithmic y axis.
    """

    title: str
    ylabel: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log: bool = True


def curve_panels(panels: Sequence[Panel], title: str, xlabel: str) -> Figure:
    """Draw lines over a doubling x axis, one panel per quantity, with one legend."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    names = list(dict.fromkeys(n for p in panels for n in p.series))
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _style(axes, panel.title, panel.ylabel)
        for name, (x, y) in panel.series.items():
            (handles[name],) = axes.plot(
                x, y, marker="o", markersize=4, lw=1.6, color=COLOURS[names.index(name) % 6]
            )
        axes.set_xscale("log", base=2)
        ticks = sorted({v for x, _ in panel.series.values() for v in x})
        kept = ticks if len(ticks) <= 6 else ticks[::2]
        axes.set_xticks(kept, [f"{v:g}" for v in kept])
        axes.minorticks_off()
        if panel.log:
            _log(axes.yaxis)
        axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    figure.legend(
        [handles[n] for n in names], names, loc="outside lower center", ncols=min(6, len(names)),
        frameon=False, fontsize=9,
    )  # fmt: skip
    return figure


def pareto_figure(
    points: Sequence[tuple[float, float, str, bool]],
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
) -> Figure:
    """Draw points and the line through those that nothing beats.

    Parameters
    ----------
    points : sequence of (x, y, label, on front)
        Labels are written at points of the front only, and where they do not collide.
    title, xlabel, ylabel : str
        Texts.
    log : bool
        Both axes logarithmic.
    """
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes = _plain_axes(figure, title, ylabel)
    rest = [p for p in points if not p[3]]
    front = sorted(p for p in points if p[3])
    axes.scatter([p[0] for p in rest], [p[1] for p in rest], s=14, color="#b8bec9", label="others")
    axes.plot([p[0] for p in front], [p[1] for p in front], marker="o", markersize=5, lw=1.6,
              color=COLOURS[0], label="Pareto front")  # fmt: skip
    if log:
        _log(axes.xaxis)
        _log(axes.yaxis)
    else:
        axes.set_xlim(0, 1.18 * max(p[0] for p in points) or 1.0)
        axes.set_ylim(0, 1.1 * max(p[1] for p in points) or 1.0)
    axes.margins(0.12)
    axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    axes.legend(frameon=False, fontsize=9, loc="best")
    figure.canvas.draw()
    taken: list[tuple[float, float]] = []
    # A front of latency rises, one of two rates falls: the label goes to the empty side.
    offset = (5, -11) if log else (6, 5)
    for x, y, label, _ in front:
        place = axes.transData.transform((x, y))
        if all(abs(place[0] - a) > 95 or abs(place[1] - b) > 14 for a, b in taken):
            taken.append((float(place[0]), float(place[1])))
            axes.annotate(label, (x, y), xytext=offset, textcoords="offset points", fontsize=8,
                          color=INK)  # fmt: skip
    return figure


def interference_heatmap(
    names: Sequence[str], matrix: np.ndarray, title: str, *, index: bool = False
) -> Figure:
    """Draw a matrix of the row's tenant beside the column's.

    Parameters
    ----------
    names : sequence of str, length n
        Tenants.
    matrix : array, shape (n, n)
        Slowdown minus one, or isolation indices; NaN where nothing was measured.
    title : str
        Title.
    index : bool
        The entries are isolation indices, for which 1 is best, instead of slowdowns.
    """
    figure = Figure(figsize=(3.2 + 1.1 * len(names), 1.5 + 0.7 * len(names)), layout="constrained")
    axes = figure.subplots()
    shade = 1.0 - matrix if index else matrix
    largest = float(np.nanmax(np.abs(shade))) if np.isfinite(shade).any() else 0.0
    # Paler, so that the figures stay readable, and cut off, so that one outlier does not hide all.
    limit = min(max(0.1, largest), 3.0) * 1.6
    axes.imshow(shade, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if value != value:
            text = "no data"
        elif index:
            text = f"{value:.2f}"
        else:
            # Adding 0.0 turns a rounded -0 into 0.
            text = f"{round(value, 2) + 0.0:+.0%}" if value < 9 else f"x {value + 1:.0f}"
        colour = "white" if abs(shade[i, j]) > 0.65 * limit else INK
        axes.text(j, i, text, ha="center", va="center", fontsize=9.5, color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlabel("beside", fontsize=9, color=MUTED)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(title, fontsize=11, color=INK, x=0.02, ha="left")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure under a temporary name, then rename it; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".figure-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        # Fixed metadata: equal input gives equal bytes.
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(temporary, dpi=160, metadata=metadata)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
