"""``migperf apply``, ``assert``, ``export`` and ``recover``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..controller import Controller
from ..errors import Infeasible, InputError
from ..interop.migparted import (
    ConfigEntry,
    MigConfig,
    differences,
    export_config,
    load_config,
    stock_config,
    wanted_for,
)
from ..layout import Layout
from ..node import Gpu, Node
from ..restore import recover_holds
from .common import gpu_of, mode_change_allowed, open_node, print_json, progress, write_text

__all__ = ["apply", "assert_command", "export", "recover"]

GpuOption = Annotated[int | None, Parameter(name=["--gpu", "-i"])]
FileOption = Annotated[str | None, Parameter(name=["--file", "-f"])]
ConfigOption = Annotated[str | None, Parameter(name=["--config", "-c"])]


def _entries(node: Node, file: str | None, config: str | None) -> tuple[ConfigEntry, ...]:
    source = load_config(file) if file else stock_config(node.gpus[0].board)
    if config is None:
        if len(source.configs) != 1:
            raise InputError.of("config", config, ", ".join(sorted(source.configs)))
        config = next(iter(source.configs))
    return source.get(config)


def _targets(
    node: Node, layout: str | None, file: str | None, config: str | None, gpu: int | None
) -> list[tuple[Gpu, bool, Layout]]:
    gpus = list(node.gpus) if gpu is None else [gpu_of(node, gpu)]
    if layout is not None:
        if file or config:
            raise InputError("layout: give either --layout or --file/--config, not both")
        return [(g, True, Layout.parse(layout)) for g in gpus]
    if file is None and config is None:
        raise InputError("config: None is not allowed; allowed: --layout, --config, or --file")
    entries = _entries(node, file, config)
    found = []
    for target in gpus:
        entry = wanted_for(target, entries)
        if entry is not None:
            found.append((target, entry.mig_enabled, entry.layout()))
    return found


def apply(
    *,
    layout: str | None = None,
    file: FileOption = None,
    config: ConfigOption = None,
    gpu: GpuOption = None,
    dry_run: bool = False,
    stop_running: bool = False,
    sim: str | None = None,
    json: bool = False,
) -> int:
    """Cut GPUs as wanted, destroying as little as possible.

    Examples: migperf apply -f config.yaml -c all-balanced --dry-run;
    migperf apply --layout "3g.40gb, 4g.40gb" -i 0

    Exit codes: 3 cannot be placed, 4 no permission, 5 in use, 6 reset required. On real hardware a
    change of the MIG mode needs MIGPERF_ALLOW_MODE_CHANGE=1 in the environment.

    Parameters
    ----------
    layout : str
        PROFILE[@START][*COUNT], separated by commas.
    file : str
        mig-parted configuration file.
    config : str
        Configuration in the file; without a file one of mig-parted's stock names.
    gpu : int
        Only this GPU.
    dry_run : bool
        Show what would be done.
    stop_running : bool
        Also plan to destroy instances on which processes run; the driver still refuses while
        they live.
    sim : str
        State file or name of a simulated machine.
    json : bool
        Print JSON.
    """
    with open_node(sim) as node:
        report = []
        targets = _targets(node, layout, file, config, gpu)
        # Every GPU's answer is computed before the first one is touched.
        for target, enabled, wanted in targets:
            if enabled:
                target.plan(wanted, keep_running=not stop_running)
        for target, enabled, wanted in targets:
            change = mode_change_allowed()
            if not enabled:
                steps = [f"destroy {g}" for g in target.instances()]
                if target.mig_mode() not in (None, (False, False)):
                    steps.append("switch MIG off")
                if not dry_run and steps:
                    Controller(target).apply(Layout(()), keep_running=not stop_running)
                    target.set_mig_mode(False, allow_mode_change=change)
                report.append({"gpu": target.index, "steps": steps, "kept": []})
                continue
            plan = target.plan(wanted, keep_running=not stop_running)
            if not dry_run:
                plan = target.apply(
                    wanted,
                    keep_running=not stop_running,
                    allow_mode_change=change,
                    on_step=lambda text, index=target.index: progress(f"gpu {index}: {text}"),  # type: ignore[misc]
                ).transition
            report.append(
                {
                    "gpu": target.index,
                    "steps": [str(a) for a in plan.actions],
                    "kept": [str(g) for g in plan.kept],
                }
            )
    if json:
        print_json({"schema_version": 1, "dry_run": dry_run, "gpus": report})
        return 0
    for row in report:
        kept = f"keeps {', '.join(row['kept'])}" if row["kept"] else "keeps nothing"  # type: ignore[arg-type]
        print(f"gpu {row['gpu']}: {kept}; {len(row['steps'])} step(s)")  # type: ignore[arg-type]
        for step in row["steps"]:  # type: ignore[attr-defined]
            print(f"  {step}")
    return 0


def assert_command(
    *, file: FileOption = None, config: ConfigOption = None, sim: str | None = None
) -> int:
    """Check that the GPUs are cut as a configuration says (exit code 3 where they are not).

    Example: migperf assert -f config.yaml -c all-balanced

    Parameters
    ----------
    file : str
        mig-parted configuration file.
    config : str
        Configuration in the file; without a file one of mig-parted's stock names.
    sim : str
        State file or name of a simulated machine.
    """
    with open_node(sim) as node:
        if file is None and config is None:
            raise InputError("config: None is not allowed; allowed: --config, or --file")
        found = differences(node, _entries(node, file, config))
    if found:
        raise Infeasible("assert: " + "; ".join(found))
    return 0


def export(*, out: str | None = None, name: str = "current", sim: str | None = None) -> int:
    """Write what stands now as a mig-parted configuration.

    Example: migperf export --out now.yaml

    Parameters
    ----------
    out : str
        File to write; standard output where none is given.
    name : str
        Name of the configuration.
    sim : str
        State file or name of a simulated machine.
    """
    with open_node(sim) as node:
        config: MigConfig = export_config(node, name)
    if out is None:
        sys.stdout.write(config.dump())
    else:
        write_text(Path(out), config.dump())
    return 0


def recover(*, gpu: GpuOption = None, sim: str | None = None) -> int:
    """Finish or undo what a crash interrupted: reconfigurations, layouts, MPS daemons, groups.

    What a process that still runs has changed is left alone.

    Parameters
    ----------
    gpu : int
        Only this GPU.
    sim : str
        State file or name of a simulated machine.
    """
    for line in recover_holds():
        print(line)
    with open_node(sim) as node:
        gpus = list(node.gpus) if gpu is None else [gpu_of(node, gpu)]
        for line in recover_holds(node.state_dir, node):
            print(line)
        for target in gpus:
            mode = target.mig_mode()
            if mode is not None and mode[0]:
                print(f"gpu {target.index}: {Controller(target).recover()}")
    return 0
