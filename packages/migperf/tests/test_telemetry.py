"""DCGM text, NVML readings, GPM, energy shares and the exporter."""

from __future__ import annotations

import math
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from migperf import InputError, Node, load_board
from migperf.energy import InstanceActivity, attribute_energy
from migperf.exporter import Exporter, serve
from migperf.layout import enumerate_layouts
from migperf.telemetry.cpu import CpuSampler, rapl_domains
from migperf.telemetry.dcgm_text import FIELDS, parse_exporter, read_log
from migperf.telemetry.nvml import GpmSampler, read_gpu
from prometheus_client.parser import text_string_to_metric_families

LOG = "EntityId,GRACT,FBUSD,TimeStamp\n0,0.5,100,10\n0,N/A,N/A,11\n0,0.7,300,12\n1,0.9,5,12\n"


def test_windows_are_inclusive_and_skip_missing_samples(tmp_path: Path) -> None:
    path = tmp_path / "dcgm.csv"
    path.write_text(LOG)
    log = read_log(path)
    found = log.window("gr_engine_active", 10, 12, entity=0)
    assert (found.mean, found.samples) == (pytest.approx(0.6), 2)
    assert found.std == pytest.approx(np.std([0.5, 0.7]))  # population, as the authors computed
    assert log.window("fb_used", 12, 12).mean == pytest.approx(152.5)
    assert math.isnan(log.window("fb_used", 20, 30).mean)
    with pytest.raises(InputError, match="field"):
        log.window("nope", 0, 1)


@pytest.mark.parametrize(
    "text", ["", "a,b\n", "EntityId,TimeStamp,WHAT\n", "EntityId,GRACT,TimeStamp\n0,x,1\n",
             "EntityId,GRACT,TimeStamp\n0,1\n", "EntityId,GRACT,TimeStamp\nN/A,1,1\n"],
)  # fmt: skip
def test_bad_logs_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(InputError):
        read_log(path)


def test_old_and_new_field_names_are_the_same() -> None:
    assert FIELDS[1001] == ("gr_engine_active", "GRACT", "gr_engine_util_ratio")
    old = 'DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu="1"} 0.25\n'
    new = 'DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO{gpu="1"} 0.25\n'
    assert parse_exporter(old) == parse_exporter(new) == {("gr_engine_active", "1", ""): 0.25}


@pytest.mark.native
def test_missing_values_are_none_and_not_zero(open_sim: Callable[..., Node]) -> None:
    gpu = open_sim("a100-40gb").gpus[0]
    assert read_gpu(gpu).utilization == 0.0
    gpu.apply("3g.20gb, 2g.10gb")
    reading = read_gpu(gpu)
    assert reading.utilization is None  # there is none in MIG mode
    assert [i.profile for i in reading.instances] == ["3g.20gb", "2g.10gb"]
    assert reading.energy_joules is not None


@pytest.mark.native
def test_gpm_ratios_per_instance(open_sim: Callable[..., Node]) -> None:
    node = open_sim("h100-80gb")
    gpu = node.gpus[0]
    gpu.apply("3g.40gb@4, 4g.40gb@0")
    node.sim.set_activity(0, 2, graphics=0.75, tensor=0.5)
    assert GpmSampler.supported(gpu)
    with GpmSampler(gpu, 2) as busy, GpmSampler(gpu, 1) as idle:
        found, nothing = busy.read(), idle.read()
    assert found["gr_engine_active"] == pytest.approx(0.75)
    assert found["tensor_active"] == pytest.approx(0.5)
    assert nothing["gr_engine_active"] == pytest.approx(0.0)


