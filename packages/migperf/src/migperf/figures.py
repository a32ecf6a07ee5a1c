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

from .boards import Board
from .placement import Placement

__all__ = [
    "SliceRow",
    "bar_groups",
    "curves",
    "draw_layouts",
    "interference_heatmap",
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
    figure = Figure(figsize=(8.6, 1.1 + 0.95 * len(rows)), layout="constrained")
    axes = figure.subplots()
    width = board.memory_slices
    for number, row in enumerate(rows):
        y = len(rows) - 1 - number
        for slot in range(width):
            axes.add_patch(
                FancyBboxPatch(
                    (slot + 0.03, y + 0.12), 0.94, 0.66, boxstyle="round,pad=0,rounding_size=0.06",
                    facecolor="#f4f5f7", edgecolor=GRID, linewidth=0.8,
                )
            )  # fmt: skip
        for place in row.placements:
            slices = board.profile(place.profile).compute_slices
            job = row.running.get(place.start)
            fresh = place.start in row.new
            axes.add_patch(
                FancyBboxPatch(
                    (place.start + 0.03, y + 0.12), place.size - 0.06, 0.66,
                    boxstyle="round,pad=0,rounding_size=0.06",
                    facecolor=_BY_SLICES.get(slices, "#3a80bd"),
                    edgecolor="#d9822b" if job else INK if fresh else "white",
                    linewidth=2.6 if job else 1.6 if fresh else 0.8,
                    linestyle="--" if fresh and not job else "-",
                )
            )  # fmt: skip
            text = place.profile.replace(".", ".\n", 1) if place.size == 1 else place.profile
            colour = INK if slices in _DARK_TEXT else "white"
            label = f"{text}\n{job}" if job else text
            axes.text(place.start + place.size / 2, y + 0.45, label, ha="center", va="center",
                      color=colour, fontsize=8.5, linespacing=1.25)  # fmt: skip
        axes.text(-0.12, y + 0.45, row.title, ha="right", va="center", fontsize=9, color=INK)
    axes.set_xlim(0, width)
    axes.set_ylim(-0.05, len(rows))
    axes.set_xticks(np.arange(width) + 0.5, [str(i) for i in range(width)], fontsize=8, color=MUTED)
    axes.set_xlabel("memory slice", fontsize=8.5, color=MUTED)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def _plain_axes(figure: Figure, title: str, ylabel: str) -> Any:
    axes = figure.subplots()
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
    """
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axes = _plain_axes(figure, title, ylabel)
    for index, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, marker="o", markersize=4, lw=1.6, label=name,
                  color=COLOURS[index % len(COLOURS)])  # fmt: skip
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    axes.legend(frameon=False, fontsize=9)
    return figure


def interference_heatmap(names: Sequence[str], matrix: np.ndarray, title: str) -> Figure:
    """Draw the interference matrix: row slowed down by column, in percent."""
    figure = Figure(figsize=(1.6 + 1.1 * len(names), 1.2 + 0.8 * len(names)), layout="constrained")
    axes = figure.subplots()
    limit = max(0.05, float(np.nanmax(np.abs(matrix))))
    axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:+.0%}", ha="center", va="center", fontsize=9, color=INK)
    axes.set_xticks(range(len(names)), names, fontsize=8.5, rotation=20)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xlabel("beside", fontsize=9, color=MUTED)
    axes.tick_params(length=0)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
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
