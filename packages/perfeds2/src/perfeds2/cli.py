"""Command line."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from .cli_flower import flower_app
from .errors import InfeasibleError, InputError, require
from .output import Json, print_json, status, table

app = cyclopts.App(
    name="perfeds2",
    version=version("perfeds2"),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    help="""Semi-synchronous personalised federated learning in simulated time.

    Examples:

    - `perfeds2 demo --out out/`
    - `perfeds2 simulate --ues 1000000 --rounds 1000 --participants 1000`
    - `perfeds2 run experiment.toml --out out/`
    - `perfeds2 compare experiment.toml --methods sync,semi:10,async --seeds 5`
    - `perfeds2 bandwidth ues.csv --total 1e6 --bits 640000`

    Exit codes: 0 success, 2 bad input, 3 the computation says no, 130 Ctrl-C.
    """,
)


@app.command
def run(
    experiment: Path, /, *, out: Path, checkpoint_every: int | None = None, json: Json = False
) -> None:
    """Train one experiment; write run.npz, metrics.jsonl, events.npz, report.html, checkpoint.npz.

    Example: `perfeds2 run experiment.toml --out out/`

    Parameters
    ----------
    experiment
        TOML file; an empty one runs Per-FedAvg on digits over 20 UEs.
    out
        Folder for the results.
    checkpoint_every
        Rounds between checkpoints, instead of the file's value.
    json
        Print the summary as JSON.
    """
    from .config import ExperimentConfig
    from .engine import Simulation

    config = ExperimentConfig.from_toml(experiment)
    if checkpoint_every is not None:
        config = config.with_(train={"checkpoint_every": checkpoint_every})
    _train(Simulation(config), out, json)


@app.command
def resume(checkpoint: Path, /, *, out: Path | None = None, json: Json = False) -> None:
    """Continue an interrupted run from its checkpoint; the result is the same, bit for bit.

    Example: `perfeds2 resume out/checkpoint.npz`

    Parameters
    ----------
    checkpoint
        File written by `perfeds2 run`.
    out
        Folder for the results; the checkpoint's folder by default.
    json
        Print the summary as JSON.
    """
    from .engine import Simulation

    _train(Simulation.load(checkpoint), out or checkpoint.parent, json)


def _train(sim: Any, out: Path, as_json: bool) -> None:
    from .files import write_arrays, write_text
    from .report import run_report

    say = status()
    result = sim.run(
        checkpoint=out / "checkpoint.npz",
        progress=lambda k, s, loss: say(f"round {k}, {s:.4g} simulated s, loss {loss:.4g}"),
    )
    result.save(out / "run.npz")
    lines = [
        json.dumps({"round": int(k), "seconds": s, "loss": loss, "accuracy": a})
        for k, s, loss, a in zip(
            result.eval_round,
            result.eval_s.tolist(),
            result.loss.tolist(),
            result.accuracy.tolist(),
        )
    ]
    write_text(out / "metrics.jsonl", "\n".join(lines) + "\n")
    write_arrays(
        out / "events.npz",
        {
            "arrival_s": result.arrival_s,
            "ue": result.ues,
            "version": result.versions,
            "round": result.rounds,
            "job": result.jobs,
            "bits": result.upload_bits[result.ues],
        },
    )
    run_report(result, out / "report.html")
    summary = result.summary()
    if as_json:
        print_json(summary)
    else:
        table("run", ["figure", "value"], [[k, v] for k, v in summary.items()])
    if result.stop != "target" and sim.config.train.target_loss > 0:
        raise InfeasibleError(
            f"train.target_loss = {sim.config.train.target_loss}: not reached, loss is "
            f"{summary['loss']:.6g} after {summary['rounds']} rounds; results are in {out}"
        )


@app.command
def simulate(
    *,
    ues: int = 1000,
    rounds: int = 100,
    participants: int = 10,
    staleness: int = -1,
    bits: float = 20_800.0,
    bandwidth_hz: float | None = None,
    failure_rate: float = 0.0,
    seed: int = 0,
    timing_only: Annotated[bool, Parameter(negative="")] = True,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Run the clock alone: no weights, up to millions of UEs.

    Example: `perfeds2 simulate --ues 1000000 --rounds 1000 --participants 1000`

    Parameters
    ----------
    ues, rounds, participants
        UEs, rounds, and updates that close a round.
    staleness
        Hard bound in rounds, -1 for none.
    bits
        Payload of an upload.
    bandwidth_hz
        Band of the cell; 50 kHz per UE by default.
    failure_rate
        Probability that an update is lost.
    seed
        Seed of cell, fading and failures.
    timing_only
        Always on; here so that scripts can say it.
    out
        Event log (npz).
    json
        Print JSON.
    """
    from .clock import IndependentClock
    from .config import ExperimentConfig
    from .files import write_arrays
    from .system import build_system

    config = ExperimentConfig.from_dict(
        {
            "ues": ues,
            "seed": seed,
            "schedule": {"participants": participants, "staleness": staleness},
            "system": {
                "payload_bits": bits,
                "bandwidth_hz": 5e4 * ues if bandwidth_hz is None else bandwidth_hz,
                "failure_rate": failure_rate,
            },
        }
    )
    require(rounds >= 1, "rounds", rounds, "at least 1")
    start = time.perf_counter()
    log = IndependentClock(build_system(config), config).advance(rounds)
    spent = time.perf_counter() - start
    tau = log.staleness
    eta = log.participation(ues)
    summary = {
        "rounds": len(log.counts),
        "updates": len(log.ues),
        "events": log.events,
        "simulated_s": float(log.close_s[-1]),
        "mean_round_s": float(log.close_s[-1] / len(log.counts)),
        "mean_staleness": float(tau.mean()),
        "max_staleness": int(tau.max()),
        "ues_without_update": int((eta == 0).sum()),
        "failures": log.failures,
        "outages": log.outages,
        "wall_s": spent,
    }
    if out:
        write_arrays(
            out,
            {
                "close_s": log.close_s, "counts": log.counts, "arrival_s": log.arrival_s,
                "ue": log.ues, "version": log.versions, "job": log.jobs,
            },
        )  # fmt: skip
    if json:
        print_json(summary)
    else:
        table("simulate", ["figure", "value"], [[k, v] for k, v in summary.items()])


