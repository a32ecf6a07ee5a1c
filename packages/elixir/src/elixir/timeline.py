"""A predicted step as a Chrome/Perfetto trace and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elixir import figures
from elixir._files import write_text, write_with
from elixir.planner.result import Plan
from elixir.planner.simulate import Timeline, simulate_plan
from elixir.report import Section, write_report
from elixir.units import format_bytes

LANES = ("compute", "h2d", "d2h", "adam")


def perfetto(plan: Plan, line: Timeline) -> dict[str, Any]:
    """Return the events of a simulated step in Chrome's trace format (microseconds)."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": {"name": lane}}
        for i, lane in enumerate(LANES)
    ]
    for lane, what, begin, end in line.events:
        name = (
            f"step {what}"
            if lane == "compute"
            else (f"chunk {what}" if what >= 0 else "activations")
        )
        events.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": LANES.index(lane),
                "name": name,
                "ts": begin * 1e6,
                "dur": (end - begin) * 1e6,
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"plan": repr(plan)}}


def write_trace(plan: Plan, out: Path) -> Path:
    """Write the trace, a figure and a page; return the page's path."""
    line = simulate_plan(plan)
    write_text(out, json.dumps(perfetto(plan, line)) + "\n")
    picture, page = out.with_suffix(".png"), out.with_suffix(".html")
    figure, axes = figures._axes((7.2, 2.6))
    for lane, _, begin, end in line.events:
        axes.barh(
            LANES.index(lane), (end - begin) * 1e3, left=begin * 1e3, height=0.6, color="#3b6fb6"
        )
    axes.set_yticks(range(len(LANES)), LANES)
    axes.invert_yaxis()
    axes.set_xlabel("predicted step (ms)")
    write_with(picture, lambda path: figures.save(figure, path))
    traffic: list[list[Any]] = [
        ["loads", line.loads],
        ["in", format_bytes(line.loaded_bytes)],
        ["out", format_bytes(line.stored_bytes)],
        ["compute waits", f"{line.stall * 1e3:.3g} ms"],
    ]
    write_report(
        page,
        "elixir: a predicted step",
        repr(plan),
        [
            Section("Resources", figures=[picture.name]),
            Section("Traffic", columns=["what", "value"], rows=traffic),
            Section("The plan", plan.explain()),
        ],
    )
    return page
