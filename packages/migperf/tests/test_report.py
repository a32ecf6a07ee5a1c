"""Pages: what a study, a table of measurements and the planner's answers look like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from migperf import Demand, InputError, Node, Study, load_board, paper_measurements
from migperf.cases import Case, read_study
from migperf.cli import run
from migperf.interference import InterferenceTable, interference_tables
from migperf.measurements import Measurement, MeasurementTable
from migperf.noise import NoiseReading
from migperf.partitions.base import Grant
from migperf.planner.exact import solve_exact
from migperf.planner.model import build_problem
from migperf.planner.pareto import (
    batch_points,
    energy_per_sample,
    nondominated,
    slo_sweep,
    trade_off,
)
from migperf.study_page import study_report
from migperf.telemetry.meter import GpuMeter, RaplMeter
from migperf.tenants import TenantResult, Window

QUIET = NoiseReading(0.0, 0.0, 0.0, 0.0)
BOARD = load_board("a100-80gb")


def sections(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())


def figures(page: Path) -> list[Path]:
    """Files that the page shows; each must exist and hold drawn text."""
    found = [page.parent / name for name in re.findall(r'<img src="(.*?)"', page.read_text())]
    assert found
    assert all(f.stat().st_size > 3000 for f in found)
    return found


def test_study_with_pairs_and_a_sweep_becomes_a_page(tmp_path: Path) -> None:
    study = Study.from_dict(
        {
            "cases": [
                {"backend": b, "layout": x} for b, x in (("whole", "1c"), ("shared", "1c*2"))
            ],
            "interference": [{"backend": "shared", "layout": "1c*2"}],
            "sweep": {"batches": [1, 4], "tenants": ["small"],
                      "partitions": [{"backend": "whole", "layout": "1c"}]},
            "tenants": [
                {"name": "small", "workload": {"width": 32, "batch": 2}},
                {"name": "large", "workload": {"width": 96, "batch": 2, "mode": "train"}},
            ],
            "repeat": 1, "duration_s": 0.1, "warmup_s": 0.01,
        }
    )  # fmt: skip
    result = study.run(tmp_path / "runs", allow_noise=True)
    assert run(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "page.html")]) == 0
    titles = sections(tmp_path / "page.html")
    for title in ("Layouts", "Throughput", "Latency percentiles", "Interference and isolation",
                  "Cases", "mlp-w32-numpy, infer", "Measured points"):  # fmt: skip
        assert title in titles
    shown = {f.name for f in figures(tmp_path / "page.html")}
    assert {"page-cores.svg", "page-matrix-0.svg", "page-isolation-0.svg"} <= shown
    table = json.loads((tmp_path / "runs" / "summary.json").read_text())["interference"][0]
    assert table["names"] == ["small", "large"]
    assert np.isfinite(np.array(table["matrix"], dtype=float)).all()
    assert result.interference()[0].matrix.shape == (2, 2)


def latencies(tenant: str, milliseconds: list[float], status: str = "ok") -> TenantResult:
    values = np.array(milliseconds) / 1000
    zeros = np.zeros(values.size)
    times = {"scheduled": zeros, "sent": zeros, "started": zeros, "done": values}
    return TenantResult(tenant, "p", status, times=times, throughput=float(values.size))


def test_interference_by_hand() -> None:
    """Row beside column: 2 ms alone, 3 ms beside the other; p99 from 2 ms to 8 ms."""
    data = {"interference": [{"backend": "shared", "layout": "1c*2"}],
            "tenants": [{"name": n, "workload": {}} for n in "ab"]}  # fmt: skip
    cases, _, _ = read_study(data)
    assert [c.label.split("[")[1] for c in cases] == [
        "a]", "b]", "a + a-2]", "a + b]", "b + a]", "b + b-2]"
    ]  # fmt: skip
    beside = {
        ("a",): [latencies("a", [2.0] * 200)],
        ("b",): [latencies("b", [4.0] * 200)],
        ("a", "a-2"): [latencies("a", [2.0] * 200), latencies("a-2", [9.0] * 200)],
        ("a", "b"): [latencies("a", [3.0] * 190 + [8.0] * 10), latencies("b", [1.0] * 200)],
        ("b", "a"): [latencies("b", [5.0] * 200), latencies("a", [1.0] * 200)],
        ("b", "b-2"): [latencies("b", [4.0] * 200), latencies("b-2", [], "oom")],
    }
    windows = {c.label: (Window(tuple(beside[c.tenants]), QUIET, 1.0),) for c in cases}  # type: ignore[index]
    (table,) = interference_tables(cases, windows)
    assert isinstance(table, InterferenceTable)
    np.testing.assert_allclose(table.matrix, [[0.0, 0.5], [0.25, np.nan]], atol=1e-12)
    np.testing.assert_allclose(table.isolation, [[1.0, 0.25], [0.8, np.nan]], atol=1e-12)
    assert table.to_json()["matrix"][1][1] is None  # a neighbour out of memory is no measurement


@pytest.mark.parametrize(
    "change",
    [
        {"interference": []}, {"interference": [{"layout": "1c"}]}, {"sweep": {}},
        {"sweep": {"batches": [0], "partitions": [{"backend": "whole"}]}},
        {"cases": [{"backend": "whole", "tenants": ["nobody"]}]},
        {"sweep": {"batches": [1], "partitions": [{"backend": "x"}]}},
        {"sweep": {"batches": [1], "partitions": [{"backend": "whole"}], "tenants": 1}},
        {"tenants": [{"name": "a", "workload": {}}] * 2},
    ],
)  # fmt: skip
def test_bad_shorthands_are_refused(change: dict[str, object]) -> None:
    data = {"layouts": ["1c"], "tenants": [{"name": "a", "workload": {}}], **change}
    with pytest.raises(InputError) as caught:
        read_study(data)
    assert "\n" not in str(caught.value)


def test_cases_choose_their_tenants() -> None:
    _, tenants, _ = read_study(
        {"layouts": ["1c"], "tenants": [{"name": n, "workload": {"batch": 3}} for n in "ab"]}
    )
    assert [t.name for t in Case("whole", "1c", ("b", "a-2")).choose(tenants)] == ["b", "a-2"]
    assert [t.name for t in Case("whole", "1c").choose(tenants)][:4] == ["a", "b", "a-2", "b-2"]
    assert Case("whole", "1c", ("a",), 8).choose(tenants)[0].workload.batch == 8


def test_table_and_demands_become_a_page(tmp_path: Path) -> None:
    table, demands = tmp_path / "t.csv", tmp_path / "d.yaml"
    table.write_text(paper_measurements().to_csv())
    demands.write_text(
        "board: a100-80gb\ndemands:\n- {workload: resnet50, rate: 5000, slo_ms: 25}\n"
        "- {workload: bert-base, rate: 3000, slo_ms: 25}\n"
    )
    page = tmp_path / "p.html"
    assert run(["plan", str(demands), "--profiles", str(table), "--report", str(page)]) == 0
    titles = sections(page)
    assert {"The plan", "Cost of the latency bounds", "One GPU for two"} <= set(titles)
    assert {"p-plan.svg", "p-sweep.svg", "p-trade.svg", "p-curves-0.svg", "p-front-0.svg"} <= {
        f.name for f in figures(page)
    }
    assert "no energy curve" in page.read_text()  # the table has no activity: never a zero


def test_layouts_of_mig_are_drawn_as_slices(open_sim: Callable[..., Node], tmp_path: Path) -> None:
    study = Study.from_dict(
        {"backend": "mig", "layouts": ["3g.40gb, 4g.40gb"], "repeat": 1, "duration_s": 0.1,
         "tenants": [{"name": "one", "workload": {"width": 32}}]}
    )  # fmt: skip
    node = open_sim("h100-80gb")
    result = study.run(tmp_path / "runs", allow_noise=True, opener=lambda: _Kept(node),  # type: ignore[arg-type, return-value]
                       allow_mode_change=True)  # fmt: skip
    study_report(tmp_path / "runs", tmp_path / "page.html")
    drawn = next(f for f in figures(tmp_path / "page.html") if f.name == "page-layouts.svg")
    assert drawn.is_file()
    window = result.windows["mig:3g.40gb, 4g.40gb"][0]
    assert window.joules > 0  # the simulated counter runs
    # Shares are estimates; with the idle share of free slices they add up to the counter.
    assert sum(r.joules for r in window.results) <= window.joules * (1 + 1e-9)
    assert {m.profile for m in result.measurements()} == {"3g.40gb", "4g.40gb"}


class _Kept:
    """A node that its borrower cannot close."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> Node:
        return self._node

    def __exit__(self, *exc: object) -> None:
        return None


