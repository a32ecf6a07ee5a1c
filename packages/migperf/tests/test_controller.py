"""Apply, verify, roll back, resume: on the simulated driver with injected faults."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable

import pynvml
import pytest
from migperf import (
    Infeasible,
    InputError,
    InstanceInUse,
    Layout,
    MigperfError,
    Node,
    Simulator,
)
from migperf.controller import Controller
from migperf.errors import PermissionDenied, ResetRequired
from migperf.journal import Journal

pytestmark = pytest.mark.native


def places(node: Node, gpu: int = 0) -> list[str]:
    return [str(g) for g in node.gpus[gpu].instances()]


def test_apply_with_explicit_places(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    applied = node.gpus[0].apply("3g.40gb@4, 2g.20gb, 1g.10gb*2")
    assert places(node) == ["2g.20gb@0", "1g.10gb@2", "1g.10gb@3", "3g.40gb@4"]
    uuids = {d.uuid for d in applied.devices}
    assert len(uuids) == 4
    assert applied.devices[0].env()["CUDA_VISIBLE_DEVICES"].startswith("MIG-")
    for device in applied.devices:
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        assert pynvml.nvmlDeviceGetGpuInstanceId(handle) == device.gpu_instance_id


def test_context_manager_puts_the_former_layout_back(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("3g.40gb@4, 1c.3g.40gb*2")
    before = places(node)
    with gpu.apply("7g.80gb") as mig:
        assert len(mig.devices) == 1
    assert places(node) == before
    with pytest.raises(RuntimeError, match="body"), gpu.apply("1g.10gb*7"):
        raise RuntimeError("body")
    assert places(node) == before


def test_a_running_job_is_not_touched(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("4g.40gb, 3g.40gb")
    node.sim.occupy(0, os.getpid(), gpu_instance=1, compute_instance=0, memory_mib=100)
    uuid = next(d.uuid for d in gpu.devices() if d.gpu_instance_id == 1)
    node.sim.counters(clear=True)
    gpu.apply("4g.40gb, 1g.10gb*3")
    assert next(d.uuid for d in gpu.devices() if d.gpu_instance_id == 1) == uuid
    calls = node.sim.counters().calls
    assert (calls["gi_destroy"], calls["gi_create"]) == (1, 3)
    with pytest.raises(InstanceInUse, match=str(os.getpid())) as caught:
        gpu.apply("7g.80gb")
    assert caught.value.pids == (os.getpid(),)


def test_no_room_and_no_permission_leave_everything(
    open_sim: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    with pytest.raises(Infeasible):
        gpu.apply("4g.40gb*2")
    assert gpu.mig_mode() == (False, False)
    gpu.apply("2g.20gb")
    monkeypatch.setenv("MIGPERF_SIM_UID", "54321")
    with pytest.raises(PermissionDenied):
        gpu.apply("7g.80gb")
    monkeypatch.delenv("MIGPERF_SIM_UID")
    assert places(node) == ["2g.20gb@4"]


def test_reset_required(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb", reset_required=True)
    with pytest.raises(ResetRequired, match="pending"):
        node.gpus[0].apply("7g.80gb")
    node.sim.reset(0)
    node.gpus[0].apply("7g.80gb")
    assert places(node) == ["7g.80gb@0"]


@pytest.mark.parametrize(
    "fault",
    [
        "nvmlDeviceCreateGpuInstanceWithPlacement:after=1:INSUFFICIENT_RESOURCES",
        "nvmlDeviceCreateGpuInstanceWithPlacement:UNKNOWN",
        "nvmlGpuInstanceCreateComputeInstanceWithPlacement:after=2:INSUFFICIENT_RESOURCES",
        "nvmlGpuInstanceDestroy:UNKNOWN",
        "nvmlComputeInstanceDestroy:after=1:GPU_IS_LOST",
    ],
)
def test_a_failing_step_is_rolled_back(open_sim: Callable[..., Node], fault: str) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("3g.40gb@0, 2g.20gb@4")
    before = places(node)
    node.sim.add_faults(fault)
    with pytest.raises(MigperfError):
        gpu.apply("1g.10gb*7")
    assert places(node) == before
    node.sim.clear_faults()
    gpu.apply("1g.10gb*7")
    assert len(places(node)) == 7


def test_held_instances_are_waited_for(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("7g.80gb")
    waits: list[float] = []
    controller = Controller(gpu, sleep=waits.append)
    node.sim.add_faults("nvmlGpuInstanceDestroy:IN_USE:x3")
    controller.apply(Layout.parse("3g.40gb"))
    assert waits == [0.05, 0.1, 0.2]
    node.sim.add_faults("nvmlComputeInstanceDestroy:IN_USE:x20")
    with pytest.raises(InstanceInUse, match="still in use after 6 attempts"):
        controller.apply(Layout.parse("7g.80gb"))
    assert places(node) == ["3g.40gb@4"]


def test_two_processes_cannot_apply_at_once(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("7g.80gb")
    with (
        Journal(node.state_dir / f"{gpu.uuid}.journal"),
        pytest.raises(InstanceInUse, match="another process"),
    ):
        gpu.apply("3g.40gb")
    gpu.apply("3g.40gb")


def test_somebody_elses_change_is_noticed(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("3g.40gb@4")

    def meddle(step: str) -> None:
        if step.startswith("create 1c@0 in 1g.10gb") and len(gpu.instances()) == 2:
            pynvml.nvmlDeviceCreateGpuInstance(gpu.handle, 19)

    with pytest.raises(MigperfError, match="something else changes it"):
        gpu.apply("3g.40gb, 1g.10gb*2, 2g.20gb@2", on_step=meddle)


def test_journal_that_cannot_be_written(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    node.state_dir = node.sim.path / "below-a-file"
    with pytest.raises(PermissionDenied, match="state_dir"):
        node.gpus[0].apply("7g.80gb")


def test_torn_and_broken_journals(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("7g.80gb")
    path = node.state_dir / f"{gpu.uuid}.journal"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["record"] for r in records] == ["begin", "intent", "done", "intent", "done", "commit"]
    with path.open("a") as stream:
        stream.write('{"record":"inte')  # torn by a crash: ignored
    gpu.apply("3g.40gb")
    path.write_text("no journal\n")
    with pytest.raises(InputError, match="line 1"):
        gpu.apply("7g.80gb")


def kill_during_apply(node: Node, layout: str, fault: str) -> int:
    """Run an apply in a child that the simulated driver kills; return its exit status."""
    node.sim.add_faults(fault)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            node.gpus[0].apply(layout)
            status = 0
        finally:
            os._exit(status)
    _, found = os.waitpid(pid, 0)
    node.sim.clear_faults()
    return os.waitstatus_to_exitcode(found)


@pytest.mark.parametrize("action", ["KILL", "KILL_AFTER"])
@pytest.mark.parametrize("call", [("nvmlDeviceCreate*", 1), ("nvmlComputeInstanceDestroy", 0)])
def test_kill_and_resume(open_sim: Callable[..., Node], action: str, call: tuple[str, int]) -> None:
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    gpu.apply("3g.40gb@0, 2g.20gb@4")
    before = places(node)
    target = "1g.10gb@0, 1g.10gb@1, 2g.20gb@2, 3g.40gb@4"
    status = kill_during_apply(node, target, f"{call[0]}:after={call[1]}:{action}")
    assert status == -9
    assert Controller(gpu).recover() in ("finished", "undone")
    assert places(node) in (before, target.split(", "))
    assert Controller(gpu).recover() == "nothing to do"


@pytest.mark.stress
def test_kill_at_500_points(open_sim: Callable[..., Node]) -> None:
    """Kill -9 before and after every mutating call and many reads, over several transitions."""
    cases = (
        ("3g.40gb@0, 2g.20gb@4", "1g.10gb@0, 1g.10gb@1, 2g.20gb@2, 3g.40gb@4"),
        ("4g.40gb@0, 3g.40gb@4", "4g.40gb@0, 1g.10gb@4, 1g.10gb@5, 1g.10gb@6"),
        ("7g.80gb@0", "2g.20gb@0, 2g.20gb@2, 2g.20gb@4, 1g.10gb@6"),
    )
    functions = ("nvmlDeviceCreate*", "nvmlGpuInstance*", "nvmlCompute*", "nvmlDeviceGet*")
    node = open_sim("a100-80gb")
    gpu = node.gpus[0]
    points = {"finished": 0, "undone": 0, "nothing to do": 0}
    for (start, target), function, action in itertools.product(
        cases, functions, ("KILL", "KILL_AFTER")
    ):
        for skip in itertools.count():
            gpu.apply(start)
            before = places(node)
            status = kill_during_apply(node, target, f"{function}:after={skip}:{action}")
            if status == 0:
                break
            assert status == -9, (function, skip, action)
            points[Controller(gpu).recover()] += 1
            assert places(node) in (before, target.split(", ")), (function, skip, action)
    assert sum(points.values()) >= 500, points
    assert node.sim.counters().recoveries >= 100  # many died with the driver's lock in their hands


def test_mode_guard_on_real_hardware(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb")
    node.simulated = False  # what a real driver looks like to the guard
    with pytest.raises(InputError, match="MIGPERF_ALLOW_MODE_CHANGE=1"):
        node.gpus[0].apply("7g.80gb")
    assert node.gpus[0].mig_mode() == (False, False)


def test_one_node_at_a_time(open_sim: Callable[..., Node], tmp_path: object) -> None:
    open_sim("a100-80gb")
    with pytest.raises(MigperfError, match="close"):
        Simulator.create("a30-24gb")
