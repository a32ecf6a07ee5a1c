"""Every backend puts the machine back: on exit, on signals, when killed, and when all is killed.

The driver is the simulated one, found as ``libnvidia-ml.so.1`` through LD_LIBRARY_PATH as the real
one is, and taken for real hardware; the MPS control program is a stand-in.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from migperf import InputError, Node, Simulator
from migperf.controller import Controller
from migperf.errors import PermissionDenied
from migperf.mps import MpsDaemon
from migperf.nvml.abi import NotFound
from migperf.partitions.cpu import CpuQuota
from migperf.restore import Hold, recover_holds

# What a command line that owns a real GPU does, up to the driver library itself.
RUN = """
import sys
import migperf.node, migperf.commands.measure as measure
migperf.node.is_simulated = lambda: False
measure.open_node = lambda sim: migperf.node.Node.open()
from migperf.cli import main
main()
"""
LAYOUTS = {
    "mig": "3g.40gb, 4g.40gb", "mps": "50%*2", "timeslice": "gpu*2", "whole": "1c", "cpuset": "1c",
    "cpuquota": "40%*2", "shared": "1c*2",
}  # fmt: skip
ENDINGS = {
    "exit": (None, 0), "ctrl-c": (signal.SIGINT, 130), "term": (signal.SIGTERM, 143),
    "hang-up": (signal.SIGHUP, 129), "crash": (signal.SIGKILL, -9),
}  # fmt: skip


def eventually(true: Callable[[], object], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # An instance that the guardian destroys between two of the reader's calls is not found.
        with contextlib.suppress(NotFound):
            if true():
                return True
        time.sleep(0.02)
    return False


@pytest.fixture
def machine(
    tmp_path: Path, fake_mps: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimpleNamespace]:
    """Make a GPU whose state can be read from here, and the environment of its users."""
    simulator = Simulator.create("a100-80gb", tmp_path / "node.state")
    state = tmp_path / "state"
    monkeypatch.setenv("PATH", f"{fake_mps.parent}{os.pathsep}{os.environ['PATH']}")
    with Node.open(simulator, state_dir=state) as node:
        node.gpus[0].apply("7g.80gb")
        node.gpus[0].apply("2g.20gb@0")
        environment = {
            **os.environ, **simulator.environment(), "MIGPERF_ALLOW_MODE_CHANGE": "1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        yield SimpleNamespace(node=node, gpu=node.gpus[0], state=state, env=environment)


def cgroups() -> list[Path]:
    parent = CpuQuota()._parent()
    return list(parent[0].glob("migperf-*")) if parent else []


def snapshot(machine: SimpleNamespace) -> dict[str, object]:
    """Everything that a backend could leave changed."""
    import pynvml

    return {
        "mode": machine.gpu.mig_mode(),
        "instances": [str(i) for i in machine.gpu.instances()],
        "compute mode": pynvml.nvmlDeviceGetComputeMode(machine.gpu.handle),
        "cgroups": cgroups(),
        "daemons": mps_daemons(),
        "holds": list(machine.state.glob("*.hold")),
        "affinity": os.sched_getaffinity(0),
    }


def mps_daemons() -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "stand-in-daemon" in (process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


def start(machine: SimpleNamespace, backend: str, folder: Path, seconds: float) -> subprocess.Popen:
    study = folder / "study.yaml"
    study.write_text(
        f"backend: {backend}\nlayouts: ['{LAYOUTS[backend]}']\nduration_s: {seconds}\n"
        "warmup_s: 0.01\nrepeat: 1\ntenants: [{workload: {width: 16, batch: 1}}]\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "run", str(study), "--out", str(folder / "runs"),
         "--allow-noise"],
        env=machine.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children()
        return [c for c in children if "migperf.worker" in c.cmdline()]
    except psutil.NoSuchProcess:
        return []


def endings() -> Iterator[object]:
    """Yield every backend with every ending; those that differ least from others are for stress."""
    for backend in LAYOUTS:
        for ending in ENDINGS:
            usual = ending in ("exit", "term", "crash") and backend not in ("whole", "shared")
            marks = () if usual else (pytest.mark.stress,)
            yield pytest.param(backend, ending, marks=marks, id=f"{backend}-{ending}")


@pytest.mark.parametrize(("backend", "ending"), list(endings()))
def test_the_machine_is_as_before(
    machine: SimpleNamespace, backend: str, ending: str, tmp_path: Path
) -> None:
    if backend == "cpuquota" and not (state := CpuQuota().available()).ok:
        pytest.skip(state.reason)
    before = snapshot(machine)
    number, code = ENDINGS[ending]
    process = start(machine, backend, tmp_path, 0.2 if number is None else 60.0)
    tenants: list[psutil.Process] = []
    if number is not None:
        assert eventually(lambda: len(workers(process)) >= len(LAYOUTS[backend].split(",")))
        changed = {
            "mig": lambda now: len(now["instances"]) == 2, "mps": lambda now: now["daemons"],
            "cpuquota": lambda now: len(now["cgroups"]) == 2,
        }.get(backend, lambda now: True)  # fmt: skip
        assert eventually(lambda: changed(snapshot(machine)))
        tenants = workers(process)
        assert tenants
        process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert eventually(lambda: snapshot(machine) == before), snapshot(machine)
    assert eventually(lambda: not any(t.is_running() for t in tenants))
    assert (tmp_path / "runs").exists() is (number is None)


def test_the_mode_comes_back_as_well(machine: SimpleNamespace, tmp_path: Path) -> None:
    Controller(machine.gpu).restore(())
    machine.gpu.set_mig_mode(False)
    for ending in ("exit", "crash"):
        number, code = ENDINGS[ending]
        process = start(machine, "mig", tmp_path, 0.2 if number is None else 60.0)
        if number is not None:
            assert eventually(lambda: machine.gpu.mig_mode() == (True, True))
            process.send_signal(number)
        assert process.wait(60) == code
        process.communicate()
        assert eventually(lambda: machine.gpu.mig_mode() == (False, False)), ending


@pytest.mark.parametrize("backend", ["mig", "mps", "cpuquota"])
def test_recover_where_the_guardian_was_killed_too(
    machine: SimpleNamespace, backend: str, tmp_path: Path
) -> None:
    if backend == "cpuquota" and not (state := CpuQuota().available()).ok:
        pytest.skip(state.reason)
    before = snapshot(machine)
    process = start(machine, backend, tmp_path, 60.0)
    assert eventually(lambda: len(workers(process)) == 2)
    assert recover_holds(machine.state, machine.node) == []  # its owner lives
    for child in psutil.Process(process.pid).children():
        if any(part.endswith("_guardian.py") for part in child.cmdline()):
            child.kill()
    process.kill()
    process.communicate()
    assert snapshot(machine) != before
    assert eventually(lambda: not workers(process))
    found = recover_holds(machine.state, machine.node)
    assert len(found) == 1
    assert found[0].endswith(f"of process {process.pid}: put back")
    assert eventually(lambda: snapshot(machine) == before), snapshot(machine)


@pytest.mark.parametrize("call", ["nvmlDeviceCreateGpu*", "nvmlGpuInstanceCreate*", "nvmlGpuInst*"])
@pytest.mark.parametrize("skip", [pytest.param(0, marks=pytest.mark.stress), 1])
def test_killed_in_the_middle_of_a_call(
    machine: SimpleNamespace, call: str, skip: int, tmp_path: Path
) -> None:
    """The driver kills the process inside a call: the guardian ends in the former layout."""
    before = snapshot(machine)
    machine.node.sim.add_faults(f"{call}:after={skip}:KILL_AFTER:x1")
    process = start(machine, "mig", tmp_path, 60.0)
    assert process.wait(60) == -9
    process.communicate()
    machine.node.sim.clear_faults()
    assert eventually(lambda: snapshot(machine) == before), snapshot(machine)


def test_apply_as_a_block_survives_kill(machine: SimpleNamespace) -> None:
    code = (
        "import os, signal\nfrom migperf import Node\n"
        "with Node.open() as node, node.gpus[0].apply('1g.10gb*7') as mig:\n"
        "    assert len(mig.devices) == 7\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    before = snapshot(machine)
    done = subprocess.run([sys.executable, "-c", code], env=machine.env, check=False)
    assert done.returncode == -9
    assert eventually(lambda: snapshot(machine) == before), snapshot(machine)


def test_mps_daemon_gets_its_commands(fake_mps: Path) -> None:
    with MpsDaemon("GPU-1", control=str(fake_mps), default_percent=30, protocol=3,
                   static_partitioning=True) as daemon:  # fmt: skip
        log = (daemon.folder / "log" / "commands").read_text().splitlines()
        assert log[0] == "start -S -p 3 device GPU-1"
        assert log[1] == "set_default_active_thread_percentage 30"
        daemon.set_memory_limit(2048)
        assert daemon.clients() == [4711, 4712]
        (daemon.folder / "pipe" / "clients").write_text("17\n")
        assert daemon.clients() == [17]
        assert len(mps_daemons()) == 1
        folder = daemon.folder
    assert mps_daemons() == []
    assert not folder.exists()
    # A daemon that no longer answers is ended by its process id.
    with MpsDaemon("GPU-1", control=str(fake_mps)) as daemon:
        (daemon.folder / "pipe" / "deaf").touch()
    assert eventually(lambda: not mps_daemons())


def test_state_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_mps: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIGPERF_STATE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(PermissionDenied, match="MIGPERF_STATE_DIR"):
        MpsDaemon("GPU-1", control=str(fake_mps)).__enter__()
    assert mps_daemons() == []


def test_broken_holds_are_named(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"kind": "nope", "pid": 1, "started": 1}'):
        (tmp_path / "x.hold").write_text(text)
        with pytest.raises(InputError, match=r"x\.hold") as caught:
            recover_holds(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_hold_says_who_and_what(tmp_path: Path) -> None:
    hold = Hold.take("cgroups", {"folders": [str(tmp_path / "none")]}, tmp_path)
    data = json.loads(hold.path.read_text())
    assert (data["kind"], data["pid"]) == ("cgroups", os.getpid())
    assert recover_holds(tmp_path) == []
    hold.release()
    assert list(tmp_path.iterdir()) == []


def test_tenants_that_mps_does_not_serve_are_told(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA program runs without MPS, and says nothing, where no daemon answers it."""
    from migperf import Study
    from migperf.partitions.gpu import Mps

    for name, value in machine.env.items():
        monkeypatch.setenv(name, value)
    study = {
        "backend": "mps", "layouts": ["50%*2"], "repeat": 1, "duration_s": 0.1, "warmup_s": 0.01,
        "tenants": [{"workload": {"width": 16, "batch": 1}}],
    }  # fmt: skip
    result = Study.from_dict(study).run(allow_noise=True, opener=lambda: Node.open())
    assert any("serves 0 of 2 tenants" in line for line in result.noise)
    with Mps(lambda: Node.open()).open("50%*2") as grants:
        backend = Mps()
        folder = Path(grants[0].env["CUDA_MPS_PIPE_DIRECTORY"])
        (folder / "clients").write_text("17\n18\n")
        backend._daemon = MpsDaemon("GPU-1")
        backend._daemon._folder = folder.parent
        assert backend.check([17, 18]) == ""
        assert "serves 1 of 2" in backend.check([17, 19])


BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_gpu.py"


@pytest.mark.stress
def test_the_gpu_benchmark_runs_to_its_end_on_stand_ins(
    machine: SimpleNamespace, tmp_path: Path
) -> None:
    """All of bench_gpu.py but the GPU: driver library, MPS program and readings are stand-ins."""
    pytest.importorskip("torch")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import migperf.node\nmigperf.node.is_simulated = lambda: False\n"
    )
    before = snapshot(machine)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--model", "tiny", "--out", str(out)],
        env={**machine.env, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "bench_gpu.json").read_text())
    assert result["command"].endswith("--model tiny")
    backends, cases = result["tables"]
    works = {row[0]: row[1] for row in backends["rows"]}
    assert (works["timeslice"], works["mps"], works["mig"]) == ("yes", "yes", "yes")
    assert [row[0] for row in cases["rows"]] == [
        "timeslice:gpu", *["timeslice:gpu*2"] * 2, "mps:50%*2 alone", *["mps:50%*2"] * 2,
    ]  # fmt: skip
    assert all("ERR" not in str(row) and row[3] is not None for row in cases["rows"])
    rows = {g["name"]: g for g in result["goals"]}
    assert rows["MIG mode after the studies"]["met"] is True
    assert rows["energy counter of the driver over the studies"]["met"] is True
    served = next(g for name, g in rows.items() if name.startswith("mps on"))
    assert "serves 0 of 2" in served["note"]
    assert snapshot(machine) == before