@app.command
def compare(
    experiment: Path,
    /,
    *,
    methods: str = "sync,semi:10,async",
    seeds: int = 5,
    steps: str = "",
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Time to the target loss of several forms over the same seeds.

    Example: `perfeds2 compare experiment.toml --methods sync,semi:5+greedy+optimal,fedbuff:10
    --steps 1,2,4,8`

    Parameters
    ----------
    experiment
        TOML file with `train.target_loss`.
    methods
        Forms `[method/]server[:A][+scheduling][+bandwidth]`; servers sync, semi:A, async,
        fedbuff:A, fedasync; methods perfedavg, fedavg, fedprox, pfedme, ditto, apfl, fedrep.
    seeds
        Number of seeds.
    steps
        Server steps to tune over, per form, on other seeds; empty uses the file's step for all.
    out
        Folder for compare.json and loss.png.
    json
        Print JSON.
    """
    from . import figures
    from .compare import compare as run_compare
    from .compare import rows_as_json
    from .config import ExperimentConfig
    from .files import write_json

    say = status()
    config = ExperimentConfig.from_toml(experiment)
    try:
        grid = [float(v) for v in steps.split(",") if v]
    except ValueError:
        raise InputError(f"steps = {steps!r}: allowed are numbers with commas, as 1,2,4") from None
    results = run_compare(
        config, methods.split(","), seeds, grid, progress=lambda f, s: say(f"{f}, seed {s}")
    )
    rows = rows_as_json(results)
    if out:
        figures.save_png(figures.loss_curves(results), out / "loss.png")
        write_json(out / "compare.json", rows)
    if json:
        print_json(rows)
    else:
        columns = [c for c in rows[0] if c != "tried"]
        table("compare", columns, [[row[c] for c in columns] for row in rows])


@app.command
def bandwidth(
    ues: Path,
    /,
    *,
    total: float,
    bits: float | None = None,
    participants: int | None = None,
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
    json
        Print JSON.
    """
    from .bandwidth import allocate
    from .csvfile import read_columns
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
    if json:
        print_json(value)
    else:
        rows = [[str(i), float(b)] for i, b in zip(ids, found.bandwidth_hz)]
        table(f"all finish after {found.finish_s:.6g} s", ["UE", "bandwidth_hz"], rows)


@app.command(name="tune-a")
def tune_a(
    experiment: Path,
    /,
    *,
    eps: float | None = None,
    staleness: str = "max",
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
    json
        Print JSON.
    """
    from .config import ExperimentConfig
    from .engine import Simulation
    from .theory import estimate_constants
    from .tuning import tune_participants

    sim = Simulation(ExperimentConfig.from_toml(experiment))
    constants = estimate_constants(sim)
    target = eps
    if target is None:
        target = 2 * constants.heterogeneity + 0.1 * constants.gradient_norm_sq
    found = tune_participants(sim.system, sim.config, constants, target, staleness=staleness)
    if json:
        print_json({"epsilon": target, "constants": constants.to_json(), **found.to_json()})
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


@app.command
def bound(run_file: Path, /, *, out: Path | None = None, json: Json = False) -> None:
    """Bound of a saved run, term by term, against the gradient norms of its replay.

    Example: `perfeds2 bound out/run.npz`

    Parameters
    ----------
    run_file
        File written by `perfeds2 run`; its rounds are computed again to measure gradients.
    out
        Figure (png).
    json
        Print JSON.
    """
    from . import figures
    from .replay import bound_of_run
    from .result import RunResult

    found = bound_of_run(RunResult.load(run_file))
    if out:
        fig = figures.bound_against_measurement(found.rounds, found.measured, found.terms())
        figures.save_png(fig, out)
    if json:
        print_json(found.to_json())
    else:
        table("bound", ["figure", "value"], [[k, v] for k, v in found.to_json().items()])


@app.command
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


@app.command
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


app.command(flower_app)


@app.command(name="import-trace")
def import_trace(
    trace: Path,
    /,
    *,
    out: Path,
    samples: int = 48,
    link_hz: float = 1e6,
    ues: int | None = None,
) -> None:
    """Turn FedScale's device capacity trace (a pickle) into a CSV trace for `system.trace`.

    Example: `perfeds2 import-trace client_device_capacity --out ues.csv --ues 20`

    Parameters
    ----------
    trace
        FedScale's `client_device_capacity`; anything but plain numbers in it is refused unread.
    out
        CSV file with the columns ue, compute_s, snr_density_hz.
    samples
        Samples of one update; 48 are the default experiment's three batches of 16.
    link_hz
        Band over which the trace's rates hold, in Hz.
    ues
        Clients to take, the first ones; all by default.
    """
    from .fedscale import import_capacity

    count = import_capacity(trace, out, samples=samples, link_hz=link_hz, ues=ues)
    print(f"{out}: {count} UEs")


@app.command
def demo(*, out: Path, seed: int = 0) -> None:
    """Show the paper's claim: digits over 20 UEs, a bandwidth-bound cell, a million UEs.

    Example: `perfeds2 demo --out out/`

    Parameters
    ----------
    out
        Folder for result.json, report.html and the figures.
    seed
        Seed of the cell of the million UEs and of the bandwidth-bound rounds; training always
        runs on seeds 0 to 4.
    """
    from .demo import run_demo

    require(0 <= seed < 2**31, "seed", seed, "0 to 2**31 - 1")
    result = run_demo(out, seed, status())
    rows = [[c["name"], f"{c['measured']} {c['unit']}", str(c["met"])] for c in result["claims"]]
    table(f"demo: {result['seconds']} s", ["claim", "measured", "met"], rows)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors become one line and an exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        _fail(str(error), 2)
    except InputError as error:
        _fail(str(error), 2)
    except InfeasibleError as error:
        _fail(str(error), 3)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(text: str, code: int) -> None:
    print(f"perfeds2: {' '.join(text.split())}", file=sys.stderr)
    raise SystemExit(code)
