"""``migperf exporter``, ``compat`` and ``simulate``."""

from __future__ import annotations

from pathlib import Path

from ..compat import PROBES, check_frameworks
from ..errors import InputError
from ..exporter import Exporter, serve
from ..measurements import load_measurements
from ..planner.exact import solve_exact
from ..planner.model import build_problem, load_demands
from ..planner.validate import validate_plan
from .common import open_node, print_json, print_table
from .pages import compat_page, simulate_page

__all__ = ["compat", "exporter", "simulate"]


def exporter(*, port: int = 9400, sim: str | None = None, once: bool = False) -> int:
    """Serve metrics with dcgm-exporter's names and labels.

    Example: migperf exporter --port 9400

    Parameters
    ----------
    port : int
        TCP port.
    sim : str
        State file or name of a simulated machine.
    once : bool
        Print one page instead of serving.
    """
    if not 0 <= port <= 65535:
        raise InputError.of("port", port, "0 to 65535")
    with open_node(sim) as node:
        collector = Exporter(node)
        try:
            if once:
                print(collector.page().decode(), end="")
                return 0
            with serve(collector, port) as server:
                print(f"serving on port {server.server_address[1]}", flush=True)
                server.serve_forever()
        finally:
            collector.close()
    return 0


def compat(*, frameworks: str = ",".join(PROBES), duration: float = 0.5,
           report: str | None = None, json: bool = False) -> int:  # fmt: skip
    """Run every framework for inference and training on this machine.

    Parameters
    ----------
    frameworks : str
        Names separated by commas.
    duration : float
        Seconds per run.
    report : str
        HTML file to write as well; its figures are written beside it.
    json : bool
        Print JSON.
    """
    names = tuple(f.strip() for f in frameworks.split(",") if f.strip())
    for name in names:
        if name not in PROBES:
            raise InputError.of("frameworks", name, ", ".join(PROBES))
    rows = check_frameworks(names, duration=duration)
    if report is not None:
        compat_page(Path(report), rows)
    if json:
        print_json(
            [{**vars(r), "throughput": r.throughput if r.status == "ok" else None} for r in rows]
        )
        return 0
    print_table(
        "Frameworks",
        ["framework", "model", "mode", "status", "samples/s", "detail"],
        [[r.framework, r.model, r.mode, r.status,
          f"{r.throughput:,.0f}" if r.status == "ok" else "-", r.detail[:90]] for r in rows],
    )  # fmt: skip
    return 0


def simulate(
    demands: str, *, profiles: str, seeds: int = 20, requests: int = 20000,
    report: str | None = None, json: bool = False,
) -> int:  # fmt: skip
    """Plan, then play the plan: Poisson requests on every instance.

    Example: migperf simulate demands.yaml --profiles runs/

    Exit code 3: a demand misses its bound in more than one seed of a hundred.

    Parameters
    ----------
    demands : str
        Demands file, see `migperf plan`.
    profiles : str
        Measurements, see `migperf plan`.
    seeds : int
        Number of runs.
    requests : int
        Requests per demand and run.
    report : str
        HTML file to write as well; its figures are written beside it.
    json : bool
        Print JSON.
    """
    if seeds < 1 or requests < 2000:
        raise InputError.of("seeds, requests", (seeds, requests), "seeds >= 1, requests >= 2000")
    board, wanted = load_demands(demands)
    problem = build_problem(load_measurements(profiles), wanted, board)
    answer = solve_exact(problem)
    checks = validate_plan(problem, answer, seeds=seeds, requests=requests)
    good = all(c.share_met >= 0.99 for c in checks)
    if report is not None:
        simulate_page(Path(report), answer.value, seeds, checks)
    if json:
        print_json(
            {"schema_version": 1, "gpus": answer.value, "met": good,
             "demands": [{"demand": c.demand, "load": c.offered, "share_met": c.share_met,
                          "p99_ms_worst": max(c.p99_ms)} for c in checks]}
        )  # fmt: skip
    else:
        print_table(
            f"{answer.value:g} GPUs, {seeds} seeds",
            ["demand", "load", "worst p99 ms", "bound ms", "seeds that meet it"],
            [[c.demand, f"{c.offered:.1%}", f"{max(c.p99_ms):.2f}", c.slo_ms, f"{c.share_met:.0%}"]
             for c in checks],
        )  # fmt: skip
    return 0 if good else 3