def test_energy_is_shared_by_activity(open_sim: Callable[..., Node]) -> None:
    node = open_sim("h100-80gb")
    gpu = node.gpus[0]
    gpu.apply("3g.40gb, 4g.40gb")
    busy, idle = gpu.devices()[0].gpu_instance_id, gpu.devices()[1].gpu_instance_id
    node.sim.set_activity(0, busy, graphics=0.9)
    meter = GpuMeter(gpu, [Grant("a", device=(0, busy)), Grant("b", device=(0, idle))])
    meter.start()
    while (found := meter_reading(meter, gpu)) is None:
        pass
    first, second = found.shares
    assert first is not None
    assert second is not None
    assert first > second > 0
    assert first + second <= found.joules * (1 + 1e-9)


def meter_reading(meter: GpuMeter, gpu: object) -> object:
    """Stop once the counter has moved."""
    if meter._counter() == meter._before:
        return None
    return meter.stop()


def test_rapl_counts_and_its_absence_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "energy_uj").write_text("1000000")
    (folder / "max_energy_range_uj").write_text("5000000")
    one, two = (RaplMeter([Grant("x")] * n, tmp_path) for n in (1, 2))
    for meter in (one, two):
        meter.start()
    (folder / "energy_uj").write_text("3000000")
    alone, both = one.stop(), two.stop()
    assert alone is not None
    assert both is not None
    assert (alone.joules, alone.shares) == (2.0, (2.0,))
    assert both.shares == (None, None)
    missing = RaplMeter([Grant("x")], tmp_path / "none")
    missing.start()
    assert missing.stop() is None


