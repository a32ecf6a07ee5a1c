"""Comparison of server forms over seeds, each with a step tuned on other seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from .config import CHOICES, NO_BOUND, ExperimentConfig
from .engine import Simulation
from .errors import DivergedError, InputError, require
from .result import RunResult

FORM = re.compile(r"(?:(\w+)/)?(sync|semi|async|fedbuff|fedasync)(?::(\d+))?((?:\+\w+)*)")
TUNING_SEED = 10_000  # steps are tuned on seeds from here on, results are taken on others


def parse_form(text: str, config: ExperimentConfig) -> ExperimentConfig:
    """Experiment changed to a form ``[method/]server[:A][+scheduling][+bandwidth]``.

    Servers: ``sync``, ``semi:A``, ``async``, ``fedbuff:A`` (UEs continue at once, weights
    1/sqrt(1+tau)), ``fedasync`` (mixing, polynomial weights).

    Examples
    --------
    >>> c = parse_form("fedprox/semi:5+greedy+optimal", ExperimentConfig())
    >>> c.method.name, c.schedule.participants, c.schedule.scheduling, c.schedule.bandwidth
    ('fedprox', 5, 'greedy', 'optimal')
    """
    match = FORM.fullmatch(text)
    if not match:
        raise InputError(
            f"methods = {text!r}: allowed are sync, semi:A, async, fedbuff:A, fedasync, with "
            "method/ before and +scheduling, +bandwidth behind"
        )
    method, server, count, options = match.groups()
    if (server in ("semi", "fedbuff")) != (count is not None):
        raise InputError(f"methods = {text!r}: allowed is a number :A for semi and fedbuff only")
    schedule: dict[str, Any] = {"restart": "close"}
    rule: dict[str, Any] = {"rule": "average"}
    if server == "sync":
        schedule["participants"] = config.ues
    elif server in ("semi", "fedbuff"):
        schedule["participants"] = int(count)
    else:
        schedule["participants"] = 1
    if server == "fedbuff":
        schedule |= {"restart": "arrival", "staleness": NO_BOUND}
        rule["staleness_weight"] = "fedbuff"
    if server == "fedasync":
        rule |= {"rule": "fedasync", "staleness_weight": "polynomial"}
    for option in filter(None, options.split("+")):
        for key in ("scheduling", "bandwidth"):
            if option in CHOICES[f"schedule.{key}"]:
                schedule[key] = option
                break
        else:
            raise InputError(
                f"methods = {text!r}: {option!r} is no scheduling or bandwidth; allowed are "
                f"{', '.join(CHOICES['schedule.scheduling'] + CHOICES['schedule.bandwidth'])}"
            )
    if schedule.get("scheduling") == "exact_round":
        schedule["bandwidth"] = "optimal"
    changes: dict[str, Any] = {"schedule": schedule, "server": rule}
    if server == "fedasync":
        changes["server"]["step"] = min(config.server.step, 1.0)
    if method:
        changes["method"] = {"name": method}
    return config.with_(**changes)


def interval(values: Sequence[float] | Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t).

    Examples
    --------
    >>> m, h = interval([1.0, 2.0, 3.0])
    >>> round(m, 3), round(h, 3)
    (2.0, 2.484)
    """
    x = np.asarray(values, dtype=float)
    if not np.all(np.isfinite(x)):
        return float("inf"), float("inf")
    if len(x) < 2:
        return float(x.mean()), 0.0
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def ratio_interval(
    slow: Float[np.ndarray, " n"], fast: Float[np.ndarray, " n"]
) -> tuple[float, float, float]:
    """Geometric mean of paired ratios slow / fast and its 95 % interval."""
    if not (np.all(np.isfinite(slow)) and np.all(np.isfinite(fast))):
        return float("nan"), float("nan"), float("nan")
    mean, half = interval(np.log(np.asarray(slow) / np.asarray(fast)))
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))


