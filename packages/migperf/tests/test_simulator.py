"""The simulated driver, seen through unmodified pynvml."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from migperf import InputError, Node, Simulator, load_board
from migperf.nvml import abi
from migperf.nvml.sim import KINDS, library_path, resolve_machine
from migperf.placement import Placement, default_placement

pytestmark = pytest.mark.native


def code_of(function: str, *arguments: object) -> int:
    try:
        getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0


def enable(node: Node, gpu: int = 0) -> object:
    handle = node.gpus[gpu].handle
    assert pynvml.nvmlDeviceSetMigMode(handle, 1) == 0
    return handle


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([9, 19, 14, 19], [(2, 4, 4), (7, 0, 1), (4, 2, 2), (8, 1, 1)]),
        ([19] * 7, [(13, 6, 1), (11, 4, 1), (12, 5, 1), (7, 0, 1), (8, 1, 1), (9, 2, 1),
                    (10, 3, 1)]),
        ([14, 19, 19, 19, 19, 19], [(5, 4, 2), (13, 6, 1), (7, 0, 1), (8, 1, 1), (9, 2, 1),
                                    (10, 3, 1)]),
        ([9, 9], [(2, 4, 4), (1, 0, 4)]),
    ],
)  # fmt: skip
def test_sessions_of_the_user_guide(
    open_sim: Callable[..., Node], ids: list[int], expected: list[tuple[int, int, int]]
) -> None:
    handle = enable(open_sim("a100-40gb"))
    for profile_id, (instance, start, size) in zip(ids, expected, strict=True):
        info = pynvml.nvmlGpuInstanceGetInfo(pynvml.nvmlDeviceCreateGpuInstance(handle, profile_id))
        assert (info.id, info.placement.start, info.placement.size) == (instance, start, size)
        assert info.profileId == profile_id


def test_the_guides_failing_session(open_sim: Callable[..., Node]) -> None:
    handle = enable(open_sim("a100-40gb"))
    ids = []
    for profile_id in (19, 19, 14):
        gi = pynvml.nvmlDeviceCreateGpuInstance(handle, profile_id)
        ids.append(pynvml.nvmlGpuInstanceGetInfo(gi).id)
    assert ids == [13, 11, 3]
    assert code_of("nvmlDeviceCreateGpuInstance", handle, 9) == 23  # INSUFFICIENT_RESOURCES


def test_return_codes_with_mig_off_follow_nvml_h(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    handle = node.gpus[0].handle
    assert pynvml.nvmlDeviceGetMigMode(handle) == [0, 0]
    assert code_of("nvmlDeviceGetGpuInstanceProfileInfo", handle, 0) == 3
    assert code_of("nvmlDeviceGetGpuInstanceRemainingCapacity", handle, 19) == 3
    assert code_of("nvmlDeviceCreateGpuInstance", handle, 19) == 3
    assert code_of("nvmlDeviceGetGpuInstanceById", handle, 0) == 3
    assert code_of("nvmlDeviceGetMigDeviceHandleByIndex", handle, 0) == 3
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) == 0
    # Placements are documented to work in either mode; NULL asks for the size.
    assert abi.possible_placements(handle, 9) == [(0, 4), (4, 4)]
    count = ctypes.c_uint(1)
    array = (pynvml.c_nvmlGpuInstancePlacement_t * 1)()
    function = "nvmlDeviceGetGpuInstancePossiblePlacements"
    assert code_of(function, handle, 9, array, ctypes.byref(count)) == 7  # INSUFFICIENT_SIZE
    assert count.value == 2


def test_return_codes_with_mig_on_follow_nvml_h(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    handle = enable(node)
    assert code_of("nvmlDeviceCreateGpuInstance", handle, 1234) == 2
    assert code_of("nvmlDeviceGetGpuInstanceProfileInfo", handle, 18) == 2
    assert code_of("nvmlDeviceGetGpuInstanceProfileInfo", handle, 5) == 3  # no 8g on this board
    assert code_of("nvmlDeviceGetGpuInstanceById", handle, 0) == 6
    assert code_of("nvmlDeviceGetAttributes", handle) == 3
    bad = pynvml.c_nvmlGpuInstancePlacement_t(start=2, size=4)
    create = "nvmlDeviceCreateGpuInstanceWithPlacement"
    assert code_of(create, handle, 9, ctypes.byref(bad)) == 2
    good = pynvml.c_nvmlGpuInstancePlacement_t(start=4, size=4)
    gi = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(handle, 9, ctypes.byref(good))
    assert code_of(create, handle, 9, ctypes.byref(good)) == 23  # overlap
    ci = pynvml.nvmlGpuInstanceCreateComputeInstance(gi, 2)
    assert code_of("nvmlGpuInstanceDestroy", gi) == 19  # a compute instance is alive
    pid = os.getpid()
    node.sim.occupy(0, pid, gpu_instance=2, compute_instance=0)
    assert code_of("nvmlComputeInstanceDestroy", ci) == 19
    assert pynvml.nvmlDeviceSetMigMode(handle, 0) == 19
    assert pynvml.nvmlDeviceGetMigMode(handle) == [1, 0]
    pynvml.nvmlDeviceSetMigMode(handle, 1)
    node.sim.vacate(0, pid)
    pynvml.nvmlComputeInstanceDestroy(ci)
    assert code_of("nvmlComputeInstanceGetInfo", ci) == 2  # stale handles
    pynvml.nvmlGpuInstanceDestroy(gi)
    assert code_of("nvmlGpuInstanceGetInfo", gi) == 2
    assert code_of("nvmlGpuInstanceDestroy", gi) == 2


def test_indices_have_holes_after_destroys(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    gpu = node.gpus[0]
    gpu.apply("1g.5gb@0, 1g.5gb@1, 1g.5gb@2")
    assert [d.gpu_instance_id for d in gpu.devices()] == [7, 8, 9]
    middle = pynvml.nvmlDeviceGetGpuInstanceById(gpu.handle, 8)
    pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(middle, 0))
    pynvml.nvmlGpuInstanceDestroy(middle)
    assert code_of("nvmlDeviceGetMigDeviceHandleByIndex", gpu.handle, 1) == 6  # NOT_FOUND
    assert [(d.index, d.gpu_instance_id) for d in gpu.devices()] == [(0, 7), (2, 9)]


def test_permissions(open_sim: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    handle = enable(open_sim("a100-40gb"))
    monkeypatch.setenv("MIGPERF_SIM_UID", "54321")
    if os.geteuid() == 0:
        os.environ["MIGPERF_SIM_UID"] = "54321"
    assert code_of("nvmlDeviceCreateGpuInstance", handle, 19) == 4
    assert code_of("nvmlDeviceSetMigMode", handle, 0) == 4
    monkeypatch.delenv("MIGPERF_SIM_UID")
    assert code_of("nvmlDeviceCreateGpuInstance", handle, 19) == 0


def test_pending_mode_until_reset(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb", reset_required=True)
    handle = node.gpus[0].handle
    assert pynvml.nvmlDeviceSetMigMode(handle, 1) == 16
    assert pynvml.nvmlDeviceGetMigMode(handle) == [0, 1]
    node.sim.reset(0)
    assert pynvml.nvmlDeviceGetMigMode(handle) == [1, 1]


def test_profile_info_in_all_three_versions(open_sim: Callable[..., Node]) -> None:
    node = open_sim("h100-80gb")
    handle = enable(node)
    for profile in load_board("h100-80gb").gpu_profiles:
        v1 = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile.enum, version=1)
        v2 = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile.enum, version=2)
        by_id = pynvml.nvmlDeviceGetGpuInstanceProfileInfoById(handle, profile.id)
        assert v2.name == f"MIG {profile.name}"
        for info in (v1, v2, by_id):
            assert info.id == profile.id
            assert info.multiprocessorCount == profile.multiprocessors
            assert info.memorySizeMB == profile.memory_mib
            assert info.copyEngineCount == profile.copy_engines
    wrong = pynvml.c_nvmlGpuInstanceProfileInfo_v2_t()
    wrong.version = 0x09000001
    function = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetGpuInstanceProfileInfoV")
    assert function(handle, 0, ctypes.byref(wrong)) == 25  # ARGUMENT_VERSION_MISMATCH


@pytest.mark.parametrize("name", ["a100-40gb", "a30-24gb", "b200-180gb", "rtx-pro-6000-96gb"])
def test_driver_placement_equals_the_pure_model(open_sim: Callable[..., Node], name: str) -> None:
    board = load_board(name)
    node = open_sim(name)
    handle = enable(node)
    for first, second in itertools.product(board.gpu_profiles, repeat=2):
        placed: list[Placement] = []
        handles = []
        for profile in (first, second, first, second):
            expected = default_placement(board, profile, placed)
            if expected is None:
                assert code_of("nvmlDeviceCreateGpuInstance", handle, profile.id) == 23
                continue
            gi = pynvml.nvmlDeviceCreateGpuInstance(handle, profile.id)
            info = pynvml.nvmlGpuInstanceGetInfo(gi)
            assert (info.placement.start, info.placement.size) == (expected.start, expected.size)
            placed.append(expected)
            handles.append(gi)
        for gi in handles:
            pynvml.nvmlGpuInstanceDestroy(gi)


def test_geometry_is_read_from_the_device(open_sim: Callable[..., Node]) -> None:
    for name in ("a100-80gb", "h200-141gb", "a30-24gb"):
        node = open_sim(name)
        enable(node)
        read = node.gpus[0].board
        table = load_board(name)
        assert [p.source for p in read.gpu_profiles] == ["read from the driver"] * len(
            table.gpu_profiles
        )
        for mine, theirs in zip(
            sorted(read.gpu_profiles, key=lambda p: p.id),
            sorted(table.gpu_profiles, key=lambda p: p.id),
            strict=True,
        ):
            assert (mine.name, mine.enum, mine.starts, mine.count, mine.multiprocessors) == (
                theirs.name, theirs.enum, theirs.starts, theirs.count, theirs.multiprocessors,
            )  # fmt: skip


def test_state_is_shared_between_processes(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    node.gpus[0].apply("3g.20gb@4, 1g.5gb@0")
    script = (
        "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0);"
        "m = [n.nvmlDeviceGetMigDeviceHandleByIndex(h, i) for i in range(2)];"
        "print([n.nvmlDeviceGetName(x) for x in m]);"
        "n.nvmlDeviceCreateGpuInstance(h, 19)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **node.sim.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    product = load_board("a100-40gb").product
    assert result.stdout.strip() == repr([f"{product} MIG 3g.20gb", f"{product} MIG 1g.5gb"])
    assert len(node.gpus[0].instances()) == 3


def test_lock_and_state_survive_a_killed_process(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    enable(node)
    node.sim.add_faults("nvmlDeviceCreateGpuInstance:KILL")
    script = (
        "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0);"
        "n.nvmlDeviceCreateGpuInstance(h, 19)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **node.sim.environment()}, check=False
    )
    assert result.returncode == -9
    assert node.gpus[0].instances() == ()
    assert node.sim.counters().recoveries == 1  # it died with the lock in its hands
    assert code_of("nvmlDeviceCreateGpuInstance", node.gpus[0].handle, 19) == 0


def test_fault_script(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    handle = enable(node)
    node.sim.add_faults(
        "nvmlDeviceCreateGpuInstance:after=1:UNKNOWN;nvmlGpuInstance*:GI=13:IN_USE:x2"
    )
    gi = pynvml.nvmlDeviceCreateGpuInstance(handle, 19)
    assert code_of("nvmlDeviceCreateGpuInstance", handle, 19) == 999
    assert code_of("nvmlGpuInstanceDestroy", gi) == 19
    assert code_of("nvmlGpuInstanceDestroy", gi) == 19
    assert code_of("nvmlGpuInstanceDestroy", gi) == 0


@pytest.mark.parametrize(
    "script", ["", "x", "f:NOPE", "f:GI=x:IN_USE", "f:IN_USE:x0", "f:SLEEP=x", ":IN_USE"]
)
def test_bad_fault_scripts_are_refused(open_sim: Callable[..., Node], script: str) -> None:
    node = open_sim("a100-40gb")
    if script == "":
        node.sim.add_faults(script)  # nothing asked for, nothing done
        return
    with pytest.raises(InputError, match="faults: "):
        node.sim.add_faults(script)


def test_memory_does_not_overflow_an_instance(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    node.gpus[0].apply("1g.5gb@0")
    node.sim.occupy(0, os.getpid(), gpu_instance=7, compute_instance=0, memory_mib=4000)
    with pytest.raises(InputError):
        node.sim.occupy(0, os.getpid(), gpu_instance=7, compute_instance=0, memory_mib=1000)
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(node.gpus[0].handle, 0)
    memory = pynvml.nvmlDeviceGetMemoryInfo(mig)
    assert (memory.used >> 20, memory.total >> 20) == (4000, 4864)


def test_counters_and_virtual_latency(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    node.sim.set_latency(virtual=True, gi_create=250, ci_create=50, gi_destroy=100)
    node.sim.counters(clear=True)
    node.gpus[0].apply("3g.20gb, 1g.5gb")
    found = node.sim.counters()
    assert {k: found.calls[k] for k in KINDS if k != "read"} == {
        "gi_create": 2, "ci_create": 2, "gi_destroy": 0, "ci_destroy": 0, "mode_change": 1,
    }  # fmt: skip
    assert found.virtual_seconds == pytest.approx(0.6)
    assert found.changes == 4


def test_gpm_ratios_and_energy_follow_the_activity(open_sim: Callable[..., Node]) -> None:
    node = open_sim("h100-80gb")
    gpu = node.gpus[0]
    gpu.apply("3g.40gb@4")
    node.sim.set_activity(0, 2, graphics=0.5, sm=0.25)
    samples = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]
    for sample in samples:
        pynvml.nvmlGpmMigSampleGet(gpu.handle, 2, sample)
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version, request.numMetrics = 1, 2
    request.sample1, request.sample2 = samples
    request.metrics[0].metricId, request.metrics[1].metricId = 1, 2
    pynvml.nvmlGpmMetricsGet(request)
    assert request.metrics[0].value == pytest.approx(50.0)
    assert request.metrics[1].value == pytest.approx(25.0)
    board = load_board("h100-80gb")
    share = 0.5 * 60 / 132
    watts = board.idle_power_watts + share * (board.power_limit_watts - board.idle_power_watts)
    assert pynvml.nvmlDeviceGetPowerUsage(gpu.handle) == pytest.approx(watts * 1000, abs=1)
    for sample in samples:
        pynvml.nvmlGpmSampleFree(sample)


def test_ampere_has_no_gpm(open_sim: Callable[..., Node]) -> None:
    gpu = open_sim("a100-40gb").gpus[0]
    assert pynvml.nvmlGpmQueryDeviceSupport(gpu.handle).isSupportedDevice == 0
    sample = pynvml.nvmlGpmSampleAlloc()
    assert code_of("nvmlGpmSampleGet", gpu.handle, sample) == 3
    pynvml.nvmlGpmSampleFree(sample)


def test_machine_names() -> None:
    assert resolve_machine("dgx-a100-80gb")[1] == 8
    assert resolve_machine("a30-24gb:3")[1] == 3
    for bad in ("a30-24gb:0", "a30-24gb:x", "nope"):
        with pytest.raises(InputError, match="sim: "):
            resolve_machine(bad)


def test_unwritable_state_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"state: .* cannot be written"):
        Simulator.create("a100-40gb", tmp_path / "missing" / "state")
    with pytest.raises(InputError, match=r"state: .* cannot be read"):
        Simulator.open(tmp_path / "nothing")
    (tmp_path / "text").write_text("no state")
    with pytest.raises(InputError, match=r"state: .* a file written by"):
        Simulator.open(tmp_path / "text")


def test_library_carries_the_drivers_soname() -> None:
    content = library_path().read_bytes()
    assert b"libnvidia-ml.so.1\0" in content
