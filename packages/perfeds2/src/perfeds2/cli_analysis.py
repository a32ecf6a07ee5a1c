"""Commands about one round, about theory, and about the package itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .errors import InfeasibleError, require
from .output import Json, print_json, table


def bandwidth(
    ues: Path,
    /,
    *,
    total: float,
    bits: float | None = None,
    participants: int | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Shares of a band that make all UEs of a file finish together.

    Example: `perfeds2 bandwidth ues.csv --total 1e6 --bits 640000 --participants 3`

    Parameters
    ----------
    ues
        CSV with the columns offset_s, snr_density_hz and, without --bits, bits.
    total
        Band in Hz.
    bits
        Payload of every UE.
    participants
        Choose the best set of this size instead of all.
    out
        Folder for bandwidth.json and report.html.
    json
        Print JSON.
    """
    from .bandwidth import allocate
    from .csvfile import read_columns
    from .files import write_json
    from .pages import bandwidth_page
    from .schedule import exact_round

    columns = read_columns(ues, ["offset_s", "snr_density_hz"] + ([] if bits else ["bits"]))
    payload: Any = bits if bits is not None else columns["bits"]
    offset, snr = columns["offset_s"], columns["snr_density_hz"]
    if participants is None:
        found = allocate(offset, snr, payload, total)
        ids, value = list(range(len(offset))), found.to_json()
    else:
        best = exact_round(offset, snr, payload, total, participants)
        found, ids, value = best, best.participants.tolist(), best.to_json()  # type: ignore[assignment]
    if out:
        write_json(out / "bandwidth.json", value)
        summary = {"finish_s": found.finish_s, "band_hz": total, "dual_s_per_hz": found.dual}
        at = np.array(ids)
        bandwidth_page(out / "report.html", at, np.asarray(offset)[at], found.bandwidth_hz, summary)
    if json:
        print_json(value)
    else:
        rows = [[str(i), float(b)] for i, b in zip(ids, found.bandwidth_hz)]
        table(f"all finish after {found.finish_s:.6g} s", ["UE", "bandwidth_hz"], rows)


def tune_a(
    experiment: Path,
    /,
    *,
    eps: float | None = None,
    staleness: str = "max",
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Choose the number of participants with the fewest predicted seconds to a gradient norm.

    Example: `perfeds2 tune-a experiment.toml --eps 3.5`

    Parameters
    ----------
    experiment
        TOML file.
    eps
        Target of the mean squared gradient norm; by default the floor 2 gamma^2 plus a tenth of
        the squared gradient norm at the start.
    staleness
        `max`: the bound as proved. `mean`: mean staleness in its place, a rule of thumb.
    out
        Folder for tune.json and report.html.
    json
        Print JSON.
    """
    from .config import ExperimentConfig
    from .engine import Simulation
    from .files import write_json
    from .pages import tune_page
    from .theory import estimate_constants
    from .tuning import tune_participants

    sim = Simulation(ExperimentConfig.from_toml(experiment))
    constants = estimate_constants(sim)
    target = eps
    if target is None:
        target = 2 * constants.heterogeneity + 0.1 * constants.gradient_norm_sq
    found = tune_participants(sim.system, sim.config, constants, target, staleness=staleness)
    value = {"epsilon": target, "constants": constants.to_json(), **found.to_json()}
    if out:
        write_json(out / "tune.json", value)
        tune_page(out / "report.html", sim.config, found, target, constants.to_json())
    if json:
        print_json(value)
        return
    rows = [
        [
            str(c.participants),
            float(c.staleness),
            c.step,
            c.rounds,
            c.expected_rounds,
            c.round_s,
            c.seconds,
        ]
        for c in found.candidates
    ]
    table(
        f"participants = {found.best.participants} for epsilon = {target:.4g}",
        ["A", "staleness", "step", "guaranteed rounds", "expected rounds", "round_s", "seconds"],
        rows,
    )


def bound(run_file: Path, /, *, out: Path | None = None, json: Json = False) -> None:
    """Bound of a saved run, term by term, against the gradient norms of its replay.

    Example: `perfeds2 bound out/run.npz`

    Parameters
    ----------
    run_file
        File written by `perfeds2 run`; its rounds are computed again to measure gradients.
    out
        Folder for bound.json, report.html and bound.png.
    json
        Print JSON.
    """
    from .figures import save_png
    from .figures_theory import bound_against_measurement
    from .files import write_json
    from .pages import bound_page
    from .replay import bound_of_run
    from .result import RunResult

    run = RunResult.load(run_file)
    found = bound_of_run(run)
    if out:
        fig = bound_against_measurement(found.rounds, found.measured, found.terms())
        save_png(fig, out / "bound.png")
        write_json(out / "bound.json", found.to_json())
        bound_page(out / "report.html", run.config, found, "bound.png")
    if json:
        print_json(found.to_json())
    else:
        table("bound", ["figure", "value"], [[k, v] for k, v in found.to_json().items()])


def verify(*, seed: int = 0, json: Json = False) -> None:
    """Check the package against closed forms and enumeration; exit code 3 if one fails.

    Parameters
    ----------
    seed
        Seed of the random instances.
    json
        Print JSON.
    """
    from .verify import verify as run_checks

    checks = run_checks(seed)
    if json:
        print_json([{**vars(c), "passed": c.passed} for c in checks])
    else:
        rows = [[c.name, c.error, c.allowed, "yes" if c.passed else "NO"] for c in checks]
        table("verify", ["check", "error", "allowed", "passed"], rows)
    failed = [c.name for c in checks if not c.passed]
    if failed:
        raise InfeasibleError(f"verify: failed: {'; '.join(failed)}")


def bench(*, ues: int = 1_000_000, rounds: int = 1000, json: Json = False) -> None:
    """Time the clock and the exact scheduler on this machine, compiled kernels warm.

    Parameters
    ----------
    ues
        UEs of both.
    rounds
        Rounds of the clock, a thousandth of the UEs in each.
    json
        Print JSON.
    """
    from .selftime import time_kernels

    require(ues >= 1000, "ues", ues, "at least 1000")
    found = time_kernels(ues, rounds)
    if json:
        print_json(found)
    else:
        table("bench", ["figure", "value"], [[k, v] for k, v in found.items()])
