"""The exact integer program: patterns of GPUs, instances of demands.

Variables: ``x_q`` GPUs with pattern q, ``y_wp`` instances of profile p for demand w, ``s_wp``
samples per second that those instances serve.

    sum_w y_wp <= sum_q n_qp x_q      every instance has a place
    s_wp       <= r_wp y_wp           an instance serves at most its rate
    sum_p s_wp >= lambda_w            every demand is met
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array

from ..boards import Board
from ..errors import Infeasible, InputError
from ..measurements import MeasurementTable
from .model import Demand, Plan, Problem, assemble, build_problem, demand_name

__all__ = ["Objective", "plan", "solve_exact"]

Objective = Literal["min_gpus", "max_throughput", "min_energy"]


class _Program:
    """Columns and rows of the integer program of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.q = len(problem.patterns)
        self.offers = problem.offers
        self.m = len(self.offers)
        names = sorted({o.profile for o in self.offers})
        self.profiles = names
        self.columns = self.q + 2 * self.m
        entries: list[tuple[int, int, float]] = []
        # places: sum_w y_wp - sum_q n_qp x_q <= 0
        for row, name in enumerate(names):
            entries += [
                (row, j, -float(Counter(pattern)[name]))
                for j, pattern in enumerate(problem.patterns)
                if name in pattern
            ]
            entries += [
                (row, self.q + k, 1.0) for k, o in enumerate(self.offers) if o.profile == name
            ]
        # rates: s_wp - r_wp y_wp <= 0
        first = len(names)
        for k, offer in enumerate(self.offers):
            entries += [
                (first + k, self.q + self.m + k, 1.0),
                (first + k, self.q + k, -offer.rate),
            ]
        # demands: -sum_p s_wp <= -lambda_w
        self.demand_row = first + self.m
        for k, offer in enumerate(self.offers):
            entries.append((self.demand_row + offer.demand, self.q + self.m + k, -1.0))
        self.rows = self.demand_row + len(problem.demands)
        rows, columns, values = zip(*entries, strict=True)
        shape = (self.rows, self.columns)
        self.matrix = csr_array(coo_array((values, (rows, columns)), shape=shape))
        self.upper = np.zeros(self.rows)
        self.integer = np.concatenate((np.ones(self.q + self.m), np.zeros(self.m)))

    def require(self, share: float) -> None:
        """Ask for `share` of every demand (0 for the objective max_throughput)."""
        for index, demand in enumerate(self.problem.demands):
            self.upper[self.demand_row + index] = -share * demand.rate


def plan(
    profiles: MeasurementTable,
    demands: Iterable[Demand],
    objective: Objective = "min_gpus",
    *,
    board: Board | str = "a100-80gb",
    gpus: int | None = None,
    time_limit: float = 60.0,
) -> Plan:
    """Choose how to cut GPUs and what to run where, with proof of optimality.

    Parameters
    ----------
    profiles : MeasurementTable
        Measured points; see `migperf.load_measurements`.
    demands : iterable of Demand
        What is wanted.
    objective : {"min_gpus", "max_throughput", "min_energy"}
        Fewest GPUs; largest weighted rate on `gpus` GPUs, no demand served beyond what it asks;
        or least power, where the measurements have activities.
    board : Board or str
        Geometry.
    gpus : int, optional
        GPUs at hand; needed by ``max_throughput``, an upper limit for the others.
    time_limit : float
        Seconds for the solver; the answer says whether it was proven in time.

    Raises
    ------
    Infeasible
        A demand cannot be met, or not with that many GPUs.

    Examples
    --------
    >>> from migperf.measurements import paper_measurements
    >>> demands = [Demand("resnet50", 5000, 25, batches=(1,)),
    ...            Demand("bert-base", 3000, 25, batches=(1,)),
    ...            Demand("vit-b16", 1500, 25, batches=(1,))]
    >>> answer = plan(paper_measurements(), demands)
    >>> answer.value, answer.proven
    (14.0, True)
    """
    problem = build_problem(profiles, demands, board)
    return solve_exact(problem, objective, gpus=gpus, time_limit=time_limit)


