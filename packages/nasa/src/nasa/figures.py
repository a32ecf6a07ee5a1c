"""Figures of searches and mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nasa._files import write_with
from nasa.arch import Architecture
from nasa.hw.dataflows import LEVELS
from nasa.hw.mapper import MappingResult

if TYPE_CHECKING:
    from torch import nn

    from nasa.search.result import Evaluated
    from nasa.training import History

COLORS = {"conv": "#3b6fb6", "shift": "#e0892b", "adder": "#4a9a5b", "skip": "#c9ccd1"}
LEVEL_COLORS = dict(
    zip(
        ("operation", *LEVELS), ("#20262e", "#8c3b3b", "#c98a3a", "#7fa650", "#4f86b8"), strict=True
    )
)
LEVEL_NAMES = {"dram": "DRAM", "noc": "NoC"}


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all."""
    write_with(path, lambda temporary: figure.savefig(temporary, dpi=130, bbox_inches="tight"))


def energy_stacks(results: Mapping[str, MappingResult]) -> Figure:
    """Energy per input by memory level, one bar per mapping, with its EDP on top."""
    figure = Figure(figsize=(1.6 + 1.15 * len(results), 3.6))
    axes = figure.add_subplot()
    bottom = np.zeros(len(results))
    for level in LEVEL_COLORS:
        heights = np.array(
            [sum(table[level] for table in r.energy_by().values()) for r in results.values()]
        )
        axes.bar(
            list(results), heights, bottom=bottom, color=LEVEL_COLORS[level], width=0.62,
            label=LEVEL_NAMES.get(level, level.replace("_", " ")),
        )  # fmt: skip
        bottom += heights
    for i, result in enumerate(results.values()):
        axes.text(
            i, bottom[i] * 1.01, f"EDP {result.edp:.3g}", ha="center", va="bottom", fontsize=8
        )
    axes.set_ylabel("energy per input, mJ")
    axes.set_ylim(0, bottom.max() * 1.12)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    return figure


def chunk_gantt(results: Mapping[str, MappingResult]) -> Figure:
    """When each chunk runs which layer; the longest chunk is the interval between results."""
    rows = [(name, t, r) for name, r in results.items() for t in r.dataflows]
    figure = Figure(figsize=(8, 0.7 + 0.36 * len(rows)))
    axes = figure.add_subplot()
    for y, (_, operator, result) in enumerate(rows):
        for mapped in result.layers:
            if mapped.layer.operator == operator:
                axes.barh(
                    y, mapped.latency_ms, left=mapped.start_ms, height=0.7,
                    color=COLORS[operator], edgecolor="white", linewidth=0.4,
                )  # fmt: skip
    labels = [
        f"{name}: {t} {r.dataflows[t].upper()}, {r.processing_elements[t]} PEs"
        for name, t, r in rows
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds at the accelerator's clock")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def type_strip(architectures: Mapping[str, Architecture]) -> Figure:
    """Each cell's type, expansion and kernel, input to output."""
    cells = max(len(a.choices) for a in architectures.values())
    figure = Figure(figsize=(1.4 + 0.42 * cells, 0.8 + 0.5 * len(architectures)))
    axes = figure.add_subplot()
    for y, architecture in enumerate(architectures.values()):
        for x, candidate in enumerate(architecture.candidates):
            axes.barh(y, 0.94, left=x, height=0.8, color=COLORS[candidate.operator or "skip"])
            if not candidate.is_skip:
                text = f"e{candidate.expansion}\nk{candidate.kernel}"
                axes.text(x + 0.47, y, text, ha="center", va="center", fontsize=7, color="white")
    axes.set_yticks(range(len(architectures)), list(architectures), fontsize=8)
    axes.invert_yaxis()
    axes.set_xticks([x + 0.47 for x in range(cells)], [str(x) for x in range(cells)])
    axes.set_xlabel("cell", fontsize=8)
    axes.set_xlim(0, cells)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    patches = [Patch(color=color, label=name) for name, color in COLORS.items()]
    axes.legend(
        handles=patches, frameon=False, ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1)
    )
    return figure


