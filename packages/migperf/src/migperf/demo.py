"""The demo: a simulated DGX A100, a real CPU partition study, and the planner."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .boards import load_board
from .commands.common import write_text
from .errors import Infeasible
from .figures import SliceRow, bar_groups, draw_layouts, save_figure
from .layout import enumerate_layouts
from .measurements import MeasurementTable, paper_measurements
from .node import Node
from .partitions.cpu import CpuSet
from .planner.exact import solve_exact
from .planner.heuristics import compare
from .planner.model import Demand, build_problem
from .report import environment_line, render
from .study import Study, StudyResult, environment

__all__ = ["run_demo"]

_COMMAND = "migperf demo"


@dataclass(frozen=True)
class _Part:
    """What one part of the demo adds to the result and to the report."""

    claims: list[dict[str, Any]]
    figure: tuple[str, str]
    section: dict[str, Any]


def run_demo(out: Path, seed: int = 0, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the demo and write ``result.json``, ``report.html`` and the figures.

    Parameters
    ----------
    out : Path
        Folder to write into.
    seed : int
        Seed of the study's order and of the simulated UUIDs.
    progress : callable
        Told what is going on.

    Returns
    -------
    dict
        The content of ``result.json``.
    """
    started = time.monotonic()
    state = CpuSet().available()
    if not state.ok:  # before anything is written
        raise Infeasible(f"demo: disjoint cores need two of them; {state.reason}")
    out.mkdir(parents=True, exist_ok=True)
    progress("a simulated DGX A100 is cut beside a running job")
    parts = [_reconfigure(out, seed)]
    progress("the planner on the published A100 measurements")
    parts.append(_plan(out))
    progress("a study on the cores of this machine")
    parts.append(_cores(out, seed, progress))
    machine = environment()
    claims = [c for p in parts for c in p.claims]
    result = {
        "schema_version": 1,
        "package": "migperf",
        "version": version("migperf"),
        "seed": seed,
        "claims": claims,
        "figures": [{"path": p.figure[0], "title": p.figure[1]} for p in parts],
        "seconds": round(time.monotonic() - started, 2),
        "environment": machine,
    }
    rows = [[c["name"], _text(c["paper"]), f"{c['measured']} {c['unit']}".strip(), c["met"]]
            for c in claims]  # fmt: skip
    sections = [
        {"title": "Claims", "columns": ["claim", "paper", "measured", "met"], "rows": rows},
        *(p.section for p in parts),
    ]
    lead = (
        "How to cut a GPU, what the cuts are worth, and which workload goes where. Everything on "
        "this page was computed by the run that wrote it."
    )
    footer = f"{result['seconds']} s on {environment_line(machine)}"
    write_text(out / "report.html", render("migperf demo", lead, sections, footer))
    write_text(out / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _text(value: object) -> str:
    return "no figure stated" if value is None else str(value)


def _claim(
    name: str, paper: object, measured: object, unit: str, met: bool | None, how: str
) -> dict[str, Any]:
    return {
        "name": name,
        "paper": paper,
        "measured": measured,
        "unit": unit,
        "met": met,
        "how": how,
    }


def _reconfigure(out: Path, seed: int) -> _Part:
    from .nvml.sim import Simulator

    with Node.open(Simulator.create("dgx-a100-80gb", seed=seed)) as node:
        gpu = node.gpus[0]
        refusal = ""
        try:
            gpu.apply("3g.40gb@0, 4g.40gb")
        except Infeasible as error:
            refusal = str(error)
        gpu.apply("4g.40gb, 3g.40gb")
        job = next(g for g in gpu.instances() if g.profile == "4g.40gb")
        node.sim.occupy(0, os.getpid(), gpu_instance=job.id, compute_instance=0, memory_mib=20000)
        before = gpu.placed()
        uuid = {d.gpu_instance_id: d.uuid for d in gpu.devices()}[job.id]
        node.sim.counters(clear=True)
        steps = [str(a) for a in gpu.apply("4g.40gb, 2g.20gb, 1g.10gb").transition.actions]
        calls = node.sim.counters().changes
        after = gpu.placed()
        same = {d.gpu_instance_id: d.uuid for d in gpu.devices()}[job.id] == uuid
        node.sim.vacate(0, os.getpid())
        board = gpu.board
    maximal = len(enumerate_layouts("a100-80gb", maximal=True))
    running = {job.start: "training runs"}
    new = frozenset(p.start for p in after if p not in before)
    figure = draw_layouts(
        board,
        [
            SliceRow("before", before, running),
            SliceRow("after", after, running, new),
        ],
        "A100 80 GB: 3g.40gb becomes 2g.20gb + 1g.10gb, the job's instance is not touched",
    )
    save_figure(figure, out / "layouts.png")
    how = f"simulated driver through unmodified pynvml; `{_COMMAND}`"
    claims = [
        _claim("maximal layouts of an A100 (placed)", 19, maximal, "layouts", maximal == 19,
               "enumeration over the memory slices; the literature's count since driver R510; "
               "`migperf enumerate a100-80gb --maximal --count`"),
        _claim("instances with a running job that a reconfiguration destroyed", None,
               0 if same else 1, "instances", same, f"UUID before and after; {how}"),
        _claim("driver calls that change something, for this reconfiguration", None, calls,
               "calls", None, f"counted by the driver; clearing everything first needs 10; {how}"),
    ]  # fmt: skip
    section = {
        "title": "A reconfiguration beside a running job",
        "text": f"Asked for '3g.40gb@0, 4g.40gb', the controller refused: {refusal}.",
        "pre": "\n".join(steps),
        "figure": "layouts.png",
    }
    title = "A layout changes while a job runs"
    return _Part(claims, ("layouts.png", title), section)


def _regime(table: MeasurementTable, batches: tuple[int, ...], slo_ms: float) -> dict[str, Any]:
    demands = [
        Demand("resnet50", 5000, slo_ms, batches=batches),
        Demand("bert-base", 3000, slo_ms, batches=batches),
        Demand("vit-b16", 1500, slo_ms, batches=batches),
    ]
    problem = build_problem(table, demands, load_board("a100-80gb"))
    answer = solve_exact(problem)
    return {**compare(problem), "optimum": int(answer.value), "proven": answer.proven}


def _gain_of_seven(table: MeasurementTable, batch: int) -> float:
    """Throughput of seven 1g instances over that of one 7g, ResNet-50 inference."""
    small = table.get("resnet50", "infer", "1g.10gb", batch)
    large = table.get("resnet50", "infer", "7g.80gb", batch)
    assert small is not None
    assert large is not None
    return 7 * small.rate / large.rate


def _plan(out: Path) -> _Part:
    table = paper_measurements()
    small = _regime(table, (1,), 25.0)
    large = _regime(table, (), 1e6)
    gain = {b: _gain_of_seven(table, b) for b in (1, 256)}
    groups = ["batch 1, at most 25 ms", "largest batches, no bound"]
    series = {
        name: [float(small[key]), float(large[key])]
        for name, key in (
            ("whole GPUs", "whole"), ("best single profile", "homogeneous"),
            ("proven optimum", "optimum"),
        )
    }  # fmt: skip
    title = "A100s for 5000 ResNet-50, 3000 BERT and 1500 ViT samples per second"
    save_figure(bar_groups(groups, series, title, "GPUs"), out / "planner.png")
    how = (
        "integer program (HiGHS) on the authors' published A100-80GB latencies; "
        f"5000 ResNet-50, 3000 BERT-base, 1500 ViT-B/16 samples/s; `{_COMMAND}`"
    )
    saved, spared = small["whole"] / small["optimum"], large["whole"] / large["optimum"]
    proven = small["proven"] and large["proven"]
    claims = [
        _claim("GPUs saved by MIG at batch 1: whole GPUs over optimum", "about 4",
               round(saved, 2), "", bool(3.5 <= saved <= 4.5 and proven),
               f"{small['whole']} whole GPUs, {small['optimum']} with MIG; {how}"),
        _claim("GPUs saved by MIG once batching saturates the GPU", "almost none",
               round(spared, 2), "", bool(spared <= 1.25 and proven),
               f"{large['whole']} whole GPUs, {large['optimum']} with MIG; {how}"),
        _claim("seven 1g instances over one 7g, ResNet-50 at batch 1", 4.64, round(gain[1], 2),
               "", abs(gain[1] - 4.64) < 0.01, f"ratio of throughputs; {how}"),
        _claim("seven 1g instances over one 7g, ResNet-50 at batch 256", 0.96,
               round(gain[256], 2), "", abs(gain[256] - 0.96) < 0.01,
               f"ratio of throughputs; {how}"),
    ]  # fmt: skip
    section = {
        "title": "How many GPUs",
        "text": "MIG pays where a request cannot fill the GPU. With large batches it cannot win: "
        "the seven compute slices do the work of one GPU. Both answers are proven optimal.",
        "figure": "planner.png",
        "columns": ["plan", *groups],
        "rows": [[k, str(small[k]), str(large[k])]
                 for k in ("whole", "homogeneous", "first_fit", "best_fit", "greedy", "optimum")],
    }  # fmt: skip
    return _Part(claims, ("planner.png", title), section)


_STUDY = {
    "cases": [
        {"backend": "whole", "layout": "2c"},
        {"backend": "cpuset", "layout": "1c*2", "tenants": 1},
        {"backend": "cpuset", "layout": "1c*2"},
        {"backend": "shared", "layout": "1c*2"},
    ],
    "tenants": [
        {"name": "server", "workload": {"framework": "numpy", "width": 1024, "batch": 4}},
        {"name": "neighbour", "workload": {"framework": "numpy", "width": 1024, "batch": 4}},
    ],
    "repeat": 5,
    "duration_s": 1.0,
    "warmup_s": 0.2,
}


def _cores(out: Path, seed: int, progress: Callable[[str], None]) -> _Part:
    study = Study.from_dict({**_STUDY, "seed": seed})
    result = study.run(allow_noise=True, on_step=progress)
    labels = [c.label for c in study.cases]
    rows = {label: [r for r in result.rows() if r["case"] == label] for label in labels}
    series = {"server": [], "neighbour": []}  # type: dict[str, list[float]]
    intervals: dict[str, list[tuple[float, float]]] = {"server": [], "neighbour": []}
    for label in labels:
        for name in series:
            row = next((r for r in rows[label] if r["tenant"] == name), None)
            series[name].append(row["throughput"] if row else float("nan"))
            low, high = (row["throughput_low"], row["throughput_high"]) if row else (0.0, 0.0)
            intervals[name].append((low, high) if row else (float("nan"),) * 2)
    names = ["all cores,\none tenant", "one core,\nalone", "one core each", "all cores\nshared"]
    title = "Two tenants on the cores of this machine (95 % intervals)"
    figure = bar_groups(names, series, title, "samples/s", intervals=intervals, number="{:.0f}")
    save_figure(figure, out / "cores.png")
    return _Part(*_core_claims(result, labels, title))


def _core_claims(
    result: StudyResult, labels: list[str], title: str
) -> tuple[list[dict[str, Any]], tuple[str, str], dict[str, Any]]:
    whole, alone, parted, shared = labels
    apart = result.isolation_index(alone, parted)
    mixed = result.isolation_index(whole, shared)
    noisy = bool(result.noise)
    remark = "; the host was noisy, so the figure proves nothing" if noisy else ""
    how = (
        "NumPy perceptron of width 1024, batch 4, closed loop, 5 windows of 1 s per case in random "
        f"order, one process per tenant, common start{remark}; `{_COMMAND}`"
    )
    claims = [
        _claim("partitions isolate better than sharing: p99 alone / p99 together",
               "MIG isolates, sharing does not",
               f"{apart:.2f} on disjoint cores, {mixed:.2f} on shared cores", "",
               None if noisy else bool(apart > mixed), how),
    ]  # fmt: skip
    table = [
        [r["case"], r["tenant"], r.get("throughput_text", r["status"]),
         *(f"{r[k]:.3g}" if r.get(k) == r.get(k) and r.get(k) is not None else "too few samples"
           for k in ("p50_ms", "p99_ms"))]
        for r in result.rows()
    ]  # fmt: skip
    text = (
        f"Isolation index {apart:.2f} with disjoint cores and {mixed:.2f} with shared cores. The "
        "same study file runs on MIG, MPS and time-slicing where there is a GPU."
    )
    if noisy:
        text += f" Other work disturbed this machine in {len(result.noise)} window(s): "
        text += "`migperf run` would refuse these figures with exit code 7."
    section = {
        "title": "A study on CPU partitions",
        "text": text,
        "figure": "cores.png",
        "columns": ["case", "tenant", "samples/s", "p50 ms", "p99 ms"],
        "rows": table,
    }
    return claims, ("cores.png", title), section
