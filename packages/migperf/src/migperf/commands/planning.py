"""``migperf plan``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..measurements import load_measurements
from ..planner.exact import Objective, solve_exact
from ..planner.heuristics import compare
from ..planner.model import build_problem, load_demands
from .common import print_json, print_table

__all__ = ["plan_command"]


def plan_command(
    demands: str,
    *,
    profiles: str,
    objective: Objective = "min_gpus",
    gpus: int | None = None,
    time_limit: float = 60.0,
    explain: bool = False,
    compare_heuristics: bool = False,
    report: str | None = None,
    json: bool = False,
) -> int:
    """Choose how to cut GPUs and what to run where, with proof of optimality.

    Example: migperf plan demands.yaml --profiles runs/ --objective min_gpus --explain

    Exit code 3: the demands cannot be met.

    Parameters
    ----------
    demands : str
        YAML file with `board` and `demands: [{workload, rate, slo_ms, mode, batches, poisson}]`.
    profiles : str
        Measurements: a CSV file, a folder of runs, or the paper's result folder.
    objective : str
        min_gpus, max_throughput or min_energy.
    gpus : int
        GPUs at hand.
    time_limit : float
        Seconds for the solver.
    explain : bool
        Print what binds, and shadow prices.
    compare_heuristics : bool
        Print what five heuristics need.
    report : str
        HTML page of `migperf report` with these demands (objective min_gpus); its figures are
        written beside it.
    json : bool
        Print JSON.
    """
    board, wanted = load_demands(demands)
    problem = build_problem(load_measurements(profiles), wanted, board)
    answer = solve_exact(problem, objective, gpus=gpus, time_limit=time_limit)
    others = compare(problem) if compare_heuristics else {}
    if report is not None:
        # Imported here: matplotlib takes longer to import than most commands run.
        from ..study_page import study_report

        study_report(Path(profiles), Path(report), Path(demands))
    if json:
        print_json({**answer.to_json(), "heuristics": others} if others else answer.to_json())
    else:
        verdict = "proven optimal" if answer.proven else f"not proven, bound {answer.bound:g}"
        print(f"{objective} = {answer.value:g} ({verdict}, {answer.seconds:.2f} s)")
        shown = Counter(map(str, answer.gpus))
        print_table("GPUs", ["number", "layout = workload"], [(n, t) for t, n in shown.items()])
        if explain:
            print("\n".join(answer.explanation))
        for name, number in others.items():
            print(f"{name}: {'no plan' if number is None else number} GPUs")
    return 0
