"""The command line: every subcommand, exit codes, one line per error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from migperf.cli import run

DEMANDS = """
board: a100-80gb
demands:
- {workload: resnet50, rate: 5000, slo_ms: 25, batches: [1]}
- {workload: bert-base, rate: 3000, slo_ms: 25, batches: [1]}
- {workload: vit-b16, rate: 1500, slo_ms: 25, batches: [1]}
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "node.state"
    assert run(["sim", "start", "a100-80gb:2", "--state", str(path)]) == 0
    monkeypatch.setenv("MIGPERF_SIM_STATE", str(path))
    return path


def answer(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    capsys.readouterr()
    assert run(list(tokens)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("tokens", "number"),
    [
        (["a100-40gb"], 297), (["a100-40gb", "--multisets"], 37), (["a100-40gb", "--maximal"], 19),
        (["a100-80gb", "--maximal", "--multisets"], 14),
        (["a100-80gb", "--double-memory", "--media"], 2318),
    ],
)  # fmt: skip
def test_enumerate_prints_one_integer(
    tokens: list[str], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "enumerate", *tokens, "--count") == f"{number}\n"


@pytest.mark.native
def test_apply_assert_export_recover(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = json.loads(answer(capsys, "apply", "-c", "all-balanced", "--dry-run", "--json"))
    assert len(dry["gpus"][0]["steps"]) == 8
    assert run(["assert", "-c", "all-balanced"]) == 3
    assert "MIG is off" in capsys.readouterr().err
    answer(capsys, "apply", "-c", "all-balanced")
    answer(capsys, "assert", "-c", "all-balanced")
    file = tmp_path / "now.yaml"
    answer(capsys, "export", "--out", str(file))
    answer(capsys, "apply", "--layout", "7g.80gb", "-i", "0")
    assert run(["assert", "-f", str(file)]) == 3
    answer(capsys, "apply", "-f", str(file))
    answer(capsys, "assert", "-f", str(file), "-c", "current")
    assert "nothing to do" in answer(capsys, "recover")
    rows = json.loads(answer(capsys, "profiles", "--json"))["profiles"]
    assert {r["profile"]: r["remaining"] for r in rows}["1g.10gb"] == 0
    assert "keeps" in answer(capsys, "apply", "-c", "all-disabled")
    assert json.loads(answer(capsys, "sim", "counters"))["calls"]["gi_create"] > 0


@pytest.mark.native
def test_exit_codes(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def code(*tokens: str) -> tuple[int, str]:
        capsys.readouterr()
        result = run(list(tokens))
        return result, capsys.readouterr().err

    for expected, tokens in (
        (2, ["nope"]), (2, ["enumerate"]), (2, ["enumerate", "x100"]), (2, ["apply"]),
        (2, ["apply", "--layout", "9g"]), (2, ["apply", "--layout", "7g.80gb", "-i", "7"]),
        (2, ["apply", "-f", "/none.yaml"]), (2, ["plan", "/none", "--profiles", "/none"]),
        (2, ["run", "/none.yaml"]), (2, ["slo", "--p99", "fast"]), (2, ["report", "/none"]),
        (2, ["sim", "fault", "x"]), (2, ["compat", "--frameworks", "nope"]),
        (2, ["enumerate", "a100-80gb", "--nope"]), (2, ["exporter", "--port", "99999"]),
        (3, ["apply", "--layout", "4g.40gb*2"]), (3, ["place", "3g.40gb*3"]),
    ):  # fmt: skip
        result, error = code(*tokens)
        assert (result, error.count("\n")) == (expected, 1), (tokens, error)
        assert error.startswith("migperf: ")
        assert "Traceback" not in error
    assert code("apply", "--layout", "4g.40gb", "-i", "0")[0] == 0
    assert code("sim", "occupy", "--pid", str(os.getpid()), "--gi", "1", "--ci", "0")[0] == 0
    assert code("apply", "--layout", "7g.80gb", "-i", "0")[0] == 5
    monkeypatch.setenv("MIGPERF_SIM_UID", "54321")
    assert code("apply", "--layout", "7g.80gb", "-i", "1")[0] == 4


@pytest.mark.native
def test_reset_required_is_code_6(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "vm.state")
    assert run(["sim", "start", "a30-24gb", "--state", path, "--reset-required"]) == 0
    assert run(["apply", "--layout", "4g.24gb", "--sim", path]) == 6
    assert run(["sim", "reset", "--state", path]) == 0
    assert run(["apply", "--layout", "4g.24gb", "--sim", path]) == 0
    assert run(["sim", "stop", "--state", path]) == 0
    capsys.readouterr()


def test_noise_is_code_7_and_out_of_memory_code_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from migperf.noise import NoiseReading
    from migperf.study import Study

    study = tmp_path / "study.yaml"
    text = "backend: shared\nlayouts: ['1c']\nduration_s: 0.1\nwarmup_s: 0.01\nrepeat: 1\n"
    study.write_text(text + "tenants: [{workload: {width: 32}}]\n")
    monkeypatch.setattr(NoiseReading, "reasons", lambda self, limits=None: ["somebody else"])
    defaults = {**(Study.run.__kwdefaults__ or {}), "retries": 0}
    monkeypatch.setattr(Study.run, "__kwdefaults__", defaults)
    tokens = ["run", str(study), "--out", str(tmp_path / "runs")]
    assert run(tokens) == 7
    assert "too noisy" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert run([*tokens, "--allow-noise", "--report", str(tmp_path / "page.html")]) == 0
    assert "Disturbed windows" in (tmp_path / "page.html").read_text()
    study.write_text(text + "tenants: [{workload: {width: 1048576}}]\n")
    assert run(tokens) == 8
    study.write_text(text + "tenants: [{workload: {framework: openvino, mode: train}}]\n")
    assert run(tokens) == 2
    capsys.readouterr()


def test_plan_and_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from migperf import paper_measurements

    demands, table = tmp_path / "demands.yaml", tmp_path / "table.csv"
    demands.write_text(DEMANDS)
    table.write_text(paper_measurements().to_csv())
    arguments = (str(demands), "--profiles", str(table))
    found = json.loads(answer(capsys, "plan", *arguments, "--objective", "min_gpus", "--json"))
    assert (found["value"], found["proven"], len(found["gpus"])) == (14.0, True, 14)
    text = answer(capsys, "plan", *arguments, "--explain", "--compare-heuristics")
    assert "whole: 55 GPUs" in text
    assert "binding" in text
    assert run(["plan", *arguments, "--gpus", "3"]) == 3
    # Loaded to the brim, the batch-1 plan misses its bound once requests queue.
    assert run(["simulate", *arguments, "--seeds", "2", "--requests", "4000"]) == 3
    capsys.readouterr()


def test_version_help_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "--version").strip() == "0.1.0"
    assert "migperf enumerate a100-80gb" in answer(capsys, "--help")
    assert "cpuset" in answer(capsys, "doctor")
    assert json.loads(answer(capsys, "doctor", "--json"))["whole"]["works"] is True


def test_ctrl_c_is_130_and_leaves_no_half_written_files(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "backend: shared\nlayouts: ['1c']\nduration_s: 60\n"
        "tenants: [{workload: {framework: numpy, width: 64}}]\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from migperf.cli import main; main()", "run", str(study),
         "--out", str(tmp_path / "runs"), "--allow-noise"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    import psutil

    while not psutil.Process(process.pid).children() and time.monotonic() < deadline:
        pass  # psutil reads /proc on every turn
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert error.strip().endswith("migperf: interrupted")
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]
