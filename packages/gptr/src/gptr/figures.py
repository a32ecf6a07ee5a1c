"""Figures; made from results, never from live state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from gptr._files import write_with
from gptr.data.writers import colour
from gptr.detections import Detections
from gptr.evaluation.bootstrap import Comparison
from gptr.evaluation.coco import Evaluation
from gptr.evaluation.errors import KINDS
from gptr.evaluation.matches import RECALLS
from gptr.explain import Explanation

STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
ARMS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#c44e52", "#64b5cd", "#8c8c8c")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_with(path, lambda p: figure.savefig(p, dpi=130, bbox_inches="tight", facecolor="white"))


def detections(found: Sequence[Detections], titles: Sequence[str], columns: int = 4) -> Figure:
    """Show images with boxes; a colour per class, name and score on top of each box."""
    rows = -(-len(found) // columns)
    columns = min(columns, len(found))
    figure = Figure(figsize=(3.1 * columns, 3.3 * rows), layout="constrained")
    for i, (d, title) in enumerate(zip(found, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        if d.image is not None:
            axes.imshow(d.image)
        else:
            axes.set_xlim(0, d.size[1])
            axes.set_ylim(d.size[0], 0)
        for (x0, y0, x1, y1), s, k in zip(d.xyxy, d.scores, d.labels, strict=True):
            c = colour(int(k))
            axes.add_patch(
                mpl.patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=c, lw=1.4)
            )
            text = d.name(int(k)).rpartition("/")[2][:14]
            axes.text(
                x0,
                y0 - 1,
                f"{text} {s:.2f}",
                fontsize=5.5,
                color="white",
                va="bottom",
                bbox={"facecolor": c, "pad": 0.6, "lw": 0},
            )
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    return figure


def law_maps(explanation: Explanation) -> Figure:
    """Show the image, what one cell attends to under each law, and the groups of each law."""
    with mpl.rc_context(STYLE):
        names = list(explanation.matrices)
        row, column = explanation.busiest_cell()
        rows, columns = explanation.grid
        height, width = explanation.image.shape[:2]
        s = explanation.stride
        ratio = height / width
        figure = Figure(
            figsize=(3.0 * (len(names) + 1), 2 * 3.0 * ratio + 0.9), layout="constrained"
        )
        axes = figure.subplots(2, len(names) + 1)
        extent = (0, columns * s, rows * s, 0)
        for ax in axes.flat:
            ax.imshow(explanation.image, extent=(0, width, height, 0))
            ax.set_axis_off()
            ax.set_xlim(0, width)
            ax.set_ylim(height, 0)
        axes[0, 0].set_title("image; the square is the cell asked", fontsize=8)
        for ax in axes[0]:
            ax.add_patch(
                mpl.patches.Rectangle((column * s, row * s), s, s, fill=False, ec="#d00", lw=1.6)
            )
        text = "\n".join(
            f"{n}: mean cosine distance\nof group tokens {explanation.distances[n]:.2f}"
            + (f", weight {explanation.weights[n]:.2f}" if n in explanation.weights else "")
            for n in names
        )
        axes[1, 0].clear()
        axes[1, 0].set_axis_off()
        axes[1, 0].text(0.0, 0.5, text, fontsize=7.5, va="center", transform=axes[1, 0].transAxes)
        for i, name in enumerate(names, 1):
            heat = np.sqrt(explanation.heat(name, row, column))
            axes[0, i].imshow(
                heat, extent=extent, cmap="magma_r", alpha=0.72, vmin=0, vmax=1, zorder=2
            )
            axes[0, i].set_title(f"{name}: linked cells (darker: more)", fontsize=8)
            groups = explanation.groups[name].reshape(rows, columns).astype(float)
            axes[1, i].imshow(
                np.where(groups < 0, np.nan, groups),
                extent=extent,
                cmap="tab20",
                alpha=0.55,
                vmin=0,
                vmax=19,
                zorder=2,
            )
            axes[1, i].set_title(f"{name}: groups", fontsize=8)
        return figure


def collapse(official: dict[str, float], ours: dict[str, float]) -> Figure:
    """Show the mean cosine distance of group tokens, the authors' graph beside ours."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        ax = figure.add_subplot()
        names = list(ours)
        x = np.arange(len(names))
        floor = 1e-7
        for shift, values, label, c in (
            (-0.2, [max(official[n], floor) for n in names], "official graph", ARMS[5]),
            (0.2, [ours[n] for n in names], "corrected laws", ARMS[0]),
        ):
            bars = ax.bar(x + shift, values, 0.38, label=label, color=c)
            for bar, v in zip(bars, values):
                ax.text(
                    bar.get_x() + bar.get_width() / 2,
                    v * 1.5,
                    f"{v:.1g}" if v < 0.01 else f"{v:.2f}",
                    ha="center",
                    fontsize=7.5,
                )
        ax.set_yscale("log")
        ax.set_ylim(floor, 30)
        ax.axhline(0.2, color="#888", lw=0.8, ls="--")
        ax.text(len(names) - 0.52, 0.26, "0.2", fontsize=7, color="#666")
        ax.set_xticks(x, names)
        ax.set_ylabel("mean cosine distance\nof group tokens (log)")
        ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
        return figure


