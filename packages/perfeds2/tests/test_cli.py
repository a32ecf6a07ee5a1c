"""The command line: outputs, exit codes, one line per error."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from perfeds2 import RunResult
from perfeds2.cli import main


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "e.toml"
    path.write_text("[train]\nrounds = 8\neval_every = 2\n[schedule]\nparticipants = 5\n")
    return path


def fails(capsys, code, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == code
    text = capsys.readouterr().err
    assert text.startswith("perfeds2: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


def whole_page(path):
    """Count the embedded figures of a page that needs no network."""
    page = path.read_text()
    HTMLParser().feed(page)
    assert "http://" not in page
    assert "https://" not in page
    return page.count("data:image/png")


def test_run_writes_everything_and_resume_continues(experiment, tmp_path, capsys):
    out = tmp_path / "out"
    main(["run", str(experiment), "--out", str(out), "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["rounds"] == 8
    names = {p.name for p in out.iterdir()}
    assert names == {"run.npz", "metrics.jsonl", "events.npz", "report.html", "checkpoint.npz"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 2, 4, 6, 8]
    events = np.load(out / "events.npz")
    assert len(events["ue"]) == 8 * 5
    first = RunResult.load(out / "run.npz")
    main(["resume", str(out / "checkpoint.npz"), "--out", str(tmp_path / "again"), "--json"])
    again = RunResult.load(tmp_path / "again" / "run.npz")
    assert np.array_equal(first.weights, again.weights)
    assert whole_page(out / "report.html") == 6


def test_target_not_reached_is_exit_3_with_results(experiment, tmp_path, capsys):
    experiment.write_text("[train]\nrounds = 2\ntarget_loss = 0.01\n")
    text = fails(capsys, 3, "run", experiment, "--out", tmp_path / "o")
    assert "target_loss" in text
    assert (tmp_path / "o" / "run.npz").exists()


def test_simulate(tmp_path, capsys):
    out = tmp_path / "clock"
    options = "--ues 500 --rounds 20 --participants 25 --timing-only --json --out"
    main(["simulate", *options.split(), str(out)])
    summary = json.loads(capsys.readouterr().out)
    assert summary["updates"] == 500
    assert np.load(out / "events.npz")["counts"].sum() == 500
    assert whole_page(out / "report.html") == 3


def test_compare(experiment, tmp_path, capsys):
    experiment.write_text("[train]\nrounds = 60\ntarget_loss = 1.0\n")
    forms = ["sync", "semi:5+greedy+optimal", "fedbuff:5", "fedavg/semi:10"]
    options = "--seeds 2 --steps 1,4 --json --out"
    main(["compare", str(experiment), "--methods", ",".join(forms), *options.split(),
          str(tmp_path / "c")])  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    assert [r["form"] for r in rows] == forms
    assert all(r["reached"] == 2 for r in rows)
    assert rows[0]["max_staleness"] == 0
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "compare.json", "loss.png", "report.html"
    }  # fmt: skip
    assert whole_page(tmp_path / "c" / "report.html") == 1


def test_bandwidth_and_exact_round(tmp_path, capsys):
    file = tmp_path / "ues.csv"
    file.write_text("offset_s,snr_density_hz\n1,1e8\n2,5e7\n3,2e7\n")
    main(["bandwidth", str(file), "--total", "1e6", "--bits", "640000", "--json"])
    assert json.loads(capsys.readouterr().out)["finish_s"] == pytest.approx(3.15451332998640819)
    main(["bandwidth", str(file), "--total", "1e6", "--bits", "640000", "--participants", "1",
          "--json", "--out", str(tmp_path / "b")])  # fmt: skip
    assert whole_page(tmp_path / "b" / "report.html") == 1
    assert json.loads(capsys.readouterr().out)["participants"] == [0]


def test_bound_and_tune_a(experiment, tmp_path, capsys):
    experiment.write_text("[train]\nrounds = 6\n[server]\nstep = 0.02\n")
    main(["run", str(experiment), "--out", str(tmp_path / "o"), "--json"])
    capsys.readouterr()
    main(["bound", str(tmp_path / "o" / "run.npz"), "--json", "--out", str(tmp_path / "b")])
    found = json.loads(capsys.readouterr().out)
    parts = found["optimisation"] + found["heterogeneity"] + found["noise"]
    assert found["total"] == pytest.approx(parts)
    assert found["measured"] <= found["total"]
    assert (tmp_path / "b" / "bound.png").stat().st_size > 5000
    assert "bound.png" in (tmp_path / "b" / "report.html").read_text()
    main(["tune-a", str(experiment), "--json", "--staleness", "mean", "--out", str(tmp_path / "t")])
    assert whole_page(tmp_path / "t" / "report.html") == 1
    found = json.loads(capsys.readouterr().out)
    best = min(found["candidates"], key=lambda c: c["seconds"])
    assert found["best"] == best["participants"]


def test_bad_input_is_one_line_and_exit_2(experiment, tmp_path, capsys):
    assert "existing file" in fails(capsys, 2, "run", tmp_path / "no.toml", "--out", tmp_path / "o")
    experiment.write_text("[schedule]\nparticipants = 99\n")
    assert "participants = 99" in fails(capsys, 2, "run", experiment, "--out", tmp_path / "o")
    experiment.write_text("[schedule\n")
    fails(capsys, 2, "run", experiment, "--out", tmp_path / "o")
    experiment.write_text("[train]\ntarget_loss = 1.0\n")
    assert "semi" in fails(capsys, 2, "compare", experiment, "--methods", "semi")
    assert "steps" in fails(capsys, 2, "compare", experiment, "--steps", "a")
    fails(capsys, 2, "simulate", "--ues", "ten")
    fails(capsys, 2, "nonsense")
    fails(capsys, 2, "simulate", "--participants", "5000")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not an archive")
    fails(capsys, 2, "resume", broken)
    fails(capsys, 2, "bound", broken)
    broken.write_text("offset_s\n1\n")
    assert "snr_density_hz" in fails(
        capsys, 2, "bandwidth", broken, "--total", "1e6", "--bits", "9"
    )
    broken.write_text("offset_s,snr_density_hz\n1,x\n")
    assert "line 2" in fails(capsys, 2, "bandwidth", broken, "--total", "1e6", "--bits", "9")


def test_infeasible_is_exit_3(tmp_path, capsys):
    file = tmp_path / "ues.csv"
    file.write_text("offset_s,snr_density_hz\n1,0\n")
    fails(capsys, 3, "bandwidth", file, "--total", "1e6", "--bits", "9")


def test_every_command_has_help_and_the_version_is_the_metadata(capsys):
    from importlib.metadata import version

    for command in ("run", "resume", "simulate", "compare", "bandwidth", "tune-a", "bound",
                    "verify", "bench", "demo"):  # fmt: skip
        main([command, "--help"])
        assert "Usage" in capsys.readouterr().out
    main(["--version"])
    assert version("perfeds2") in capsys.readouterr().out


def test_ctrl_c_is_130_and_leaves_no_temporary_file(tmp_path):
    """The signal arrives in the middle of training."""
    experiment = tmp_path / "e.toml"
    experiment.write_text("[train]\nrounds = 100000\ncheckpoint_every = 5\n")
    out = tmp_path / "out"
    code = (
        "import os, signal, sys\n"
        "from perfeds2 import Simulation\n"
        "from perfeds2.cli import main\n"
        "inner = Simulation.train_round\n"
        "def interrupted(self, closed, *rest):\n"
        "    if closed.index == 12: os.kill(os.getpid(), signal.SIGINT)\n"
        "    inner(self, closed, *rest)\n"
        "Simulation.train_round = interrupted\n"
        f"main(['run', {str(experiment)!r}, '--out', {str(out)!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::FutureWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 130
    assert done.stderr == "perfeds2: interrupted\n"
    assert [p.name for p in out.iterdir()] == ["checkpoint.npz"]