def test_nondominated_equals_brute_force() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 6, size=(60, 3)).astype(float)
    front = nondominated(values)
    for i, row in enumerate(values):
        beaten = any((other >= row).all() and (other > row).any() for other in values)
        assert front[i] == (not beaten)


def test_trade_off_on_one_gpu() -> None:
    """Ends of the front: the whole GPU for either; in between both are served."""
    demands = [Demand("resnet50", 1, 1e6, batches=(1,)), Demand("bert-base", 1, 1e6, batches=(1,))]
    problem = build_problem(paper_measurements(), demands, BOARD)
    front = [t for t in trade_off(problem) if t.on_front]
    assert max(t.first for t in front) == pytest.approx(7 * 1000 / 7.86)
    assert max(t.second for t in front) == pytest.approx(7 * 1000 / 7.53)
    assert any(t.first > 0 and t.second > 0 for t in front)
    for point in front:
        if not point.first * point.second:
            continue
        solved = solve_exact(
            build_problem(
                paper_measurements(),
                [Demand(d.workload, 0.999 * r, d.slo_ms, batches=d.batches)
                 for d, r in zip(demands, (point.first, point.second), strict=True)],
                BOARD,
            )
        )  # fmt: skip
        assert solved.value == 1.0


def test_looser_bounds_never_cost_more() -> None:
    demands = [Demand("resnet50", 5000, 25), Demand("bert-base", 3000, 25)]
    points = slo_sweep(paper_measurements(), demands, BOARD, (0.1, 1.0, 4.0, 100.0))
    assert points[0].gpus is None  # 2.5 ms is met by nothing
    numbers = [p.gpus for p in points[1:]]
    assert numbers == sorted(numbers, reverse=True)  # type: ignore[type-var]


def test_front_of_latency_against_throughput() -> None:
    copies = {p.name: p.count for p in BOARD.gpu_profiles}
    points = batch_points(paper_measurements(), "resnet50", "infer", copies)
    best = max(points, key=lambda p: p.rate)
    assert best.on_front
    assert min(points, key=lambda p: p.latency_ms).on_front
    assert points[0].rate == pytest.approx(7 * 1000 / 7.86)


def test_energy_estimate_adds_up_to_the_power_limit() -> None:
    row = Measurement("w", "infer", "7g.80gb", 1, 10.0, activity=1.0)
    assert energy_per_sample(row, BOARD) == pytest.approx(BOARD.power_limit_watts * 0.01)
    assert energy_per_sample(Measurement("w", "infer", "1c", 1, 10.0, joules=2.0), None) == 2.0
    assert np.isnan(energy_per_sample(Measurement("w", "infer", "1c", 1, 10.0), None))


def test_joules_survive_a_table() -> None:
    from migperf.measurements import read_table

    table = MeasurementTable([Measurement("w", "infer", "1c", 1, 10.0, joules=0.25)])
    assert read_table(table.to_csv()).get("w", "infer", "1c", 1).joules == 0.25  # type: ignore[union-attr]


def test_pages_of_the_short_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, demands = tmp_path / "t.csv", tmp_path / "d.yaml"
    table.write_text(paper_measurements().to_csv())
    demands.write_text(
        "demands:\n- {workload: resnet50, rate: 300, slo_ms: 50, batches: [1, 8], poisson: true}\n"
    )
    page = tmp_path / "page.html"
    for tokens, title in (
        (["doctor"], "Backends"),
        (["compat", "--frameworks", "numpy", "--duration", "0.1"], "Frameworks"),
        (["slo", "--p99", "20ms", "--duration", "0.1", "--width", "16"], "Trials"),
        (["simulate", str(demands), "--profiles", str(table), "--seeds", "2", "--requests", "2000"],
         "Demands"),
    ):  # fmt: skip
        assert run([*tokens, "--report", str(page)]) in (0, 3)
        assert sections(page) == [title]
        if tokens[0] != "doctor":
            figures(page)
        page.unlink()
    capsys.readouterr()