def frequency_bars(runs: Mapping[str, Sequence[dict[str, float]]], title: str = "") -> Figure:
    """Show AP and AP50 by class frequency per arm; a dot per seed.

    Parameters
    ----------
    runs
        Arm to one dictionary per seed with ``AP``, ``AP50 head``, ``AP50 mid``, ``AP50 tail``.
    """
    keys = ("AP", "AP50 head", "AP50 mid", "AP50 tail")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.1), layout="constrained")
        ax = figure.add_subplot()
        width = 0.8 / len(runs)
        for a, (arm, rows) in enumerate(runs.items()):
            values = np.array([[r.get(k, np.nan) for k in keys] for r in rows], float)
            x = np.arange(len(keys)) - 0.4 + width * (a + 0.5)
            ax.bar(x, np.nanmean(values, 0), width * 0.92, label=arm, color=ARMS[a % len(ARMS)])
            for v in values:
                ax.plot(x, v, "o", ms=2.6, color="#222")
        ax.set_xticks(np.arange(len(keys)), keys)
        ax.set_ylabel("average precision")
        ax.set_title(title, fontsize=9)
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure


def training_curves(runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Show the loss over steps and the law weights over steps."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for a, (arm, rows) in enumerate(runs.items()):
            steps = [r["step"] for r in rows]
            dots = "o" if len(steps) < 3 else ""  # a line of one point shows nothing
            colour = ARMS[a % len(ARMS)]
            left.plot(steps, [r["loss"] for r in rows], label=arm, color=colour, marker=dots)
            for n, name in enumerate(rows[-1].get("law_weights", {})):
                right.plot(
                    steps,
                    [r["law_weights"][name] for r in rows],
                    color=ARMS[n % len(ARMS)],
                    ls=("-", "--", ":", "-.")[a % 4],
                    marker=dots,
                    label=f"{arm}: {name}",
                )
        left.set_yscale("log")
        left.set_xlabel("step")
        left.set_ylabel("loss (log)")
        left.legend(frameon=False, fontsize=7)
        right.set_xlabel("step")
        right.set_ylabel("law weight")
        if right.lines:
            right.legend(frameon=False, fontsize=6.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure


def evaluation(found: Evaluation) -> Figure:
    """Show the precision-recall curve at IoU .5 and .75, AP50 per class, kinds of errors."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        first, second, third = figure.subplots(1, 3)
        table = found.table
        for t, c in ((0, ARMS[0]), (5, ARMS[1])):
            curves = []
            for k in np.flatnonzero(table.objects.sum(0) > 0):
                mine = table.label == k
                tp = table.hit[mine, t].cumsum()
                precision = tp / np.arange(1, len(tp) + 1)
                recall = tp / table.objects[:, k].sum()
                envelope = np.maximum.accumulate(precision[::-1])[::-1]
                at = np.searchsorted(recall, RECALLS)
                curves.append([envelope[i] if i < len(envelope) else 0.0 for i in at])
            if curves:
                label = f"IoU {0.5 + 0.05 * t:.2f}"
                first.plot(RECALLS, np.mean(curves, 0), color=c, label=label)
        first.set_xlabel("recall")
        first.set_ylabel("precision (mean over classes)")
        first.set_ylim(0, 1.02)
        first.legend(frameon=False)
        values = sorted((v for v in found.class_ap50 if v is not None), reverse=True)
        second.bar(np.arange(len(values)), values, color=ARMS[0], width=0.9)
        second.set_xlabel(f"{found.seen} seen classes, best first")
        second.set_ylabel("AP50")
        second.set_ylim(0, 1.02)
        kinds = [found.errors[k] for k in KINDS]
        bars = third.barh(KINDS, kinds, color=[ARMS[2], *[ARMS[5]] * 5, ARMS[7]])
        third.bar_label(bars, fontsize=7.5, padding=2)
        third.invert_yaxis()
        third.set_xlim(0, max([*kinds, 1]) * 1.15)
        third.set_xlabel("detections (missed: objects)")
        return figure


def bars(values: Mapping[str, float], label: str) -> Figure:
    """Show a number per name as horizontal bars, in the given order."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.7 + 0.24 * len(values)), layout="constrained")
        ax = figure.add_subplot()
        drawn = ax.barh(range(len(values)), list(values.values()), color=ARMS[0])
        ax.bar_label(drawn, fmt="%.4g", padding=3, fontsize=8)
        ax.set_yticks(range(len(values)), list(values))
        ax.invert_yaxis()
        ax.margins(x=0.1)
        ax.set_xlabel(label)
    return figure


def intervals(found: Sequence[Comparison], label: str) -> Figure:
    """Show differences with their 95 % intervals, and nothing (0) as a line."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 0.9 + 0.4 * len(found)), layout="constrained")
        ax = figure.add_subplot()
        for i, c in enumerate(found):
            ax.plot((c.low, c.high), (i, i), color=ARMS[0], lw=2)
            ax.plot(c.difference, i, "o", color=ARMS[0])
        ax.axvline(0, color="#888888", lw=0.8, ls="--")
        ax.set_yticks(range(len(found)), [c.figure for c in found])
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.set_xlabel(label)
    return figure
