"""Pages and figures, made from results that are already there."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from backdoor_ft.data import LabeledData
from backdoor_ft.triggers import Trigger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoor_ft.sequela import Sequela


def render(template: str, **values: Any) -> str:
    """Fill one of the package's HTML templates."""
    environment = Environment(
        loader=PackageLoader("backdoor_ft"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def figure_png(figure: Figure) -> bytes:
    """Render a figure as PNG without dates, so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def picture(figure: Figure, title: str) -> dict[str, str]:
    """Return a figure for inlining into a page."""
    return {"data": base64.b64encode(figure_png(figure)).decode(), "title": title}


def time_line(rows: Sequence[dict[str, float]], phase1: int, title: str) -> Figure:
    """Draw learning rate, ACC and ASR over the steps; rows hold step, lr, acc, asr."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    steps = [r["step"] for r in rows]
    top.plot(steps, [r["lr"] for r in rows], linewidth=0.9, color="tab:gray")
    top.set_ylabel("learning rate")
    top.set_title(title, fontsize=10)
    measured = [r for r in rows if not np.isnan(r["acc"])]
    at = [r["step"] for r in measured]
    bottom.plot(at, [r["acc"] for r in measured], label="ACC", color="tab:blue")
    bottom.plot(at, [r["asr"] for r in measured], label="ASR", color="tab:red")
    for axis in (top, bottom):
        axis.axvline(phase1, color="gray", linewidth=0.8, linestyle="--")
    bottom.set_ylim(-0.03, 1.03)
    bottom.set_xlabel("iteration (dashed: phase 2 begins)")
    bottom.legend(fontsize=9, loc="center right")
    return figure


def trigger_gallery(data: LabeledData, triggers: Sequence[Trigger], index: int = 0) -> Figure:
    """Show one image with each trigger, and the difference scaled to be seen."""
    figure = Figure(figsize=(1.35 * (len(triggers) + 1), 3.2), layout="constrained")
    axes = figure.subplots(2, len(triggers) + 1)
    x = data.inputs[index : index + 1]
    for column, trigger in enumerate([None, *triggers]):
        stamped = x if trigger is None else trigger.apply(x)
        gap = (stamped - x).abs()
        scaled = gap / gap.max() if float(gap.max()) > 0 else gap
        for row, image in enumerate((stamped, scaled)):
            shown = image[0].permute(1, 2, 0).numpy()
            axis = axes[row, column]
            axis.imshow(
                shown[..., 0] if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=1
            )
            axis.set_xticks([])
            axis.set_yticks([])
        name = "image" if trigger is None else trigger.name.replace("_", "\n")
        axes[0, column].set_title(name, fontsize=8)
    axes[0, 0].set_ylabel("triggered", fontsize=8)
    axes[1, 0].set_ylabel("|difference|, scaled", fontsize=8)
    return figure


def bars(
    groups: Sequence[str], series: dict[str, Sequence[float]], ylabel: str, title: str
) -> Figure:
    """Draw grouped bars."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        at = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width
        shown = axis.bar(at, values, width * 0.92, label=name)
        axis.bar_label(shown, fmt="%.2f", fontsize=7, padding=1)
    axis.set_xticks(np.arange(len(groups)), groups)
    axis.set_ylim(0, 1.12)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8, ncols=len(series), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return figure


def roc_figure(attacks: dict[str, Any]) -> Figure:
    """Draw membership ROC curves on logarithmic axes; {label: Membership}."""
    from sklearn.metrics import roc_curve

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis = figure.subplots()
    for label, found in attacks.items():
        false, true, _ = roc_curve(found.members, found.scores)
        keep = false > 0
        axis.loglog(false[keep], true[keep], linewidth=1.1, label=f"{label}: AUC {found.auc:.3f}")
    axis.plot([1e-3, 1], [1e-3, 1], "--", color="gray", linewidth=0.8, label="chance")
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    axis.legend(fontsize=8)
    return figure


def matrix_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw ACC against ASR, one colour for each defence."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(r["defense"] for r in rows))
    for k, name in enumerate(names):
        own = [r for r in rows if r["defense"] == name]
        axis.scatter(
            [r["asr"] for r in own], [r["acc"] for r in own], s=22, label=name,
            color=f"C{k % 10}", marker="osD^v*"[k // 10 % 6],
        )  # fmt: skip
    axis.set_xlabel("ASR (lower is better)")
    axis.set_ylabel("ACC")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sequela_page(found: Sequela, lead: str) -> str:
    """Return the page of an audit."""
    rows = [
        [name, *(f"{value[k]:.3f}" if k in value else "" for k in ("before", "after", "reference"))]
        for name, value in found.values.items()
    ]
    if found.curves:
        half = {c.name: "never" if c.half is None else str(c.half) for c in found.curves}
        steps = (half.get(k, "") for k in ("before", "after", "reference"))
        rows.append(["re-injection: steps to ASR .5", *steps])
    audits = {
        "title": "Audits", "columns": ["audit", "before", "after", "never backdoored"],
        "rows": rows, "note": " ".join(found.notes),
    }  # fmt: skip
    members = {
        "title": "Membership inference",
        "columns": ["model", "attack", "AUC", "TPR at 1 % FPR"],
        "rows": [
            [name, m.attack, _interval(m.auc, *m.auc_interval),
             _interval(m.tpr_at_1, *m.tpr_at_1_interval)]
            for name, attacks in found.membership.items() for m in attacks
        ],
        "note": "AUC .5 and TPR .01 are chance.",
    }  # fmt: skip
    pictures = [picture(found.plot(), "re-injection")] if found.curves else []
    if found.membership:
        last = {name: attacks[-1] for name, attacks in found.membership.items()}
        kind = next(iter(last.values())).attack
        pictures.append(picture(roc_figure(last), f"membership inference by {kind}"))
    tables = [t for t in (audits, members) if t["rows"]]
    return render("report.html.j2", title="Sequela", lead=lead, tables=tables, pictures=pictures)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def matrix_page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page of a benchmark matrix: means of the defences, all cells, ACC against ASR."""
    means = []
    for name in dict.fromkeys(r["defense"] for r in rows):
        own = [r for r in rows if r["defense"] == name and r["status"] == "done"]
        if own:
            keys = ("acc", "asr", "ra", "der", "cpu_s")
            found = [sum(r[k] for r in own) / len(own) for k in keys]
            worst = max(r["asr"] for r in own)
            means.append([name, len(own), *(f"{v:.3f}" for v in found), f"{worst:.3f}"])
    cells = [
        [
            r["attack"], r["defense"], f"{r['ratio']:g}", r["seed"],
            _interval(r["acc"], r["acc_low"], r["acc_high"]),
            _interval(r["asr"], r["asr_low"], r["asr_high"]),
            f"{r['ra']:.3f}", f"{r['der']:.3f}", f"{r['dose']:.0f}", f"{r['displacement']:.2f}",
            f"{r['cpu_s']:.1f}", r["status"],
        ]
        for r in rows
    ]  # fmt: skip
    tables = [
        {"title": "Means over finished cells",
         "columns": ["defence", "cells", "ACC", "ASR", "RA", "DER", "cpu s", "worst ASR"],
         "rows": means, "note": "Weak attacks, refusals and failures are left out, not averaged."},
        {"title": "All cells",
         "columns": ["attack", "defence", "ratio", "seed", "ACC", "ASR", "RA", "DER", "dose",
                     "displacement", "cpu s", "status"],
         "rows": cells, "note": "Wilson intervals of 95 %."},
    ]  # fmt: skip
    over = ", ".join(sorted({f"{r['dataset']} with {r['backbone']}" for r in rows}))
    return render(
        "report.html.j2", title="Benchmark matrix", lead=f"{len(rows)} cells: {over}",
        tables=tables, pictures=[picture(matrix_figure(rows), "ACC against ASR")],
    )  # fmt: skip