def pareto(points: Sequence[Evaluated], front: Sequence[Evaluated]) -> Figure:
    """Accuracy against EDP of everything a search evaluated, and its front."""
    figure = Figure(figsize=(5, 3.6))
    axes = figure.add_subplot()
    fits = [p for p in points if np.isfinite(p.edp)]
    axes.scatter([p.edp for p in fits], [100 * p.accuracy for p in fits], s=12, color="#9aa3ad")
    axes.step(
        [p.edp for p in front], [100 * p.accuracy for p in front], where="post", color="#8c3b3b"
    )
    axes.scatter([p.edp for p in front], [100 * p.accuracy for p in front], s=28, color="#8c3b3b")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("EDP, 1e-6 J s (mapped)")
    axes.set_ylabel("validation accuracy, shared weights, %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def loss_curves(
    histories: Mapping[str, History], label: str = "cross entropy, two random paths"
) -> Figure:
    """Training loss per epoch; stages of pretraining are shaded by the last run's."""
    figure = Figure(figsize=(5.6, 3.4))
    axes = figure.add_subplot()
    for name, history in histories.items():
        axes.plot(history.column("loss"), label=name)
    rows = list(histories.values())[-1].rows
    stages = [str(row.get("stage", "")) for row in rows]
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    if len(starts) > 1:
        for i, start in enumerate(starts):
            end = starts[i + 1] if i + 1 < len(starts) else len(rows)
            axes.axvspan(start - 0.5, end - 0.5, color="#000000", alpha=0.04 if i % 2 else 0.0)
            axes.text(
                start - 0.4, 1.0, stages[start], rotation=20, fontsize=6.5, va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def weight_histograms(model: nn.Module) -> Figure:
    """Weights per operator type, with the best Gaussian and the best Laplacian."""
    from nasa.training import weights_by_type

    groups = weights_by_type(model)
    figure = Figure(figsize=(3.1 * len(groups), 2.8))
    for i, (kind, tensor) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), i + 1)
        values = tensor.double().numpy()
        deviation = values.std() or 1.0
        centre = np.median(values)
        spread = np.abs(values - centre).mean() or 1.0
        x = np.linspace(-4 * deviation, 4 * deviation, 200)
        axes.hist(values, bins=80, range=(x[0], x[-1]), density=True, color=COLORS[kind], alpha=0.6)
        gaussian = np.exp(-0.5 * ((x - values.mean()) / deviation) ** 2)
        axes.plot(
            x, gaussian / (deviation * np.sqrt(2 * np.pi)), color="black", lw=1, label="Gaussian"
        )
        laplacian = np.exp(-np.abs(x - centre) / spread) / (2 * spread)
        axes.plot(x, laplacian, color="black", lw=1, ls=":", label="Laplacian")
        axes.set_title(kind, fontsize=9)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        if i == 0:
            axes.legend(frameon=False, fontsize=7)
    return figure


def _stacked(layer: str) -> str:
    """Return "64,384,1x1/1,16" as three short lines."""
    channels, filters, kernel, side = layer.split(",")
    return f"{channels} to {filters}\n{kernel}\n{side} x {side}"


def kernel_bars(rows: Sequence[Mapping[str, float | str]]) -> Figure:
    """Time of each kernel as a multiple of ``nn.Conv2d``'s on the same layer."""
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.add_subplot()
    names = [str(row["layer"]) for row in rows]
    kinds = [key for key in rows[0] if key.endswith("ratio")]
    palette = matplotlib.colormaps["tab10"]
    for i, kind in enumerate(kinds):
        at = np.arange(len(rows)) + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
        label = kind.removesuffix(" ratio")
        axes.bar(
            at, [float(r[kind]) for r in rows], 0.8 / len(kinds), label=label, color=palette(i)
        )
    axes.axhline(1, color="black", lw=0.8)
    # channels, filters / kernel and stride / side, one below the other
    axes.set_xticks(range(len(rows)), [_stacked(name) for name in names], fontsize=8)
    axes.set_ylabel("time / nn.Conv2d's time")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
