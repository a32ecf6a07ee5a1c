"""``migperf run``, ``slo``, ``doctor``, ``report`` and ``demo``."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..loadgen.drive import LoadResult, open_loop
from ..loadgen.slo import search_rate
from ..node import Node
from ..partitions.base import available_cores
from ..partitions.registry import diagnose
from ..study import Study
from ..workloads.base import WorkloadSpec, create
from .common import mode_change_allowed, open_node, print_json, print_table, progress
from .pages import doctor_page, slo_page

__all__ = ["demo", "doctor", "report", "run", "slo"]


def run(
    study: str, *, out: str = "runs", allow_noise: bool = False, sim: str | None = None,
    report: str | None = None, json: bool = False,
) -> int:  # fmt: skip
    """Run a study file and write a folder of results.

    Example: migperf run examples/cpu.yaml --out runs/cpu

    Exit codes: 7 the host is too noisy, 8 a workload ran out of memory.

    Parameters
    ----------
    study : str
        YAML file with backend and layouts (or cases), tenants, repeat, duration_s.
    out : str
        Folder to write.
    allow_noise : bool
        Keep figures from a disturbed machine, and say so.
    sim : str
        State file or name of a simulated machine, for backend mig.
    report : str
        HTML file to write as well; its figures are written beside it.
    json : bool
        Print the rows as JSON.
    """
    plan = Study.from_yaml(study)
    result = plan.run(
        out, allow_noise=allow_noise, opener=lambda: open_node(sim),
        allow_mode_change=mode_change_allowed(), on_step=progress,
    )  # fmt: skip
    if report is not None:
        from ..study_page import study_report

        study_report(Path(out), Path(report))
    rows = result.rows()
    if json:
        plain = [
            {k: None if (isinstance(v, float) and v != v) or v in (float("inf"),) else v
             for k, v in r.items()} for r in rows
        ]  # fmt: skip
        print_json({"schema_version": 1, "rows": plain, "noise": list(result.noise)})
        return 0
    columns = ["case", "tenant", "partition", "status", "throughput_text", "p50_ms", "p99_ms"]
    print_table(
        f"{study}, {result.seconds:.0f} s",
        ["case", "tenant", "partition", "status", "samples/s [95 %]", "p50 ms", "p99 ms"],
        [[_cell(r.get(c)) for c in columns] for r in rows],
    )
    for remark in result.noise:
        print(f"noise kept: {remark}")
    print(f"written: {out}")
    return 0


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3g}"
    return "-" if value is None else str(value)


def slo(
    *,
    p99: str,
    framework: str = "numpy",
    model: str = "mlp",
    batch: int = 1,
    width: int = 512,
    image: int = 64,
    duration: float = 5.0,
    seed: int = 0,
    report: str | None = None,
    json: bool = False,
) -> int:
    """Find the largest Poisson rate whose 99th percentile meets a bound, on this machine.

    Example: migperf slo --p99 20ms --framework numpy --model mlp

    Parameters
    ----------
    p99 : str
        Bound such as 20ms or 0.5s.
    framework : str
        numpy, torch, onnx, jax, tensorflow, openvino.
    model : str
        Model name.
    batch : int
        Largest batch that the server takes at once.
    width : int
        Width of mlp.
    image : int
        Edge of the input image.
    duration : float
        Seconds per trial.
    seed : int
        Seed of the arrivals.
    report : str
        HTML file to write as well; its figures are written beside it.
    json : bool
        Print JSON.
    """
    bound = _seconds(p99)
    if not duration > 0:
        raise InputError.of("duration", duration, "a number > 0 (seconds)")
    spec = WorkloadSpec(framework, model, "infer", batch, image, 64, width)
    workload = create(spec, len(available_cores()))
    for _ in range(20):
        workload.step(spec.batch)

    def play(times: object) -> LoadResult:
        return open_loop(workload.step, times, largest_batch=batch)  # type: ignore[arg-type]

    found = search_rate(play, bound, duration=duration, seed=seed)
    if report is not None:
        slo_page(Path(report), found, bound, f"{spec.label}, batch up to {batch}")
    if json:
        print_json({"schema_version": 1, "rate": found.rate, "p99_ms": found.latency * 1000,
                    "saturated_rate": found.saturated_rate,
                    "trials": [list(t) for t in found.trials]})  # fmt: skip
    else:
        print(
            f"{found.rate:.1f} requests/s with p99 {found.latency * 1000:.2f} ms <= {p99} "
            f"({len(found.trials)} trials; saturated at {found.saturated_rate:.1f}/s)"
        )
    return 0


def _seconds(text: str) -> float:
    for suffix, scale in (("ms", 1e-3), ("us", 1e-6), ("s", 1.0)):
        if text.endswith(suffix):
            try:
                value = float(text.removesuffix(suffix)) * scale
            except ValueError:
                break
            if value > 0:
                return value
    raise InputError.of("p99", text, "a positive time such as 20ms or 0.5s")


def doctor(*, sim: str | None = None, report: str | None = None, json: bool = False) -> int:
    """Say which backends work on this machine, and why the others do not.

    Parameters
    ----------
    sim : str
        State file or name of a simulated machine.
    report : str
        HTML file to write as well; its figures are written beside it.
    json : bool
        Print JSON.
    """

    def opener() -> Node:
        return open_node(sim)

    found = diagnose(opener)
    if report is not None:
        doctor_page(Path(report), found)
    if json:
        print_json(
            {k: {"works": a.ok, "reason": a.reason, "isolates": i} for k, (a, i) in found.items()}
        )
        return 0
    print_table(
        "Backends",
        ["backend", "works", "isolates", "reason"],
        [[k, "yes" if a.ok else "no", i, a.reason] for k, (a, i) in found.items()],
    )
    return 0


def report(runs: str, *, out: str = "report.html", demands: str | None = None) -> int:
    """Write the HTML report of measurements: curves, interference, fronts, layouts.

    Examples: migperf report runs/ --out report.html;
    migperf report table.csv --demands demands.yaml --out plan.html

    Parameters
    ----------
    runs : str
        Folder that `migperf run` wrote, a table of measurements (CSV), or the paper's result
        folder.
    out : str
        HTML file; its figures are written beside it.
    demands : str
        Demands file: adds the planner's answer, what bounds cost, and the trade-off between two.
    """
    # Imported here: matplotlib takes longer to import than most commands run.
    from ..study_page import study_report

    study_report(Path(runs), Path(out), None if demands is None else Path(demands))
    print(f"written: {out}")
    return 0


def demo(*, out: str, seed: int = 0) -> int:
    """Show what the package does, in about half a minute.

    Parameters
    ----------
    out : str
        Folder to write result.json, report.html and the figures into.
    seed : int
        Seed.
    """
    from ..demo import run_demo

    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {out!r} cannot be made ({error.strerror})") from None
    result = run_demo(Path(out), seed, progress)
    for claim in result["claims"]:
        word = {True: "met", False: "NOT met", None: "shown"}[claim["met"]]
        print(f"{word}: {claim['name']}: {claim['measured']} {claim['unit']}".rstrip())
    print(f"written: {Path(out) / 'report.html'} ({result['seconds']} s)")
    return 0