@dataclass
class FormResult:
    """Runs of one form.

    Attributes
    ----------
    form : str
        As given.
    step : float
        Server step used.
    runs : list of RunResult
        One per seed.
    target_loss : float
        Target of the times.
    tried : dict
        Mean seconds to the target on the tuning seeds, by step (inf where one run missed it).
    """

    form: str
    step: float
    runs: list[RunResult]
    target_loss: float
    tried: dict[float, float]

    @property
    def seconds(self) -> Float[np.ndarray, " seeds"]:
        """Simulated seconds to the target, inf where a run missed it."""
        return np.array([r.time_to(self.target_loss) for r in self.runs])

    @property
    def rounds(self) -> Float[np.ndarray, " seeds"]:
        """Server updates to the target."""
        return np.array([r.rounds_to(self.target_loss) for r in self.runs])

    def row(self) -> dict[str, Any]:
        """Collect the figures a table shows."""
        mean, half = interval(self.seconds)
        summaries = [r.summary() for r in self.runs]
        return {
            "form": self.form,
            "step": self.step,
            "seconds": mean,
            "half_width": half,
            "server_updates": float(np.mean(self.rounds)),
            "accuracy": float(np.mean([s["accuracy"] for s in summaries])),
            "mean_staleness": float(np.mean([s["mean_staleness"] for s in summaries])),
            "max_staleness": max(s["max_staleness"] for s in summaries),
            "jain_fairness": float(np.mean([s["jain_fairness"] for s in summaries])),
            "uplink_bits": float(np.mean([s["uplink_bits"] for s in summaries])),
            "reached": int(np.isfinite(self.seconds).sum()),
            "seeds": len(self.runs),
        }


def run_or_none(config: ExperimentConfig) -> RunResult | None:
    """Run; None when the step diverges."""
    try:
        return Simulation(config).run()
    except DivergedError:
        return None


def tune_step(
    config: ExperimentConfig, steps: Sequence[float], seeds: int
) -> tuple[float, dict[float, float]]:
    """Step with the fewest mean seconds to the target on tuning seeds.

    Raises
    ------
    InputError
        When no step reaches the target.
    """
    tried = {}
    for step in steps:
        times = []
        for seed in range(seeds):
            found = run_or_none(config.with_(seed=TUNING_SEED + seed, server={"step": float(step)}))
            times.append(found.time_to(config.train.target_loss) if found else float("inf"))
            if not np.isfinite(times[-1]):
                break
        tried[float(step)] = float(np.mean(times))
    best = min(tried, key=lambda s: tried[s])
    if not np.isfinite(tried[best]):
        raise InputError(
            f"steps = {list(steps)}: allowed is a list with a step that reaches target_loss = "
            f"{config.train.target_loss} within rounds = {config.train.rounds}"
        )
    return best, tried


def compare(
    config: ExperimentConfig,
    forms: Sequence[str],
    seeds: int,
    steps: Sequence[float] | Mapping[str, Sequence[float]] = (),
    tuning_seeds: int = 2,
    progress: Callable[[str, int], None] | None = None,
) -> list[FormResult]:
    """Run several forms of an experiment over seeds; the same seed is the same cell and data.

    Parameters
    ----------
    config : ExperimentConfig
        Experiment with a target loss.
    forms : sequence of str
        See `parse_form`.
    seeds : int
        Seeds 0 .. seeds - 1.
    steps : sequence of float, or one per form
        Grid of server steps; empty uses the experiment's step for all.
    tuning_seeds : int
        Seeds of the tuning, different from those of the results.
    progress : callable, optional
        Called with (form, seed) before each run.
    """
    require(seeds >= 1, "seeds", seeds, "at least 1")
    require(
        config.train.target_loss > 0,
        "train.target_loss",
        config.train.target_loss,
        "positive, the loss that is timed",
    )
    results = []
    for form in forms:
        changed = parse_form(form, config)
        grid = steps.get(form, ()) if isinstance(steps, Mapping) else steps
        tried: dict[float, float] = {}
        if grid:
            if progress:
                progress(form, -1)
            best, tried = tune_step(changed, grid, tuning_seeds)
            changed = changed.with_(server={"step": best})
        runs = []
        for seed in range(seeds):
            if progress:
                progress(form, seed)
            runs.append(Simulation(changed.with_(seed=seed)).run())
        results.append(FormResult(form, changed.server.step, runs, config.train.target_loss, tried))
    return results


def rows_as_json(results: Sequence[FormResult]) -> list[dict[str, Any]]:
    """Rows with infinities as None."""
    rows = []
    for result in results:
        row = {**result.row(), "tried": {str(k): v for k, v in result.tried.items()}}
        rows.append(_finite(row))
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


__all__ = [
    "FormResult", "compare", "interval", "parse_form", "ratio_interval", "rows_as_json",
    "tune_step",
]  # fmt: skip
