"""Pages and figures, made from results that are already there."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitcod.plan import SparsityPlan
    from vitcod.sim import SimulationReport
    from vitcod.stats import AttentionStats


def render(template: str, **values: Any) -> str:
    """Fill one of the package's HTML templates."""
    environment = Environment(
        loader=PackageLoader("vitcod"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def page(
    title: str, lead: str, tables: list[dict[str, Any]], figures: list[tuple[str, Figure]]
) -> str:
    """Render one self-contained page: figures are embedded."""
    import base64

    encoded = [
        {"title": name, "data": base64.b64encode(figure_png(figure)).decode()}
        for name, figure in figures
    ]
    return render("page.html.j2", title=title, lead=lead, tables=tables, figures=encoded)


def figure_png(figure: Figure) -> bytes:
    """Render a matplotlib figure as PNG without dates, so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def maps_figure(
    stats: AttentionStats, plan: SparsityPlan, heads: Sequence[tuple[int, int]]
) -> Figure:
    """Averaged map, kept keys and polarized mask of some (layer, head) pairs."""
    figure = Figure(figsize=(2.5 * len(heads) + 0.6, 7.4), layout="constrained")
    axes = figure.subplots(3, len(heads), squeeze=False)
    for c, (layer, head) in enumerate(heads):
        p = plan.layer(layer)
        shown = stats.maps[layer][head]
        axes[0, c].imshow(shown, cmap="magma", vmax=float(np.quantile(shown, 0.99)))
        axes[0, c].set_title(f"layer {layer}, head {head}", fontsize=9)
        axes[1, c].imshow(~p.keep[head], cmap="gray", interpolation="nearest")
        density = 100 * float(p.keep[head].mean())
        axes[1, c].set_title(f"{density:.1f} % kept", fontsize=9)
        axes[2, c].imshow(~p.polarized(head), cmap="gray", interpolation="nearest")
        n = 0 if p.num_global is None else int(p.num_global[head])
        axes[2, c].axvline(n - 0.5, color="tab:red", linewidth=1)
        axes[2, c].set_title(f"{n} global tokens", fontsize=9)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    for r, name in enumerate(("averaged attention", "kept keys (black)", "polarized")):
        axes[r, 0].set_ylabel(name, fontsize=9)
    return figure


def masks_figure(plan: SparsityPlan, heads: Sequence[tuple[int, int]]) -> Figure:
    """Mask and polarized mask of some (layer, head) pairs."""
    figure = Figure(figsize=(2.5 * len(heads) + 0.6, 5.2), layout="constrained")
    axes = figure.subplots(2, len(heads), squeeze=False)
    for c, (layer, head) in enumerate(heads):
        p = plan.layer(layer)
        axes[0, c].imshow(~p.keep[head], cmap="gray", interpolation="nearest")
        density = 100 * float(p.keep[head].mean())
        axes[0, c].set_title(f"layer {layer}, head {head}: {density:.1f} %", fontsize=9)
        axes[1, c].imshow(~p.polarized(head), cmap="gray", interpolation="nearest")
        n = 0 if p.num_global is None else int(p.num_global[head])
        axes[1, c].set_title(f"{n} global tokens first", fontsize=9)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def density_figure(plan: SparsityPlan) -> Figure:
    """Heat map of the kept share of every head."""
    heads = max(p.heads for p in plan)
    values = np.full((heads, len(plan)), np.nan)
    for i, p in enumerate(plan):
        values[: p.heads, i] = 100 * p.nnz / (p.queries * p.keys)
    size = (max(4.5, 0.55 * len(plan) + 1.8), max(2.2, 0.4 * heads + 1.2))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis", aspect="auto")
    low, top = np.nanmin(values), np.nanmax(values)
    for h in range(heads):
        for i in range(len(plan)):
            if np.isfinite(values[h, i]):
                colour = "black" if values[h, i] > low + 0.6 * (top - low) else "white"
                axis.text(
                    i, h, f"{values[h, i]:.0f}", ha="center", va="center", fontsize=8, color=colour
                )
    axis.set_xlabel("layer")
    axis.set_ylabel("head")
    axis.set_xticks(range(len(plan)))
    axis.set_yticks(range(heads))
    figure.colorbar(image, label="kept scores, %")
    return figure


def pareto_figure(dense: float, points: dict[str, list[tuple[float, float]]]) -> Figure:
    """Accuracy over sparsity, one line per kind of mask, with the dense model."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.axhline(100 * dense, color="gray", linestyle="--", linewidth=1, label="dense")
    for name, values in points.items():
        axis.plot(*zip(*[(100 * s, 100 * a) for s, a in values]), marker="o", label=name)
    axis.set_xlabel("dropped scores, %")
    axis.set_ylabel("top-1 accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    return figure


def cycles_figure(report: SimulationReport) -> Figure:
    """Attention cycles and end-to-end cycles of every machine, side by side."""
    names = ["ViTCoD", *report.baselines]
    attention = [report.attention, *report.baselines.values()]
    rest = report.linear + report.ffn
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.barh(names, attention, color=["tab:green"] + ["tab:gray"] * (len(names) - 1))
    left.set_title("attention alone", fontsize=10)
    right.barh(names, attention, color="tab:orange", label="attention")
    right.barh(names, [rest] * len(names), left=attention, color="tab:blue", label="linear and FFN")
    right.set_title("end to end", fontsize=10)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for axis, values in ((left, attention), (right, [a + rest for a in attention])):
        axis.invert_yaxis()
        axis.set_xlabel("cycles at 500 MHz")
        axis.set_xlim(0, 1.3 * max(values))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        for i, value in enumerate(values):
            axis.text(value, i, f" {value:,.0f}", va="center", fontsize=8)
    return figure


def roofline_figure(report: SimulationReport, keys: list[int]) -> Figure:
    """Layers of the plan under the accelerator's roofline; the dense layer for comparison."""
    arch = report.arch
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    intensity = np.geomspace(0.5, 512, 50)
    ridge = np.minimum(intensity * arch.bytes_per_cycle, arch.macs)
    axis.plot(intensity, ridge, color="black", label="bound")
    x = [c.macs / c.traffic for c in report.layers]
    y = [c.macs / c.total for c in report.layers]
    axis.scatter(x, y, s=22, label="layers of the plan")
    axis.axvline(2 * keys[0] / 4, color="gray", linestyle=":", label="dense attention")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("MACs per DRAM byte")
    axis.set_ylabel("MACs per cycle")
    axis.legend(fontsize=8, loc="lower right")
    return figure


def amdahl_figure(shares: dict[str, float], speedup: float) -> Figure:
    """End-to-end speed-up over the attention's speed-up, for several shares of attention."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    s = np.geomspace(1, 1000, 100)
    for name, share in shares.items():
        line = axis.plot(s, 1 / (1 - share + share / s), label=f"{name}: {100 * share:.0f} %")
        axis.scatter(
            [speedup], [1 / (1 - share + share / speedup)], color=line[0].get_color(), s=22
        )
    axis.set_xscale("log")
    axis.set_xlabel("attention is so many times faster (dots: this run)")
    axis.set_ylabel("the model is so many times faster")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, title="attention's share of the time", title_fontsize=8)
    return figure


def speed_figure(rows: list[tuple[str, float, float]]) -> Figure:
    """Milliseconds of dense SDPA and of sparse attention."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    at = np.arange(len(rows))
    axis.bar(at - 0.2, [r[1] for r in rows], 0.4, label="dense SDPA", color="tab:gray")
    axis.bar(at + 0.2, [r[2] for r in rows], 0.4, label="vitcod", color="tab:green")
    for i, (_, dense, sparse) in enumerate(rows):
        axis.text(i + 0.2, sparse, f"{dense / sparse:.1f}x", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(at, [r[0] for r in rows])
    axis.set_ylabel("milliseconds")
    axis.legend(fontsize=8)
    return figure
