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

from .cli_analysis import bandwidth, bench, bound, tune_a, verify
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
        Folder for events.npz and report.html.
    json
        Print JSON.
    """
    from .clock import IndependentClock
    from .config import ExperimentConfig
    from .files import write_arrays
    from .pages import simulate_page
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
            out / "events.npz",
            {
                "close_s": log.close_s, "counts": log.counts, "arrival_s": log.arrival_s,
                "ue": log.ues, "version": log.versions, "job": log.jobs,
            },
        )  # fmt: skip
        simulate_page(out / "report.html", config, log, summary)
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
        Folder for compare.json, report.html and loss.png.
    json
        Print JSON.
    """
    from . import figures
    from .compare import compare as run_compare
    from .compare import rows_as_json
    from .config import ExperimentConfig
    from .files import write_json
    from .pages import compare_page

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
        compare_page(out / "report.html", config, results, "loss.png")
    if json:
        print_json(rows)
    else:
        columns = ["form", "step", "seconds", "half_width", "server_updates", "accuracy", "reached"]
        table("compare", columns, [[row[c] for c in columns] for row in rows])


for command in (bandwidth, tune_a, bound, verify, bench):
    app.command(command, name=command.__name__.replace("_", "-"))
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
