"""Unmodified NVML clients on the simulated driver: cuda.bindings, nvitop, gpustat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from migperf import Node, load_board

pytestmark = [pytest.mark.native, pytest.mark.peer]


def run_client(node: Node, script: str, trace: Path | None = None) -> str:
    env = {**os.environ, **node.sim.environment()}
    if trace is not None:
        env["MIGPERF_SIM_TRACE"] = str(trace)
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def node(open_sim: Callable[..., Node]) -> Node:
    found = open_sim("h100-80gb:2")
    found.gpus[0].apply("3g.40gb@4, 1c.4g.40gb*2, 2c.4g.40gb")
    ci = found.gpus[0].instances()[1].compute[0]
    found.sim.occupy(
        0, os.getpid(), gpu_instance=2, compute_instance=ci.id, memory_mib=321, watch=True
    )
    return found


def test_cuda_bindings_reads_the_same_partitions(node: Node) -> None:
    pytest.importorskip("cuda.bindings.nvml")
    script = """
import json
from cuda.bindings import nvml as n
n.init_v2()
h = n.device_get_handle_by_index_v2(0)
out = {"mode": list(n.device_get_mig_mode(h)), "count": n.device_get_count_v2(), "profiles": []}
for p in range(18):
    try:
        i = n.device_get_gpu_instance_profile_info_v(h, p)
    except n.NvmlError as e:
        out.setdefault("errors", []).append(type(e).__name__)
        continue
    out["profiles"].append([i.id, i.slice_count, i.multiprocessor_count, i.memory_size_mb, i.name])
out["devices"] = []
for k in range(n.device_get_max_mig_device_count(h)):
    try:
        m = n.device_get_mig_device_handle_by_index(h, k)
    except n.NvmlError:
        continue
    out["devices"].append([n.device_get_uuid(m), n.device_get_gpu_instance_id(m),
                           n.device_get_compute_instance_id(m)])
print(json.dumps(out))
"""
    found = json.loads(run_client(node, script))
    assert found["mode"] == [1, 1]
    assert found["count"] == 2
    board = load_board("h100-80gb")
    assert sorted(map(tuple, found["profiles"])) == sorted(
        (p.id, p.compute_slices, p.multiprocessors, p.memory_mib, f"MIG {p.name}")
        for p in board.gpu_profiles
    )
    assert set(found["errors"]) == {"NotSupportedError"}
    assert [tuple(d) for d in found["devices"]] == [
        (d.uuid, d.gpu_instance_id, d.compute_instance_id) for d in node.gpus[0].devices()
    ]


def test_nvitop_lists_mig_devices_and_processes(node: Node, tmp_path: Path) -> None:
    pytest.importorskip("nvitop")
    script = """
import json
from nvitop import Device, libnvml
d = Device(0)
print(json.dumps({
    "mig": [[m.name(), m.uuid(), m.gpu_instance_id(), m.memory_total()] for m in d.mig_devices()],
    "pids": list(d.processes()),
    "power": d.power_usage(),
    "utilization": str(d.gpu_utilization()),
}))
"""
    trace = tmp_path / "trace"
    found = json.loads(run_client(node, script, trace))
    assert [tuple(m[:3]) for m in found["mig"]] == [
        (d.name, d.uuid, d.gpu_instance_id) for d in node.gpus[0].devices()
    ]
    assert found["pids"] == [os.getpid()] or found["pids"] == [str(os.getpid())]
    assert found["power"] > 0
    assert found["utilization"] == "N/A"  # there is none in MIG mode; never a zero
    calls = trace.read_text()
    assert "nvmlDeviceGetMigDeviceHandleByIndex" in calls


def test_no_function_that_nvitop_and_gpustat_ask_for_is_missing(node: Node) -> None:
    """Every property and method of nvitop's devices, and gpustat's query."""
    pytest.importorskip("nvitop")
    pytest.importorskip("gpustat")
    script = """
import json, logging
import pynvml
found, missing = pynvml._nvmlGetFunctionPointer, []
def pointer(name):
    try:
        return found(name)
    except pynvml.NVMLError_FunctionNotFound:
        missing.append(name)
        raise
pynvml._nvmlGetFunctionPointer = pointer
logging.disable(logging.CRITICAL)
from nvitop import Device
import gpustat
asked = 0
for device in [*Device.all(), *Device(0).mig_devices()]:
    for name in dir(device):
        if name.startswith("_") or name in ("oneshot", "cuda", "parent"):
            continue
        asked += 1
        try:
            value = getattr(device, name)
            value() if callable(value) else value
        except (TypeError, RuntimeError, pynvml.NVMLError):
            pass  # needs an argument, or a CUDA device
gpustat.new_query()
print(json.dumps([asked, missing]))
"""
    asked, missing = json.loads(run_client(node, script).splitlines()[-1])
    assert asked > 200
    assert missing == []


def test_gpustat_runs(node: Node) -> None:
    pytest.importorskip("gpustat")
    script = (
        "import gpustat, json; q = gpustat.new_query();"
        "print(json.dumps([[g['index'], g['uuid'], g['memory.total'], len(g['processes'] or [])]"
        " for g in q.jsonify()['gpus']]))"
    )
    found = json.loads(run_client(node, script))
    board = load_board("h100-80gb")
    assert [row[:3] for row in found] == [[g.index, g.uuid, board.memory_mib] for g in node.gpus]
    assert found[0][3] == 1


def test_every_mig_call_of_pynvml_is_answered(node: Node) -> None:
    """No pynvml function about MIG or GPM that is not about vGPU lacks its symbol."""
    import re

    source = Path(pynvml.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', source))
    wanted = {
        n
        for n in names
        if re.search(r"Mig|GpuInstance|ComputeInstance|Gpm|GetAttributes", n) and "Vgpu" not in n
    }
    assert len(wanted) > 30
    for name in sorted(wanted):
        assert pynvml._nvmlGetFunctionPointer(name)
