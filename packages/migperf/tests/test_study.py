"""Studies on CPU partitions, noise, failures of tenants, restored state."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from migperf import Infeasible, InputError, Study, load_measurements
from migperf.errors import NoisyHost, WorkloadOutOfMemory
from migperf.noise import Limits, NoiseMeter, NoiseReading
from migperf.partitions.base import CoreLayout, Grant, available_cores, thread_environment
from migperf.partitions.cpu import CpuQuota, CpuSet
from migperf.partitions.registry import BACKENDS, diagnose, get_backend
from migperf.study_page import study_report
from migperf.tenants import Tenant, run_window
from migperf.workloads.base import FrameworkMissing, WorkloadSpec, create
from migperf.workloads.numpy_ import MLP

SMALL = {"framework": "numpy", "width": 64, "batch": 4}


def study(**changes: object) -> Study:
    data: dict[str, object] = {
        "backend": "shared", "layouts": ["1c*2"], "tenants": [{"name": "a", "workload": SMALL}],
        "repeat": 1, "duration_s": 0.2, "warmup_s": 0.05,
    }  # fmt: skip
    return Study.from_dict({**data, **changes})


def test_study_writes_a_folder_that_planner_and_report_read(tmp_path: Path) -> None:
    tenants = [
        {"name": "server", "workload": SMALL, "arrivals": {"poisson": 200}, "slo": {"p99_ms": 50}},
        {"name": "trainer", "workload": {**SMALL, "mode": "train"}},
    ]
    result = study(tenants=tenants, repeat=2).run(tmp_path / "runs", allow_noise=True)
    rows = {r["tenant"]: r for r in result.rows()}
    assert rows["server"]["status"] == rows["trainer"]["status"] == "ok"
    assert rows["server"]["throughput"] == pytest.approx(200, rel=0.5)
    assert rows["trainer"]["repeats"] == 2
    window = result.windows["shared:1c*2"][0]
    served = next(r for r in window.results if r.tenant == "server")
    assert np.all(served.times["done"] >= served.times["started"])
    assert np.all(served.times["started"] >= served.times["scheduled"] - 1e-9)
    table = load_measurements(tmp_path / "runs")
    assert ("mlp-w64-numpy", "train") in table.workloads
    meta = json.loads((tmp_path / "runs" / "meta.json").read_text())
    assert meta["environment"]["threads"] == len(available_cores())
    study_report(tmp_path / "runs", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "shared:1c*2" in page
    assert (tmp_path / "report-throughput.svg").is_file()
    assert not list(tmp_path.glob(".*"))


def test_noisy_host_is_refused_with_code_7(tmp_path: Path) -> None:
    impossible = Limits(pressure=-1.0, steal=-1.0, foreign=-1.0, spin=-1.0)
    waits: list[float] = []
    with pytest.raises(NoisyHost, match="too noisy after 2 repeats") as caught:
        study().run(tmp_path / "runs", limits=impossible, retries=2, sleep=waits.append)
    assert caught.value.exit_code == 7
    assert waits == [0.5, 1.0]
    assert not (tmp_path / "runs").exists()


def test_noise_reasons() -> None:
    assert NoiseReading(0.0, 0.0, 0.0, 0.0).reasons() == []
    assert len(NoiseReading(0.2, 0.02, 0.2, 0.2).reasons()) == 4
    assert NoiseReading(0.9, 0.0, 0.0, 0.0, crowded=True).reasons() == []
    assert NoiseReading(None, 0.0, 0.0, 0.0).reasons() == []


def test_foreign_work_is_told_from_own_work() -> None:
    meter = NoiseMeter(calibrate=False)
    meter.start()
    sum(i * i for i in range(300_000))
    quiet = meter.stop()
    meter.start()
    sum(i * i for i in range(300_000))
    accused = meter.stop(children_seconds=-10.0)  # as if ten seconds were somebody else's
    assert accused.foreign > quiet.foreign


def test_tenant_out_of_memory_is_a_status_and_code_8() -> None:
    spec = WorkloadSpec("numpy", "mlp", "infer", 1, width=16000)  # 3 GB of weights
    grant = Grant("tiny", thread_environment(1), (), 1, memory_bytes=600 << 20)
    window = run_window([(Tenant("big", spec), grant)], duration=0.1)
    assert window.results[0].status == "oom"
    assert math.isnan(window.results[0].throughput)
    assert window.results[0].latency_ms.size == 0
    big = {"framework": "numpy", "width": 1 << 20}
    with pytest.raises(WorkloadOutOfMemory):
        study(tenants=[{"workload": big}], backend="cpuset", layouts=["1c"]).run()


def test_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from migperf.workloads import base

    monkeypatch.setitem(base.FRAMEWORKS, "jax", ("surely_not_installed", ".jax_"))
    with pytest.raises(FrameworkMissing, match=r"pip install 'migperf\[jax\]'"):
        create(WorkloadSpec("jax"), 1)


def test_gradients_of_the_numpy_perceptron_are_right() -> None:
    model = MLP(6, classes=3, train=True, batch=5, seed=1)
    model.weights = [w.astype(np.float64) for w in model.weights]  # type: ignore[misc]
    inputs = model.inputs.astype(np.float64)
    _, gradients = model.loss_and_gradients(inputs, model.targets)  # type: ignore[arg-type]
    step = 1e-6
    for layer, index in ((0, (2, 3)), (1, (0, 5)), (2, (4, 4)), (3, (1, 2))):
        model.weights[layer][index] += step
        above, _ = model.loss_and_gradients(inputs, model.targets)  # type: ignore[arg-type]
        model.weights[layer][index] -= 2 * step
        below, _ = model.loss_and_gradients(inputs, model.targets)  # type: ignore[arg-type]
        model.weights[layer][index] += step
        assert gradients[layer][index] == pytest.approx((above - below) / (2 * step), abs=1e-6)


def test_training_lowers_the_loss() -> None:
    model = MLP(32, train=True, batch=16)
    first, _ = model.loss_and_gradients(model.inputs, model.targets)
    for _ in range(50):
        model.step(16)
    last, _ = model.loss_and_gradients(model.inputs, model.targets)
    assert last < first


def test_grants_of_cpuset_are_disjoint_and_threads_equal_cores() -> None:
    cores = available_cores()
    if len(cores) < 2:
        pytest.skip("one core")
    with CpuSet().open("1c*2") as grants:
        assert not set(grants[0].cpus) & set(grants[1].cpus)
        assert all(g.threads == len(g.cpus) == 1 for g in grants)
        assert all(g.env["OMP_NUM_THREADS"] == "1" for g in grants)
    with pytest.raises(Infeasible, match="cores"):
        CpuSet().open(f"{len(cores) + 1}c")


def test_tenants_run_where_they_are_put() -> None:
    cores = available_cores()
    grant = Grant("1c", thread_environment(1), (cores[-1],), 1)
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    code = (
        "import json,sys; sys.argv=['x']; from migperf.worker import _enter;"
        f"_enter({grant.to_json()!r}); {script}"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == f"[{cores[-1]}]"


@pytest.mark.parametrize("text", ["", "x", "0c", "1c*0", "1c*", "c", "-1c", "1g"])
def test_bad_core_layouts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="layout: "):
        CoreLayout.parse(text)


def test_quota_groups_are_removed_on_exit_and_after_a_crash(tmp_path: Path) -> None:
    root = tmp_path / "cgroup" / "cpu"
    root.mkdir(parents=True)
    (root / "cpu.shares").write_text("1024")
    quota = CpuQuota(tmp_path / "cgroup")
    real_state = CpuQuota().available()
    if real_state.ok:
        backend = CpuQuota()
        parent = backend._parent()
        assert parent is not None
        with backend.open("50%*2") as grants:
            assert [g.partition for g in grants] == ["50%", "50%"]
            assert len(list(parent[0].glob(f"migperf-{os.getpid()}-*"))) == 2
            with pytest.raises(Infeasible, match="100 %"), backend.open("60%*2"):
                pass
        assert not list(parent[0].glob(f"migperf-{os.getpid()}-*"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert not psutil.pid_exists(dead.pid)
    (root / f"migperf-{dead.pid}-0").mkdir()
    (root / f"migperf-{os.getpid()}-0").mkdir()
    assert quota.sweep() == [f"migperf-{dead.pid}-0"]
    (root / f"migperf-{os.getpid()}-0").rmdir()


def test_doctor_gives_a_reason_for_everything_that_does_not_work() -> None:
    found = diagnose()
    assert tuple(found) == BACKENDS
    for state, isolates in found.values():
        assert isolates
        assert state.ok or state.reason
    assert found["whole"][0].ok
    with pytest.raises(InputError, match="backend: 'x'"):
        get_backend("x")


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "nope"}, {"layouts": []}, {"tenants": []}, {"tenants": [{"name": "a"}]},
        {"repeat": 0}, {"duration_s": "x"}, {"unknown": 1}, {"tenants": [{"workload": {"x": 1}}]},
        {"tenants": [{"workload": {"framework": "nope"}}]},
        {"tenants": [{"workload": {"batch": 0}}]}, {"cases": [{"layout": "1c"}]},
        {"tenants": [{"workload": SMALL, "slo": 3}]}, {"layouts": ["1c*2", "1c*2"]},
    ],
)  # fmt: skip
def test_bad_studies_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        study(**change)
    assert "\n" not in str(caught.value)


def test_killed_tenants_are_told_and_nothing_is_left_running() -> None:
    spec = WorkloadSpec(**{**SMALL, "model": "mlp"})  # type: ignore[arg-type]
    code = (
        "import os,signal,sys; from migperf.workloads import base\n"
        "base.create = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from migperf.worker import main; sys.exit(main())"
    )
    import migperf.tenants as tenants

    original = subprocess.Popen
    started: list[subprocess.Popen[str]] = []

    class Fake(original):  # type: ignore[type-arg, misc, valid-type]
        def __init__(self, command: list[str], **options: object) -> None:
            super().__init__([sys.executable, "-c", code], **options)  # type: ignore[call-overload]
            started.append(self)

    tenants.subprocess.Popen = Fake  # type: ignore[misc, assignment]
    try:
        window = run_window([(Tenant("a", spec), Grant("x"))], duration=0.1)
    finally:
        tenants.subprocess.Popen = original  # type: ignore[misc]
    assert window.results[0].status == "crash"
    assert str(-signal.SIGKILL) in window.results[0].detail
    assert all(p.poll() is not None for p in started)