@pytest.mark.native
def test_exporter_has_dcgm_exporters_names_and_labels(open_sim: Callable[..., Node]) -> None:
    node = open_sim("dgx-h100")
    for gpu in node.gpus:
        gpu.apply("1g.10gb*7")
    node.sim.occupy(0, os.getpid(), gpu_instance=7, compute_instance=0, memory_mib=512)
    exporter = Exporter(node, "host1")
    exporter.page()
    text = exporter.page().decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    used = families["DCGM_FI_DEV_FB_USED"].samples
    assert len(used) == 56
    # Label names of dcgm-exporter's template; those of the instance only on instances.
    assert set(used[0].labels) == {
        "gpu", "UUID", "pci_bus_id", "device", "modelName", "hostname", "GPU_I_PROFILE", "GPU_I_ID",
    }  # fmt: skip
    power = families["DCGM_FI_DEV_POWER_USAGE"].samples
    assert len(power) == 8
    assert "GPU_I_ID" not in power[0].labels
    mine = [s for s in used if s.labels["gpu"] == "0" and s.labels["GPU_I_ID"] == "7"]
    assert mine[0].value == 512.0
    assert mine[0].labels["GPU_I_PROFILE"] == "1g.10gb"
    assert "DCGM_FI_DEV_GPU_UTIL" not in families
    assert "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter" in text
    assert len(families["DCGM_FI_PROF_GR_ENGINE_ACTIVE"].samples) == 56
    assert parse_exporter(text)["fb_used", "0", "7"] == 512.0
    exporter.close()


@pytest.mark.native
def test_exporter_over_http(open_sim: Callable[..., Node]) -> None:
    exporter = Exporter(open_sim("a30-24gb"), "host1")
    with serve(exporter, 0, "127.0.0.1") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            assert b"DCGM_FI_DEV_POWER_USAGE" in answer.read()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/other")
        with pytest.raises(InputError, match="port"):
            serve(exporter, server.server_address[1], "127.0.0.1")
        server.shutdown()
        thread.join()


@given(
    st.integers(0, 296),
    st.lists(st.floats(0, 1), min_size=7, max_size=7),
    st.one_of(st.just(0.0), st.floats(1e-6, 1e5)),
    st.floats(0.1, 1e3),
)
def test_energy_shares_sum_to_the_counter(
    index: int, activities: list[float], total: float, seconds: float
) -> None:
    layout = enumerate_layouts("a100-80gb")[index]
    parts = [
        InstanceActivity(f"i{n}", name, activities[n]) for n, name in enumerate(layout.multiset)
    ]
    found = attribute_energy(load_board("a100-80gb"), parts, total, seconds)
    assert found.imbalance <= 1e-9
    assert found.unattributed >= -1e-9
    assert all(j >= 0 for j in found.joules.values())
    assert found.estimate


def test_energy_by_hand() -> None:
    # 100 W for 10 s; idle 55 W: 550 J by memory slices (4 + 4 of 8), 450 J by activity x SM
    # (42 x 1.0 against 56 x 0.0).
    board = load_board("a100-80gb")
    parts = [InstanceActivity("a", "3g.40gb", 1.0), InstanceActivity("b", "4g.40gb", 0.0)]
    found = attribute_energy(board, parts, 1000.0, 10.0)
    assert (found.joules["a"], found.joules["b"]) == (pytest.approx(725.0), pytest.approx(275.0))
    with pytest.raises(InputError, match="each name once"):
        attribute_energy(board, [parts[0], parts[0]], 1.0, 1.0)


def test_rapl_counters_overflow(tmp_path: Path) -> None:
    domain = tmp_path / "intel-rapl:0"
    domain.mkdir()
    (domain / "energy_uj").write_text("9000000")
    (domain / "max_energy_range_uj").write_text("10000000")
    (tmp_path / "intel-rapl:0:0").mkdir()
    assert rapl_domains(tmp_path) == [domain]
    sampler = CpuSampler(tmp_path)
    (domain / "energy_uj").write_text("500000")
    assert sampler.read().energy_joules == pytest.approx(1.5)
    assert CpuSampler(tmp_path / "none").read().energy_joules is None
