"""The page of ``migperf report``: a study's folder or a table of measurements, as figures."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .boards import Board, board_names, load_board
from .commands.common import write_text
from .errors import InputError
from .figures import (
    Panel,
    SliceRow,
    bar_groups,
    curve_panels,
    curves,
    draw_cores,
    draw_layouts,
    interference_heatmap,
    pareto_figure,
    save_figure,
)
from .interference import antt, fairness, stp
from .layout import Layout
from .measurements import Measurement, MeasurementTable, load_measurements
from .partitions.base import CoreLayout
from .placement import gpu_instance_id
from .planner.exact import solve_exact
from .planner.model import Demand, build_problem, demand_name, load_demands
from .planner.pareto import TradeOff, batch_points, energy_per_sample, slo_sweep, trade_off
from .report import environment_line, render
from .study import environment

__all__ = ["study_report"]

_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
_MOST_LAYOUTS = 12
_Section = dict[str, Any]
_Saver = Callable[[str, Figure], str]


def study_report(runs: Path, out: Path, demands: Path | None = None) -> None:
    """Write the report of measurements, with its figures beside it.

    Parameters
    ----------
    runs : Path
        Folder that `migperf run` wrote, or what `load_measurements` reads.
    out : Path
        HTML file.
    demands : Path, optional
        Demands file: adds what the planner makes of the measurements.

    Raises
    ------
    InputError
        Something cannot be read, or nothing ran.
    """
    wanted = load_demands(demands) if demands is not None else None

    def save(name: str, figure: Figure) -> str:
        path = out.with_name(f"{out.stem}-{name}.svg")
        save_figure(figure, path)
        return path.name

    sections: list[_Section] = []
    machine, lead, cores = environment(), "", len(os.sched_getaffinity(0))
    if (runs / "summary.json").is_file():
        summary, meta = _load(runs, "summary.json"), _load(runs, "meta.json")
        machine, cores = meta["environment"], int(meta["environment"]["threads"])
        sections += _study_sections(runs, summary, cores, save)
        lead = f"{len(summary['cases'])} cases, {meta['seconds']:.0f} seconds of measurement. "
        if meta["noise"]:
            sections.append(
                {"title": "Disturbed windows", "text": "Kept on request. Read the figures with "
                 "care.", "columns": ["case and cause"], "rows": [[n] for n in meta["noise"]]}
            )  # fmt: skip
    table = load_measurements(runs)
    board = wanted[0] if wanted else _board_of(table)
    lead += f"{len(table)} measured points of {len(table.workloads)} workload(s)."
    sections += _curve_sections(table, board, cores, save)
    if wanted:
        sections += _plan_sections(table, *wanted, save)
    sections.append(_points_section(table, board))
    write_text(out, render("migperf report", lead, sections, environment_line(machine)))


def _load(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"runs: {str(folder / name)!r} cannot be read ({error})") from None
    if not isinstance(data, dict) or data.get("schema_version") != 1:
        raise InputError(f"runs: {str(folder / name)!r} is not of schema version 1")
    return data


def _board_of(table: MeasurementTable) -> Board | None:
    """First board that has all measured profiles, or None for CPU partitions."""
    names = {r.profile for r in table}
    boards = (load_board(name) for name in board_names())
    return next((b for b in boards if names <= {p.name for p in b.gpu_profiles}), None)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "too few samples"


# A study


def _study_sections(
    runs: Path, summary: dict[str, Any], cores: int, save: _Saver
) -> list[_Section]:
    rows = [r for r in summary["rows"] if r["status"] in ("ok", "partial")]
    if not rows:
        raise InputError(f"runs: {str(runs)!r} has no case that ran")
    table = [
        [r["case"], r["tenant"], r["partition"], r["status"], r.get("throughput_text", ""),
         *(_short(r[k]) if k in r else "" for k in ("p50_ms", "p95_ms", "p99_ms"))]
        for r in summary["rows"]
    ]  # fmt: skip
    # Pairs and sweeps have figures of their own below.
    plain = [c["label"] for c in summary["cases"] if "[" not in c["label"]]
    shown = [c for c in plain if any(r["case"] == c for r in rows)]
    sections = _layout_sections(summary, cores, save)
    if shown:
        totals = [sum(r["throughput"] for r in rows if r["case"] == c) for c in shown]
        labels = [c.replace(":", ":\n", 1) for c in shown]
        figure = bar_groups(labels, {"sum of tenants": totals}, "Throughput by case",
                            "samples/s", number="{:.4g}")  # fmt: skip
        tails = {k: v for k, v in _tail(runs).items() if k in shown}
        sections += [
            {"title": "Throughput", "figure": save("throughput", figure),
             "text": "Mean over repeats; the table gives 95 % bootstrap intervals over repeats."},
            {"title": "Latency percentiles",
             "figure": save("latency", curves(tails, "Latency by case", "percentile", "ms",
                                              logy=True)),
             "text": "Done minus scheduled, over all raw samples; nothing is averaged over "
             "tenants."},
        ]  # fmt: skip
    columns = ["case", "tenant", "partition", "status", "samples/s", "p50 ms", "p95 ms", "p99 ms"]
    sections += [*_interference_sections(summary, save), *_sharing_sections(summary, rows)]
    return [*sections, {"title": "Cases", "columns": columns, "rows": table}]


def _tail(runs: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Percentiles of the latencies of each case, as far as there are samples for them."""
    values: dict[str, list[float]] = {}
    with (runs / "samples.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["done"]:
                latency = (float(row["done"]) - float(row["scheduled"])) * 1000
                values.setdefault(row["case"], []).append(latency)
    found = {}
    for case, latencies in values.items():
        shares = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
        kept = [s for s in shares if len(latencies) >= 10 / (1 - s) or s <= 0.9]
        picks = np.quantile(latencies, kept, method="inverted_cdf").tolist()
        found[case] = ([100 * s for s in kept], picks)
    return found


def _layout_sections(summary: dict[str, Any], cores: int, save: _Saver) -> list[_Section]:
    figures = []
    gpus: dict[str, list[str]] = {}
    blocks: dict[str, list[tuple[int, int, str]]] = {}
    for case in summary["cases"]:
        if "[" in case["label"]:
            continue
        names: list[str] = list(case["workloads"])
        if case["backend"] == "mig":
            gpus.setdefault(case["layout"], names)
        elif case["backend"] in ("whole", "shared", "cpuset"):
            blocks[case["label"]] = _core_blocks(case["backend"], case["layout"], names, cores)
    partitions = {
        r["partition"] for r in summary["rows"] if r["case"].startswith("mig:")
    }  # fmt: skip
    if gpus:
        wanted = {p.split("c.")[-1] for p in partitions}
        board = next(
            (b for b in map(load_board, board_names())
             if wanted <= {p.name for p in b.gpu_profiles}), None
        )  # fmt: skip
        if board is not None:
            drawn = []
            for layout, tenants in gpus.items():
                placed = Layout.parse(layout).solve(board).placements
                ordered = sorted(placed, key=lambda p: _instance_order(board, p.start, p.size))
                running = {p.start: n for p, n in zip(ordered, tenants, strict=False)}
                drawn.append(SliceRow(layout, placed, running))
            figure = draw_layouts(board, drawn, f"Layouts on {board.name}")
            figures.append(save("layouts", figure))
    if blocks:
        title = "Who runs on which cores"
        figures.append(save("cores", draw_cores(cores, list(blocks.items()), title)))
    return [{"title": "Layouts", "figures": figures}] if figures else []


def _instance_order(board: Board, start: int, size: int) -> int:
    """Driver's id of an instance; devices, and so tenants, are in this order."""
    return gpu_instance_id(board.memory_slices, start, size)


def _core_blocks(
    backend: str, layout: str, names: Sequence[str], cores: int
) -> list[tuple[int, int, str]]:
    if backend != "cpuset":
        return [(0, cores, name) for name in names]
    found, first = [], 0
    for number, part in enumerate(CoreLayout.parse(layout).parts):
        found.append((first, part, names[number] if number < len(names) else ""))
        first += part
    return found


def _interference_sections(summary: dict[str, Any], save: _Saver) -> list[_Section]:
    figures = []
    for number, table in enumerate(summary["interference"]):
        where = f"{table['backend']}:{table['layout']}"
        for kind, word in (("matrix", "slowdown minus one (p50)"),
                           ("isolation", "isolation index (p99 alone / p99 beside)")):  # fmt: skip
            values = np.array([[np.nan if v is None else v for v in row] for row in table[kind]])
            figure = interference_heatmap(
                table["names"], values, f"{where}: {word}", index=kind == "isolation"
            )
            figures.append(save(f"{kind}-{number}", figure))
    if not figures:
        return []
    text = (
        "The tenant of the row, in the first partition, beside the tenant of the column. Alone and "
        "together it has the same partition, so the difference is the neighbour's doing. Red is "
        "worse."
    )
    return [{"title": "Interference and isolation", "text": text, "figures": figures}]


def _sharing_sections(summary: dict[str, Any], rows: list[dict[str, Any]]) -> list[_Section]:
    """System throughput, turnaround and fairness, where a tenant also ran alone on everything."""
    what = {c["label"]: c["workloads"] for c in summary["cases"]}
    backend = {c["label"]: c["backend"] for c in summary["cases"]}
    whole = {
        what[r["case"]][r["tenant"]]: r["throughput"]
        for r in rows if backend[r["case"]] == "whole"
    }  # fmt: skip
    found = []
    for case, tenants in what.items():
        here = [r for r in rows if r["case"] == case]
        if len(here) < 2 or any(tenants[r["tenant"]] not in whole for r in here):
            continue
        rates = [r["throughput"] for r in here]
        base = [whole[tenants[r["tenant"]]] for r in here]
        found.append([case, len(here), *(f"{f(rates, base):.2f}" for f in (stp, antt, fairness))])
    if not found:
        return []
    text = (
        "Progress of a tenant is its throughput over what it has alone on the whole machine. STP "
        "is the sum (more is better), ANTT the mean of the inverse (less is better), fairness "
        "Jain's index (1 is even)."
    )
    columns = ["case", "tenants", "STP", "ANTT", "fairness"]
    return [{"title": "What sharing yields", "text": text, "columns": columns, "rows": found}]


# Measured points


def _copies(table: MeasurementTable, board: Board | None, cores: int) -> dict[str, int]:
    """How many partitions of each kind one device holds."""
    found = {}
    for name in {r.profile for r in table}:
        cut = re.fullmatch(r"(\d+)c", name)
        if board is not None:
            found[name] = board.profile(name).count
        else:
            found[name] = max(1, cores // int(cut[1])) if cut else 1
    return found


def _by_size(table: MeasurementTable, board: Board | None, names: set[str]) -> list[str]:
    if board is None:
        return sorted(names)
    return sorted(names, key=lambda n: (board.profile(n).compute_slices, board.profile(n).size))


def _curve_sections(
    table: MeasurementTable, board: Board | None, cores: int, save: _Saver
) -> list[_Section]:
    sections = []
    copies = _copies(table, board, cores)
    for number, (workload, mode) in enumerate(table.workloads):
        rows = [r for r in table.select(workload, mode) if r.status == "ok"]
        if len({r.batch for r in rows}) < 2:
            continue
        figures = [save(f"curves-{number}", _curves_of(rows, table, board, f"{workload}, {mode}"))]
        points = batch_points(table, workload, mode, copies)
        figures.append(
            save(
                f"front-{number}",
                pareto_figure(
                    [(p.latency_ms, p.rate, f"{p.profile}, {p.batch}", p.on_front) for p in points],
                    f"{workload}, {mode}: latency against throughput (partition, batch)",
                    "ms per batch", "samples/s of a device full of such partitions", log=True,
                ),
            )
        )  # fmt: skip
        text = "Per partition over the batch size. "
        known = [r for r in rows if not math.isnan(energy_per_sample(r, board))]
        if not known:
            text += "No energy counter was readable, so there is no energy curve. "
        elif any(math.isnan(r.joules) for r in known):
            text += (
                "Energy is an estimate from activity, idle power and the power limit of the board. "
            )
        text += (
            "The front takes a device cut into as many such partitions as it holds"
            + (", as if they did not slow each other down." if board is None else ".")
        )  # fmt: skip
        sections.append({"title": f"{workload}, {mode}", "text": text, "figures": figures})
    return sections


def _curves_of(
    rows: Sequence[Measurement], table: MeasurementTable, board: Board | None, title: str
) -> Figure:
    names = _by_size(table, board, {r.profile for r in rows})

    def panel(head: str, unit: str, of: Callable[[Measurement], float]) -> Panel:
        series = {}
        for name in names:
            points = [(r.batch, of(r)) for r in rows if r.profile == name]
            known = [(b, v) for b, v in points if not math.isnan(v)]
            if known:
                series[name] = ([float(b) for b, _ in known], [v for _, v in known])
        return Panel(head, unit, series)

    panels = [
        panel("Latency", "ms per batch", lambda r: r.latency_ms),
        panel("Throughput", "samples/s", lambda r: r.rate),
        panel("Energy", "J per sample", lambda r: energy_per_sample(r, board)),
    ]
    return curve_panels([p for p in panels if p.series], title, "batch size")


def _points_section(table: MeasurementTable, board: Board | None) -> _Section:
    def energy(row: Measurement) -> str:
        value = energy_per_sample(row, board)
        return "not known" if math.isnan(value) else f"{value:.3g}"

    return {
        "title": "Measured points",
        "text": "What `migperf plan --profiles` reads.",
        "columns": ["workload", "mode", "partition", "batch", "ms per batch", "samples/s",
                    "J per sample"],
        "rows": [
            [m.workload, m.mode, m.profile, m.batch, f"{m.latency_ms:.3g}", f"{m.rate:.4g}",
             energy(m)] if m.status == "ok"
            else [m.workload, m.mode, m.profile, m.batch, "out of memory", "", ""]
            for m in table
        ],
    }  # fmt: skip


# The planner's answer


def _plan_sections(
    table: MeasurementTable, board: Board, demands: list[Demand], save: _Saver
) -> list[_Section]:
    problem = build_problem(table, demands, board)
    answer = solve_exact(problem)
    shown: dict[str, tuple[int, SliceRow]] = {}
    for gpu in answer.gpus:
        count = shown[str(gpu)][0] + 1 if str(gpu) in shown else 1
        entries = zip(gpu.layout.entries, gpu.workloads, strict=True)
        running = {
            e.start: (w or "spare").replace("/", "\n", 1) for e, w in entries if e.start is not None
        }
        row = SliceRow(f"{count} GPU{'s' * (count > 1)}", gpu.layout.placements, running)
        shown[str(gpu)] = (count, row)
    rows = [row for _, row in sorted(shown.values(), key=lambda item: -item[0])]
    verdict = "proven optimal" if answer.proven else f"at least {answer.bound:g} are needed"
    left_out = len(rows) - _MOST_LAYOUTS
    text = f"{answer.value:g} GPUs, {verdict}."
    if left_out > 0:
        text += f" {left_out} further layouts are not drawn."
    title = f"{answer.value:g} x {board.name}"
    sections: list[_Section] = [
        {"title": "The plan", "text": text,
         "figure": save("plan", draw_layouts(board, rows[:_MOST_LAYOUTS], title)),
         "columns": ["demand", "wanted /s", "bound ms", "served /s"],
         "rows": [
             [(name := demand_name(demands, i)), f"{d.rate:g}",
              "none" if math.isinf(d.slo_ms) else f"{d.slo_ms:g}", f"{answer.capacity[name]:.4g}"]
             for i, d in enumerate(demands)
         ]},
    ]  # fmt: skip
    if any(math.isfinite(d.slo_ms) for d in demands):
        sections.append(_sweep_section(table, demands, board, save))
    if len(demands) > 1:
        first = next((i for i, d in enumerate(demands) if d.mode == "train"), 1)
        other = next(i for i, d in enumerate(demands) if i != first)
        one, two = demand_name(demands, other), demand_name(demands, first)
        deals = trade_off(problem, other, first)
        front = [t for t in deals if t.on_front]
        points = [(t.first, t.second, _cut(t.layout.multiset), t.on_front) for t in deals]
        sections.append(
            {"title": "One GPU for two",
             "text": f"Every way to deal the instances of one GPU to {one} and {two}. Power is an "
             "estimate at full load.",
             "figure": save("trade", pareto_figure(points, f"{one} against {two} on one GPU",
                                                   f"{one}, samples/s", f"{two}, samples/s")),
             "columns": [f"instances for {one}", f"for {two}", f"{one} /s", f"{two} /s", "watts"],
             "rows": [
                 [*_deal(t), f"{t.first:.4g}", f"{t.second:.4g}",
                  "not known" if math.isnan(t.watts) else f"{t.watts:.0f}"]
                 for t in front
             ]}
        )  # fmt: skip
    return sections


def _deal(deal: TradeOff) -> list[str]:
    """Instances of each of the two."""
    entries = list(zip(deal.layout.entries, deal.owners, strict=True))
    return [_cut(sorted((e.profile for e, o in entries if o == side), reverse=True)) or "none"
            for side in (0, 1)]  # fmt: skip


def _cut(profiles: Sequence[str]) -> str:
    """Multiset as 3g+2g+2x1g."""
    slices = [p.split(".")[0] for p in profiles]
    counts = {s: slices.count(s) for s in dict.fromkeys(slices)}
    return "+".join(s if n == 1 else f"{n}x{s}" for s, n in counts.items())


def _sweep_section(
    table: MeasurementTable, demands: list[Demand], board: Board, save: _Saver
) -> _Section:
    points = slo_sweep(table, demands, board, _FACTORS)
    met = [(p.factor, float(p.gpus)) for p in points if p.gpus is not None]
    series = {"fewest GPUs": ([f for f, _ in met], [g for _, g in met])}
    figure = curve_panels(
        [Panel("", "GPUs", series, log=False)], "What the latency bounds cost",
        "bounds, as a multiple of those wanted",
    )  # fmt: skip
    return {
        "title": "Cost of the latency bounds",
        "text": "Fewest GPUs, each proven, when all bounds are scaled.",
        "figure": save("sweep", figure),
        "columns": ["bounds times", "GPUs"],
        "rows": [
            [f"{p.factor:g}", "cannot be met" if p.gpus is None else str(p.gpus)] for p in points
        ],
    }
