"""Figures, made from saved results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg", force=False)
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLORS = {
    "resident": "#8c96a8",
    "cache": "#3b6fb6",
    "gradients": "#d98c3f",
    "activations": "#5aa469",
}


def _axes(size: tuple[float, float] = (6.4, 3.6)) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def loss_curves(unlimited: Sequence[float], limited: Sequence[float], share: float) -> Figure:
    """Draw both loss curves; they lie on top of each other."""
    figure, axes = _axes()
    axes.plot(unlimited, color="#c9ced8", linewidth=6, label="all in memory (plain PyTorch)")
    axes.plot(
        limited, color="#3b6fb6", linewidth=1.5, label=f"device holds 1/{share:.0f} of the state"
    )
    axes.set(xlabel="step", ylabel="cross entropy per byte (nats)")
    axes.legend(frameon=False)
    return figure


def memory_timeline(samples: Mapping[str, Sequence[float]], budget: float) -> Figure:
    """Stack device bytes by class over the operators of a step, under the budget line."""
    figure, axes = _axes((6.4, 3.8))
    names = [n for n in COLORS if n in samples and max(samples[n], default=0) > 0]
    mib = [[v / 2**20 for v in samples[n]] for n in names]
    axes.stackplot(range(len(mib[0])), *mib, labels=names, colors=[COLORS[n] for n in names])
    axes.axhline(budget / 2**20, color="#b03030", linewidth=1.4)
    axes.text(0, budget / 2**20, " device budget", color="#b03030", va="bottom", fontsize=9)
    axes.set(
        xlabel="operator of a training step",
        ylabel="device memory (MiB)",
        xlim=(0, len(mib[0]) - 1),
    )
    axes.set_ylim(0, budget / 2**20 * 1.35)
    axes.legend(frameon=False, loc="upper right", ncols=len(names), fontsize=8)
    return figure


def traffic_law(rows: Sequence[Mapping[str, float]], layers: int) -> Figure:
    """Draw measured loads against the closed form 2n - k."""
    figure, axes = _axes()
    blocks = [r["blocks"] for r in rows]
    axes.plot(
        blocks,
        [r["law"] for r in rows],
        color="#c9ced8",
        linewidth=6,
        label=f"2n - k, n = {layers}",
    )
    axes.plot(
        blocks, [r["loads"] for r in rows], "o", color="#3b6fb6", label="loads counted in training"
    )
    axes.set(xlabel="blocks k of the cache", ylabel="chunk loads per step", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def throughput(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw predicted and measured steps per second over the budget."""
    figure, axes = _axes()
    budgets = [r["budget"] / 2**20 for r in rows]
    axes.plot(budgets, [1 / r["predicted"] for r in rows], "--", color="#8c96a8", label="predicted")
    axes.plot(budgets, [1 / r["measured"] for r in rows], "o-", color="#3b6fb6", label="measured")
    axes.set(xlabel="device budget (MiB)", ylabel="steps per second", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def roofline(rows: Sequence[Mapping[str, Any]], stream: float) -> Figure:
    """Draw the memory rate of each AdamW pass against the stream limit (bytes per second)."""
    figure, axes = _axes((6.4, 3.2))
    names = [str(r["name"]) for r in rows]
    axes.barh(names, [r["bytes_per_second"] / 1e9 for r in rows], color="#3b6fb6", height=0.55)
    axes.axvline(stream / 1e9, color="#b03030", linewidth=1.4)
    axes.text(stream / 1e9, -0.75, "4 reads, 3 writes ", color="#b03030", ha="right", fontsize=9)
    axes.set(xlabel="useful memory traffic (GB/s), one thread")
    axes.set_ylim(len(rows) - 0.4, -1.0)
    return figure


def save(figure: Figure, path: Any) -> None:
    """Write a figure and forget it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
