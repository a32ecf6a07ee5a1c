"""Figures, made from results that are already there."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from .files import write_atomic

if TYPE_CHECKING:
    from .result import ConsistencyReport
    from .tables import PairTable

BLUE, ORANGE, GREEN, RED, GREY = "#3566a8", "#d9822b", "#3a8f5c", "#b8402f", "#8a8a8a"
NAMES = {
    "ag": "Arnold-Gokhale", "mlm": "MLM itself", "hcb": "HCB", "mrf_local": "MRF, local",
    "mrf": "MRF, logits", "naive": "naive product", "chain_ij": "chain i, j",
    "chain_ji": "chain j, i", "hodge": "Hodge",
}  # fmt: skip


def new(width: float = 7.2, height: float = 3.8, columns: int = 1) -> tuple[Figure, Any]:
    """Make an empty figure; its axes as one object or an array."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """PNG without dates, so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG atomically."""
    content = png(figure)
    return write_atomic(path, lambda file: file.write(content))


def data_uri(figure: Figure) -> str:
    """PNG as text for a page of one file."""
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode()


def gap_histogram(report: ConsistencyReport, ax: Any = None) -> Any:
    """Histogram of the gold gaps on a logarithmic axis, with the noise floor."""
    from .result import column

    values = np.abs(column(report.rows, "u_gamma_gold"))
    values = np.maximum(values[np.isfinite(values)], 1e-12)
    floor = report.floor.get("gamma_p95")
    figure = None
    if ax is None:
        figure, ax = new()
    low = min(values.min(), floor or values.min()) / 2
    bins = np.geomspace(max(low, 1e-9), max(values.max() * 1.5, 1e-8), 48)
    ax.hist(values, bins=bins, color=BLUE, label=f"{len(values)} probes")
    ax.axvline(np.median(values), color=ORANGE, label=f"median {np.median(values):.3g} nats")
    if floor:
        ax.axvspan(bins[0], floor, color=GREY, alpha=0.3,
                   label=f"noise floor, 95 % below {floor:.1e}")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(bins[0], bins[-1])
    ax.set_xlabel("|Γ| of the gold quadruple (nats)")
    ax.set_ylabel("probes")
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    return figure or ax.figure


def ecdf(report: ConsistencyReport) -> Figure:
    """Cumulative shares of |Γ| and |log J1/J2|, each against its floor."""
    from .result import column

    figure, ax = new()
    for source, name, colour in (
        ("u_gamma_gold", "unary: |Γ|", BLUE),
        ("p_path_gold", "path: |log J1/J2|", ORANGE),
    ):
        values = np.abs(column(report.rows, source))
        values = np.sort(np.maximum(values[np.isfinite(values)], 1e-9))
        if len(values):
            ax.step(values, np.arange(1, len(values) + 1) / len(values), color=colour,
                    where="post", label=name)  # fmt: skip
    for key, colour in (("gamma_p95", BLUE), ("path_p95", ORANGE)):
        if report.floor.get(key):
            ax.axvline(report.floor[key], color=colour, linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_xlabel("nats (dotted: noise floor)")
    ax.set_ylabel("share of probes below")
    ax.legend(fontsize=8, frameon=False)
    return figure


def path_scatter(report: ConsistencyReport) -> Figure:
    """Log J1/J2 against Γ: the two levels measure different things."""
    from .result import column

    figure, ax = new(5.4, 4.4)
    x, y = column(report.rows, "u_gamma_gold"), column(report.rows, "p_path_gold")
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.axvline(0, color=GREY, linewidth=0.7)
    ax.scatter(x, y, s=12, color=BLUE, alpha=0.7, linewidths=0)
    ax.set_xlabel("Γ of the gold quadruple (nats, unary level)")
    ax.set_ylabel("log J1/J2 of the gold pair (nats, path level)")
    return figure


def joint_bars(report: ConsistencyReport) -> Figure:
    """Unary and pair negative log-likelihood per token of every joint, with intervals."""
    joints = report.summary["joints"]
    order = sorted(joints, key=lambda m: joints[m]["u_nll"]["mean"])
    figure, axes = new(9.0, 3.8, 2)
    for axis, metric, title in zip(
        axes, ("u_nll", "p_nll"), ("each token given the other", "the pair")
    ):
        shown = [m for m in order if metric in joints[m]]
        means = np.asarray([joints[m][metric]["mean"] for m in shown])
        ends = np.asarray([joints[m][metric]["mean_interval"] for m in shown])
        places = np.arange(len(shown))[::-1]
        colours = [ORANGE if m == "ag" else GREY if m == "mlm" else BLUE for m in shown]
        axis.barh(places, means, color=colours, height=0.65)
        axis.errorbar(means, places, xerr=np.abs(ends.T - means), fmt="none", ecolor="black",
                      elinewidth=1, capsize=2)  # fmt: skip
        axis.set_yticks(places, [NAMES.get(m, m) for m in shown], fontsize=9)
        axis.set_xlim(0.9 * ends.min(), 1.03 * ends.max())
        axis.set_xlabel(f"NLL of {title} (nats per token)", fontsize=9)
    return figure


def token_heatmap(table: PairTable, largest: int = 14) -> Figure:
    """Which candidates are inconsistent: double-centred log p(a|b) - log p(b|a)."""
    from .compat import difference

    d = difference(table)
    d = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    rows = np.sort(np.argsort(-np.abs(d).max(1))[:largest])
    columns = np.sort(np.argsort(-np.abs(d).max(0))[:largest])
    shown = d[np.ix_(rows, columns)]
    figure, ax = new(6.6, 5.2)
    limit = float(np.abs(shown).max()) or 1.0
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    name = [table.labels_a[r] if table.labels_a else str(r) for r in rows]
    other = [table.labels_b[c] if table.labels_b else str(c) for c in columns]
    ax.set_yticks(range(len(rows)), name, fontsize=8)
    ax.set_xticks(range(len(columns)), other, fontsize=8, rotation=60, ha="right")
    ax.set_ylabel("candidates of [1]")
    ax.set_xlabel("candidates of [2]")
    figure.colorbar(image, ax=ax, label="curl part (nats)")
    return figure


def eoc_curves(
    curves: Mapping[str, Sequence[dict[str, Any]]],
    published: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Accuracy and disagreement by number of conditionals."""
    figure, (left, right) = new(9.0, 3.6, 2)
    colours = [BLUE, ORANGE, GREEN, RED]
    for (name, rows), colour in zip(curves.items(), colours):
        n = [row["n"] for row in rows]
        left.plot(n, [100 * r["accuracy"] for r in rows], marker="o", ms=3.5, color=colour,
                  label=name)  # fmt: skip
    first = next(iter(curves.values()))
    right.plot([r["n"] for r in first], [100 * r["disagreement"] for r in first], marker="o",
               ms=3.5, color=BLUE, label="this model")  # fmt: skip
    if published:
        right.plot(range(1, len(published) + 1), [d for _, d in published], marker="s", ms=3,
                   color=GREY, label="authors: UL2-20B, LAMBADA")  # fmt: skip
    left.set_ylabel("accuracy (%)")
    right.set_ylabel("patterns disagree (%)")
    for axis in (left, right):
        axis.set_xlabel("conditionals in the ensemble")
        axis.legend(fontsize=8, frameon=False)
    return figure


