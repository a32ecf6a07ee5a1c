"""Subcommands ``perfeds2 flower run|export``."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from .output import Json, print_json, table

flower_app = cyclopts.App(
    name="flower",
    help="""The same experiment on Flower (needs the extra flower).

    Examples:

    - `perfeds2 flower run experiment.toml --out run.npz`
    - `perfeds2 flower export experiment.toml --out app/ --nodes 3`, then `flwr run app/`
    """,
)


@flower_app.command(name="run")
def flower_run(
    experiment: Path, /, *, out: Path, nodes: int = 2, workers: int = 1, json: Json = False
) -> None:
    """Replay an experiment on Flower's simulation engine; weights equal the in-process run.

    Parameters
    ----------
    experiment
        TOML file.
    out
        File for the result (npz).
    nodes
        Virtual SuperNodes; UEs are dealt to them in turn.
    workers
        Processor cores.
    json
        Print the summary as JSON.
    """
    from .config import ExperimentConfig
    from .flower import simulate_here

    result = simulate_here(ExperimentConfig.from_toml(experiment), nodes, workers)
    result.save(out)
    if json:
        print_json(result.summary())
    else:
        table("flower", ["figure", "value"], [[k, v] for k, v in result.summary().items()])


@flower_app.command(name="export")
def flower_export(experiment: Path, /, *, out: Path, mode: str = "replay", nodes: int = 1) -> None:
    """Write a folder for `flwr run`, on Flower's simulation or on SuperNodes.

    Parameters
    ----------
    experiment
        TOML file.
    out
        Folder; the run leaves run.npz there.
    mode
        `replay`: the virtual clock decides the rounds. `live`: true arrivals do, one node per UE.
    nodes
        SuperNodes to wait for.
    """
    from .flower import export

    print(export(experiment, out, mode, nodes))
