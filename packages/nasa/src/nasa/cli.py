"""The command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

import nasa
from nasa import runs
from nasa.hw import InfeasibleMappingError
from nasa.hw.tables import Objective
from nasa.training import TrainingDivergedError

HELP = "Hybrid convolution/shift/adder networks: kernels, search, accelerator mapping."
EXAMPLES = """Examples:

    nasa doctor                                       what works on this machine
    nasa ops check                                    errors of the operators
    nasa ops ceiling                                  1x1 layers over what the instructions allow
    nasa search --space digits --data digits --out run
    nasa train run/arch.json --data digits --out run  train the found network
    nasa quantize run                                 integer network, packed file
    nasa map run/arch.json --accelerator nasa_45nm    energy, interval, EDP
    nasa allocate run/arch.json                       search the PE split
    nasa export run/arch.json --to zigzag
    nasa demo --out out
"""

app = App(
    name="nasa",
    help=HELP,
    help_epilogue=EXAMPLES,
    version=nasa.__version__,
    help_format="plaintext",
)
ops = App(name="ops", help="Check and time the operators.")
lut = App(name="lut", help="Look-up tables of block costs.")
app.command(ops)
app.command(lut)
console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")]
Out = Annotated[Path, Parameter(help="Folder for the results; made if needed.")]


def _table(columns: list[str], rows: list[list[Any]], title: str = "") -> None:
    table = Table(*columns, title=title or None, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    console.print(table)


def _progress(what: str) -> Callable[[Mapping[str, Any]], None]:
    """Return a receiver that writes one line per epoch to standard error, in a log as well."""

    def show(row: Mapping[str, Any]) -> None:
        numbers = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
        )
        errors.print(f"{what}: {numbers}", style="dim")

    return show


@ops.command(name="check")
def ops_check(*, seed: int = 0, as_json: Json = False) -> int:
    """Compare every operator with a float64 or an integer reference.

    Parameters
    ----------
    seed
        Source of the random tensors.
    """
    from nasa.checks import check_operators

    rows = check_operators(seed)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _table(
            ["operator", "layer", "error", "passed"],
            [[r["operator"], r["layer"], r["error"], "yes" if r["passed"] else "NO"] for r in rows],
        )
    return 0 if all(r["passed"] for r in rows) else 3


@ops.command(name="bench")
def ops_bench(*, repeats: int = 9, as_json: Json = False) -> int:
    """Time adder and integer kernels against nn.Conv2d on one thread; prints ratios.

    Parameters
    ----------
    repeats
        Runs per side and round.
    """
    from nasa.checks import time_operators

    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    rows = time_operators(repeats=repeats)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        columns = [k for k in rows[0] if not k.endswith("spread")]
        _table(columns, [[r[c] for c in columns] for r in rows])
    return 0


@ops.command(name="ceiling")
def ops_ceiling(*, repeats: int = 9, as_json: Json = False) -> int:
    """Time the 1x1 adder layers over what the instructions alone could do, on one thread.

    Parameters
    ----------
    repeats
        Runs per side and round.
    """
    from nasa.checks import instruction_ceilings, pointwise_shares

    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    ceilings, rows = instruction_ceilings(repeats=repeats), pointwise_shares(repeats=repeats)
    if as_json:
        print(json.dumps({"elements per s": ceilings, "layers": rows}, indent=1))
    else:
        most = ceilings["multiply-add"]
        _table(["formula", "over multiply-add"], [[k, v / most] for k, v in ceilings.items()])
        _table(list(rows[0]), [list(row.values()) for row in rows])
    return 0


@app.command
def doctor(*, as_json: Json = False) -> int:
    """Say what works on this machine, and what to install for the rest."""
    from nasa.checks import doctor as examine

    rows = examine()
    if as_json:
        print(json.dumps([dict(zip(("part", "state", "advice"), r, strict=True)) for r in rows]))
    else:
        _table(["part", "state", "advice"], [list(r) for r in rows])
    return 0


@app.command
def search(
    *,
    out: Out,
    space: str = "digits",
    data: str = "digits",
    strategy: Literal["evolution", "nsga2", "dnas"] = "evolution",
    accelerator: str = "nasa_45nm",
    metric: Literal["edp", "energy", "latency", "flops"] = "edp",
    budget_edp: float = float("inf"),
    pretraining: Literal["progressive", "vanilla"] = "progressive",
    pretraining_epochs: int = 30,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    size: int | None = None,
    seed: int = 0,
) -> int:
    """Pretrain a supernet and search it. Killed runs continue with ``nasa resume``.

    Parameters
    ----------
    space
        A shipped space (hybrid-all, hybrid-shift, hybrid-adder, conv, digits) or a YAML file.
    data
        ``digits``, ``fashion-mnist`` (Debian's package), a folder of IDX files, or a folder or zip
        of train/<class>/ and test/<class>/.
    strategy
        Evolution under a budget, NSGA-II (needs pymoo), or differentiable search.
    accelerator
        A shipped accelerator or a YAML file.
    metric
        Cost in the differentiable search.
    budget_edp
        Largest EDP that evolution accepts, 1e-6 J s.
    pretraining
        The paper's stages, or everything at once.
    pretraining_epochs
        Epochs of the supernet.
    epochs
        Epochs of the differentiable search, or generations of the others.
    batch_size
        Images per step.
    learning_rate
        Of the weights.
    size
        Resize images of files to this side.
    seed
        Everything random derives from it.
    """
    settings = runs.SearchSettings(
        space, data, strategy, accelerator, metric, budget_edp, pretraining, pretraining_epochs,
        epochs, batch_size, learning_rate, size, seed,
    )  # fmt: skip
    result = runs.search(out, settings, _progress("search"))
    console.print(f"{result.architecture}")
    console.print(f"{out / 'arch.json'}, {out / 'report.html'}")
    return 0


@app.command
def resume(run: Path) -> int:
    """Continue a search that was interrupted, with the settings it was started with.

    Parameters
    ----------
    run
        The folder that ``nasa search --out`` was given.
    """
    result = runs.search(run, runs.SearchSettings.load(run), _progress("search"))
    console.print(f"{result.architecture}")
    return 0


@app.command
def train(
    architecture: Path,
    *,
    out: Out,
    data: str = "digits",
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    size: int | None = None,
    seed: int = 0,
    as_json: Json = False,
) -> int:
    """Train the network of an architecture from scratch; continues where it was interrupted.

    Parameters
    ----------
    architecture
        A file that ``nasa search`` wrote.
    data
        As for ``nasa search``.
    epochs
        Of training.
    batch_size
        Images per step.
    learning_rate
        At the start of the cosine.
    size
        Resize images of files to this side.
    seed
        Initialisation and order.
    """
    row = runs.train(
        architecture, out, data, epochs, batch_size, learning_rate, size, seed, _progress("train")
    )
    if as_json:
        print(json.dumps(row))
    else:
        console.print(f"test accuracy {100 * row['test_accuracy']:.2f} %; {out / 'network.pt'}")
        console.print(str(out / "training.html"))
    return 0


@app.command
def quantize(
    run: Path,
    *,
    data: str = "digits",
    conv_bits: int = 8,
    shift_bits: int = 6,
    adder_bits: int = 6,
    size: int | None = None,
    as_json: Json = False,
) -> int:
    """Quantise the network that ``nasa train --out RUN`` wrote; write a packed file.

    Parameters
    ----------
    run
        Folder with network.pt.
    data
        Calibration and test images, as for ``nasa search``.
    conv_bits
        Weights and activations of convolutions.
    shift_bits
        Of shift layers.
    adder_bits
        Of adder layers.
    size
        Resize images of files to this side.
    """
    row = runs.quantize(run, data, (conv_bits, shift_bits, adder_bits), size)
    if as_json:
        print(json.dumps(row))
    else:
        _table(["figure", "value"], [[k, v] for k, v in row.items()])
    return 0


@app.command(name="map")
def map_command(
    workload: Path,
    *,
    accelerator: str = "nasa_45nm",
    objective: Objective = "edp",
    top: int = 1,
    out: Path | None = None,
    as_json: Json = False,
) -> int:
    """Map an architecture or workload file on an accelerator.

    Parameters
    ----------
    workload
        An architecture or a workload, as JSON.
    accelerator
        A shipped accelerator or a YAML file.
    objective
        edp, energy or latency.
    top
        So many of the best combinations of dataflows.
    out
        Folder for result, figures and report.
    """
    results = runs.map_file(workload, accelerator, objective, top, out)
    if as_json:
        print(json.dumps([r.to_json() for r in results]))
        return 0
    best = results[0]
    console.print(repr(best), highlight=False)
    _table(
        ["dataflows", "EDP, 1e-6 J s", "energy, mJ", "interval, ms"],
        [
            [
                " ".join(f"{t}:{f}" for t, f in r.dataflows.items()),
                r.edp,
                r.energy_mj,
                r.interval_ms,
            ]
            for r in results
        ],
    )
    return 0


@app.command
def allocate(
    workload: Path,
    *,
    accelerator: str = "nasa_45nm",
    area: float | None = None,
    budget: int = 60,
    as_json: Json = False,
) -> int:
    """Search the split of the area among the chunks; compare with the paper's Eq. 8.

    Parameters
    ----------
    workload
        An architecture or a workload, as JSON.
    accelerator
        A shipped accelerator or a YAML file.
    area
        Area budget in MAC PEs, instead of the accelerator's.
    budget
        Mappings to try.
    """
    row = runs.allocate(workload, accelerator, area, budget)
    if as_json:
        print(json.dumps(row))
    else:
        _table(["figure", "value"], [[k, v] for k, v in row.items()])
    return 0


@lut.command(name="build")
def lut_build(*, space: str = "hybrid-all", accelerator: str = "nasa_45nm", out: Path) -> int:
    """Write the cost of every candidate of every cell as JSON.

    Parameters
    ----------
    space
        A shipped space or a YAML file.
    accelerator
        A shipped accelerator or a YAML file.
    out
        The file to write.
    """
    count = runs.build_table(space, accelerator, out)
    console.print(f"{count} candidates; {out}")
    return 0


@app.command
def export(
    workload: Path,
    *,
    to: Literal["zigzag", "scalesim", "timeloop", "json"],
    out: Path | None = None,
) -> int:
    """Write a workload for another tool; to standard output by default.

    Parameters
    ----------
    workload
        An architecture or a workload, as JSON.
    to
        The other tool's format.
    out
        The file to write.
    """
    from nasa._files import write_text
    from nasa.interop import export as convert

    text = convert(runs.read_workload(workload), to)
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
    return 0


@app.command
def report(run: Path) -> int:
    """Write the report of a search again, from its saved results.

    Parameters
    ----------
    run
        The folder of a search.
    """
    console.print(str(runs.write_search_report(run)))
    return 0


@app.command
def demo(*, out: Out, seed: int = 0) -> int:
    """Kernels, mapping and a short search; writes result.json, report.html and figures.

    Parameters
    ----------
    seed
        Everything random derives from it.
    """
    from nasa.demo import run_demo

    result = run_demo(out, seed, lambda text: console.print(f"[dim]{text}[/dim]"))
    for claim in result["claims"]:
        met = {True: "yes", False: "no", None: "shown"}[claim["met"]]
        console.print(f"  {met:5} {claim['name']}: {claim['measured']} {claim['unit']}")
    console.print(f"{out / 'report.html'} ({result['seconds']} s)")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit codes are 0, 2 (bad input), 3 (the computation says no), 130."""
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        errors.print(f"nasa: {' '.join(str(error).split())}")
        sys.exit(2)
    except (InfeasibleMappingError, TrainingDivergedError) as error:
        errors.print(f"nasa: {error}")
        sys.exit(3)
    except (ValueError, TypeError, OSError) as error:
        errors.print(f"nasa: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("nasa: interrupted; finished epochs are kept")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