def against_authors(ours: dict[str, float], authors: dict[str, dict[str, float]]) -> Figure:
    """Order test: our figures beside those recomputed from the authors' files."""
    keys = {
        "log_median": "median\n|log J1/J2|",
        "log_mean": "mean\n|log J1/J2|",
        "relative_median": "median\nrelative gap",
        "relative_mean": "mean\nrelative gap",
        "share_above_ln2": "share above\nln 2",
    }
    figure, ax = new(7.6, 3.6)
    series = {"this model": ours, **authors}
    width = 0.8 / len(series)
    for s, ((name, values), colour) in enumerate(zip(series.items(), (ORANGE, BLUE, GREY))):
        x = np.arange(len(keys)) + (s - (len(series) - 1) / 2) * width
        bars = ax.bar(x, [values[k] for k in keys], width * 0.92, color=colour, label=name)
        ax.bar_label(bars, fmt="%.2f", fontsize=7)
    ax.set_xticks(range(len(keys)), list(keys.values()), fontsize=8)
    ax.legend(fontsize=8, frameon=False)
    return figure


def score_histogram(per_token: Sequence[float]) -> Figure:
    """Histogram of pseudo-log-likelihoods per token."""
    values = np.asarray(per_token, float)
    values = values[np.isfinite(values)]
    figure, ax = new()
    ax.hist(values, bins=min(40, max(5, len(values) // 4)), color=BLUE, edgecolor="white",
            label="texts")  # fmt: skip
    if len(values):
        ax.axvline(values.mean(), color=ORANGE, label=f"mean {values.mean():.3g} nats")
    ax.set_xlabel("pseudo-log-likelihood per token (nats)")
    ax.set_ylabel("texts")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the legend
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def token_bars(tokens: Sequence[str], log_p: Sequence[float], largest: int = 40) -> Figure:
    """Log-probability of every token of one text, given all others."""
    shown = min(len(tokens), largest)
    figure, ax = new(9.0, 3.2)
    ax.bar(range(shown), list(log_p)[:shown], color=BLUE, width=0.8)
    ax.set_xticks(range(shown), list(tokens)[:shown], rotation=60, ha="right", fontsize=8)
    ax.set_ylabel("log-probability (nats)")
    return figure


def comparison(rows: Sequence[dict[str, Any]], first: str, second: str) -> Figure:
    """Medians of two runs, one panel of bars in per cent of A."""
    shown = [r for r in rows if r["change_percent"] is not None]
    figure, ax = new(7.2, 0.42 * len(shown) + 1.4)
    places = np.arange(len(shown))[::-1]
    values = [r["change_percent"] for r in shown]
    ax.barh(places, values, color=[GREEN if v < 0 else RED for v in values], height=0.6)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(places, [f"{r['measure']} ({r['level']})" for r in shown], fontsize=9)
    ax.set_xlabel(f"change of the median, {second} against {first} (%)")
    return figure
