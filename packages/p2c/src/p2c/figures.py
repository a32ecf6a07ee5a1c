"""Figures of the report."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .files import write_atomic
from .metrics import Interval
from .result import PipelineResult
from .summary import Arm

matplotlib.rcParams["svg.hashsalt"] = "p2c"
COLOURS = ("#9aa3af", "#c9a227", "#5b8c5a", "#2f6f9f", "#b0413e")


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return write_atomic(path, lambda file: file.write(buffer.getvalue()))


def f1_bars(arms: dict[str, Arm]) -> Figure:
    """Draw the novel F1 of each arm: macro with intervals, and per object."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2.2])
    names = list(arms)
    for place, arm in enumerate(arms.values()):
        m = arm.novel.macro
        error = [[max(0.0, m.value - m.low)], [max(0.0, m.high - m.value)]]
        left.bar(place, m.value, yerr=error, color=COLOURS[place % 5], capsize=3)
    left.set_xticks(range(len(names)), names, rotation=40, ha="right")
    left.set_ylabel("macro F1 of eight held-out objects")
    left.set_ylim(0, 1)
    things = list(next(iter(arms.values())).novel.f1)
    width = 0.8 / len(arms)
    for k, (name, arm) in enumerate(arms.items()):
        x = np.arange(len(things)) + (k - (len(arms) - 1) / 2) * width
        values = np.array(list(arm.novel.f1.values()))
        bounds = np.array([[i.low, i.high] for i in arm.novel.intervals.values()]).T
        error = np.abs(bounds - values)
        style = {"ecolor": "#555b66", "error_kw": {"lw": 0.8}}
        right.bar(x, values, width, yerr=error, color=COLOURS[k % 5], label=name, **style)
    right.set_xticks(range(len(things)), things, rotation=40, ha="right")
    right.set_ylim(0, 1.22)
    right.set_yticks(np.arange(0, 1.01, 0.2))
    right.legend(ncols=3, frameon=False, loc="upper left", fontsize=8)
    right.set_title("F1 per object", fontsize=10)
    return figure


def intervals(panels: dict[str, dict[str, Interval]]) -> Figure:
    """Draw estimates with their intervals, a panel for each figure and a line for each variant."""
    names = list(next(iter(panels.values())))
    figure = Figure(
        figsize=(2.5 + 2.5 * len(panels), 1.0 + 0.34 * len(names)), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, panels.items()):
        for place, estimate in enumerate(values.values()):
            low, high = estimate.value - estimate.low, estimate.high - estimate.value
            error = [[max(0.0, low)], [max(0.0, high)]]
            colour = COLOURS[4] if place == 0 else COLOURS[3]
            axis.errorbar(estimate.value, place, xerr=error, fmt="o", color=colour, capsize=3)
        axis.axvline(values[names[0]].value, color="#cccccc", lw=1, zorder=0)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlim(-0.03, 1.03)  # a dot at either end is seen whole
        axis.set_title(title, fontsize=10)
    return figure


def gallery(result: PipelineResult, count: int = 8) -> Figure:
    """Draw test scenes with held-out objects and the captions of every arm below them."""
    assert result.test is not None
    test = result.test
    chosen = [i for i, d in enumerate(test.domains) if d != "in"][:count]
    columns = 4
    rows = -(-len(chosen) // columns)
    arms = list(result.captions)
    figure = Figure(figsize=(13, 1.2 + 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, chosen):
        axis.imshow(test.images[i].numpy().transpose(1, 2, 0))
        lines = [f"{arm}: {result.captions[arm][i]}" for arm in arms]
        axis.text(
            0, 50.5, "\n".join(lines), va="top", fontsize=7.6, family="DejaVu Sans", linespacing=1.5
        )
        axis.set_title(f"tags: {', '.join(test.tags[i]) or 'none'}", fontsize=8.5)
        axis.set_ylim(72, -0.5)
    return figure


def reward_curves(result: PipelineResult) -> Figure:
    """Draw the reward terms along stage 2."""
    rows = result.curves["rewards"]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, pick, title in (
        (left, "coverage", "images with tags only"),
        (right, "cider", "captioned images"),
    ):
        part = [r for r in rows if (pick == "cider") == ("cider" in r)]
        for k, name in enumerate(dict.fromkeys(n for r in part for n in r)):
            unit, label = {
                "cider": (10, "CIDEr-D / 10"),
                "clipscore": (2.5, "CLIPScore / 2.5"),
            }.get(name, (1, name))
            values = [r[name] / unit for r in part]
            axis.plot(values, color=COLOURS[k + 1], label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("stage 2 step")
        axis.set_ylabel("mean of the samples")
        axis.set_ylim(0, 1)
        axis.legend(frameon=False, fontsize=8)
    return figure


def growth(arms: dict[str, Arm]) -> Figure:
    """Draw how many different words, and verbs among them, the captions of each arm use."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for axis, values, title in zip(
        figure.subplots(1, 2),
        ([a.words_used for a in arms.values()], [a.verbs_used for a in arms.values()]),
        ("different words", "different verbs"),
    ):
        bars = axis.barh(list(arms), values, color=COLOURS[: len(arms)])
        axis.bar_label(bars, padding=3, fontsize=8)
        axis.set_xlim(0, 1.15 * max(values))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
    return figure


def hacking(result: PipelineResult) -> Figure:
    """Draw what the judge gained against what the independent evaluator gained, per scene."""
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis = figure.subplots()
    before, after = "VIVO + XE", "stage 2"
    x = np.array(result.judge_scores[after]) - np.array(result.judge_scores[before])
    y = np.array(result.evaluator_scores[after]) - np.array(result.evaluator_scores[before])
    moved = np.abs(x) + np.abs(y) > 1e-9
    axis.axhline(0, color="#cccccc", lw=1)
    axis.axvline(0, color="#cccccc", lw=1)
    axis.scatter(x[moved], y[moved], s=9, alpha=0.6, color=COLOURS[3])
    hacked = float(((x > 0) & (y < 0))[moved].mean()) if moved.any() else 0.0
    axis.set_title(
        f"reward up, evaluator down: {100 * hacked:.0f} % of changed captions", fontsize=9
    )
    axis.set_xlabel("gain of cosine, judge (the reward)")
    axis.set_ylabel("gain of cosine, evaluator")
    return figure
