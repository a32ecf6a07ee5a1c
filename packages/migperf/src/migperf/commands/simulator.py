"""``migperf sim``: start a simulated machine and disturb it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ..errors import InputError
from ..nvml.sim import NOT_MIG, Simulator
from .common import print_json

__all__ = ["sim_app"]

sim_app = App(
    name="sim",
    help=(
        "Simulated machines. Example: migperf sim start dgx-a100-80gb --state /run/x; "
        "export MIGPERF_SIM_STATE=/run/x; migperf apply --layout '3g.40gb, 4g.40gb'"
    ),
)


def _open(state: str | None) -> Simulator:
    name = state or os.environ.get("MIGPERF_SIM_STATE")
    if not name:
        raise InputError("state: None is not allowed; allowed: --state FILE or MIGPERF_SIM_STATE")
    return Simulator.open(name)


@sim_app.command
def start(machine: str, *, state: str, seed: int = 0, reset_required: bool = False) -> int:
    """Write the state file of a new machine.

    Parameters
    ----------
    machine : str
        dgx-a100-80gb, dgx-h100, a30-24gb:4, ...
    state : str
        File to write; processes with MIGPERF_SIM_STATE set to it share the machine.
    seed : int
        Decides the UUIDs.
    reset_required : bool
        Mode changes stay pending until `sim reset`.
    """
    machine_ = Simulator.create(machine, Path(state), seed=seed, reset_required=reset_required)
    for name, value in machine_.environment().items():
        print(f"export {name}={value}")
    return 0


@sim_app.command
def stop(*, state: str | None = None) -> int:
    """Remove a machine.

    Parameters
    ----------
    state : str
        State file.
    """
    machine = _open(state)
    machine.path.unlink()
    return 0


@sim_app.command
def occupy(
    *,
    pid: int,
    gpu: Annotated[int, Parameter(name=["--gpu", "-i"])] = 0,
    gi: int = NOT_MIG,
    ci: int = NOT_MIG,
    memory_mib: int = 0,
    state: str | None = None,
) -> int:
    """Let a process run on a compute instance until it ends.

    Parameters
    ----------
    pid : int
        Process id.
    gpu : int
        GPU index.
    gi : int
        GPU instance id.
    ci : int
        Compute instance id.
    memory_mib : int
        Device memory it holds.
    state : str
        State file.
    """
    _open(state).occupy(gpu, pid, gpu_instance=gi, compute_instance=ci, memory_mib=memory_mib)
    return 0


@sim_app.command
def vacate(*, pid: int, gpu: int = 0, state: str | None = None) -> int:
    """End what `occupy` began.

    Parameters
    ----------
    pid : int
        Process id.
    gpu : int
        GPU index.
    state : str
        State file.
    """
    _open(state).vacate(gpu, pid)
    return 0


@sim_app.command
def activity(*, gpu: int = 0, gi: int = NOT_MIG, graphics: float = 0.0, sm: float = 0.0,
             dram: float = 0.0, tensor: float = 0.0, state: str | None = None) -> int:  # fmt: skip
    """Set activity ratios that telemetry, power and energy follow.

    Parameters
    ----------
    gpu : int
        GPU index.
    gi : int
        GPU instance id.
    graphics : float
        Graphics engine, 0 to 1.
    sm : float
        Multiprocessors, 0 to 1.
    dram : float
        Memory, 0 to 1.
    tensor : float
        Tensor cores, 0 to 1.
    state : str
        State file.
    """
    _open(state).set_activity(gpu, gi, graphics=graphics, sm=sm, dram=dram, tensor=tensor)
    return 0


@sim_app.command
def fault(script: str, *, state: str | None = None) -> int:
    """Let driver calls fail.

    Example: migperf sim fault "nvmlGpuInstanceDestroy:GI=5:IN_USE:x3"

    Parameters
    ----------
    script : str
        FUNCTION[:GPU=n][:GI=n][:after=n]:ACTION[:xN], separated by semicolons.
    state : str
        State file.
    """
    _open(state).add_faults(script)
    return 0


@sim_app.command
def reset(*, gpu: int = 0, state: str | None = None) -> int:
    """Reset a GPU: its layout goes, a pending mode becomes the mode.

    Parameters
    ----------
    gpu : int
        GPU index.
    state : str
        State file.
    """
    _open(state).reset(gpu)
    return 0


@sim_app.command
def counters(*, state: str | None = None) -> int:
    """Print what the simulated driver has counted, as JSON.

    Parameters
    ----------
    state : str
        State file.
    """
    found = _open(state).counters()
    print_json({"calls": dict(found.calls), "virtual_seconds": found.virtual_seconds,
                "recoveries": found.recoveries})  # fmt: skip
    return 0