def solve_exact(
    problem: Problem,
    objective: Objective = "min_gpus",
    *,
    gpus: int | None = None,
    time_limit: float = 60.0,
) -> Plan:
    """Solve a problem with HiGHS; see `plan`."""
    if objective not in ("min_gpus", "max_throughput", "min_energy"):
        raise InputError.of("objective", objective, "min_gpus, max_throughput, min_energy")
    if gpus is not None and gpus < 1:
        raise InputError.of("gpus", gpus, "an integer >= 1")
    if objective == "max_throughput" and gpus is None:
        raise InputError.of("gpus", gpus, "an integer >= 1 with max_throughput")
    program = _Program(problem)
    q, m = program.q, program.m
    cost = np.zeros(program.columns)
    upper = np.full(program.columns, np.inf)
    if objective == "max_throughput":
        program.require(0.0)
        cost[q + m :] = [-problem.demands[o.demand].weight for o in program.offers]
    else:
        program.require(1.0)
        if objective == "min_gpus":
            cost[:q] = 1.0
        else:
            joules = [o.joules for o in program.offers]
            if any(math.isnan(j) for j in joules):
                raise InputError(
                    "objective: min_energy needs the activity column in the measurements"
                )
            cost[:q] = problem.board.idle_power_watts
            cost[q + m :] = joules
    matrix, limit = program.matrix, program.upper
    constraints = [LinearConstraint(matrix, -np.inf, limit)]
    if objective == "max_throughput":
        served = coo_array(
            (np.ones(m), ([o.demand for o in program.offers], np.arange(q + m, q + 2 * m))),
            shape=(len(problem.demands), program.columns),
        )
        rates = np.array([d.rate for d in problem.demands])
        constraints.append(LinearConstraint(csr_array(served), -np.inf, rates))
    if gpus is not None:
        total = np.concatenate((np.ones(q), np.zeros(2 * m)))[None, :]
        constraints.append(LinearConstraint(total, -np.inf, gpus))
    started = time.perf_counter()
    result = milp(
        cost,
        integrality=program.integer,
        bounds=Bounds(np.zeros(program.columns), upper),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "time_limit": time_limit},
    )
    seconds = time.perf_counter() - started
    if result.status == 2:
        raise Infeasible(
            f"gpus: {gpus} do not suffice for the demands; {solve_exact(problem).value:g} do"
        )
    if result.x is None:
        raise Infeasible(f"no plan found within time_limit={time_limit:g} s; give more time")
    return _answer(problem, program, objective, result.x, result.mip_dual_bound, seconds)


def _answer(
    problem: Problem,
    program: _Program,
    objective: Objective,
    x: np.ndarray,
    dual_bound: float,
    seconds: float,
) -> Plan:
    q, m = program.q, program.m
    counts = np.rint(x[: q + m]).astype(int)
    patterns = {p: int(n) for p, n in zip(problem.patterns, counts[:q], strict=True) if n}
    instances = {
        (o.demand, o.profile): int(n) for o, n in zip(program.offers, counts[q:], strict=True) if n
    }
    capacity = {demand_name(problem.demands, w): 0.0 for w in range(len(problem.demands))}
    for offer, n in zip(program.offers, counts[q:], strict=True):
        capacity[demand_name(problem.demands, offer.demand)] += offer.rate * int(n)
    if objective == "min_gpus":
        value, bound = float(counts[:q].sum()), float(math.ceil(dual_bound - 1e-6))
        proven = bound >= value
    else:
        sign = -1.0 if objective == "max_throughput" else 1.0
        value = math.fsum(
            sign * c * v for c, v in zip(_costs(problem, program, objective), x, strict=True)
        )
        bound = sign * dual_bound
        proven = abs(value - bound) <= 1e-6 * max(1.0, abs(value))
    return Plan(
        objective, value, bound, proven, assemble(problem, patterns, instances), capacity, seconds,
        tuple(explain(problem, program)),
    )  # fmt: skip


def _costs(problem: Problem, program: _Program, objective: Objective) -> np.ndarray:
    cost = np.zeros(program.columns)
    if objective == "max_throughput":
        cost[program.q + program.m :] = [-problem.demands[o.demand].weight for o in program.offers]
    else:
        cost[: program.q] = problem.board.idle_power_watts
        cost[program.q + program.m :] = [o.joules for o in program.offers]
    return cost


def explain(problem: Problem, program: _Program | None = None) -> list[str]:
    """Say what drives the number of GPUs: shadow prices of the linear relaxation.

    Returns
    -------
    list of str
        Per demand the GPUs that 1000 samples per second more cost, and per profile the GPUs that
        one instance more costs.
    """
    built = program or _Program(problem)
    built.require(1.0)
    cost = np.concatenate((np.ones(built.q), np.zeros(2 * built.m)))
    result = linprog(cost, A_ub=built.matrix, b_ub=built.upper, method="highs")
    if result.status != 0:
        return [f"linear relaxation: {result.message}"]
    prices = -result.ineqlin.marginals
    lines = [f"linear relaxation: {result.fun:.3f} GPUs"]
    for w in range(len(problem.demands)):
        price = prices[built.demand_row + w]
        name = demand_name(problem.demands, w)
        lines.append(f"demand {name}: 1000 samples/s more cost {1000 * price:.3f} GPUs")
    for row, name in enumerate(built.profiles):
        binding = "binding" if prices[row] > 1e-9 else "not binding"
        lines.append(f"profile {name}: one more instance costs {prices[row]:.3f} GPUs ({binding})")
    return lines
