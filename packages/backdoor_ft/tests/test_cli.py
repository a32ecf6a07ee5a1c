import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from backdoor_ft import models
from backdoor_ft.bench import Matrix, run_matrix
from backdoor_ft.ckpt import save_model
from backdoor_ft.cli import main


def run(*tokens):
    with pytest.raises(SystemExit) as caught:
        main([str(t) for t in tokens])
    return caught.value.code


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    assert run("attack", "badnets", "--out", root / "victim") == 0
    code = run("repair", root / "victim", "--method", "superft", "--max-acc-drop", 0.03,
               "--out", root / "fixed")  # fmt: skip
    assert code == 0
    return root


def test_run_folders_eval_and_sequela(folders, capsys):
    victim, fixed = folders / "victim", folders / "fixed"
    names = {p.name for p in victim.iterdir()}
    assert {"run.json", "model.safetensors", "plan.json", "poison_index.npy"} <= names
    assert len((fixed / "lr.csv").read_text().splitlines()) == 301
    assert len((fixed / "metrics.jsonl").read_text().splitlines()) == 300
    assert run("eval", victim, fixed, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["der"] > 0.95
    page = folders / "audit.html"
    assert run("sequela", victim, fixed, "--audit", "mia,retuning,bec", "--html", page) == 0
    assert "Audits" in page.read_text()
    assert json.loads((fixed / "sequela.json").read_text())["values"]["bec"]["before"] > 0.999


def test_repair_of_a_bare_checkpoint(folders, tmp_path, capsys):
    code = run("repair", "--checkpoint", folders / "victim/model.safetensors", "--model",
               "backdoor_ft.models:SmallCNN", "--clean", "digits", "--method", "bn_recalibration",
               "--max-acc-drop", 0.1, "--out", tmp_path / "f", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(capsys.readouterr().out)["method"] == "bn_recalibration"


def test_repair_that_filters_the_poisoned_set(folders, tmp_path, capsys):
    victim = folders / "victim"
    out = tmp_path / "filtered"
    code = run("repair", victim, "--method", "spectral", "--poisoned", "plan", "--max-acc-drop",
               0.2, "--out", out)  # fmt: skip
    assert code == 0
    assert "training samples dropped" in capsys.readouterr().out
    assert run("repair", victim, "--method", "abl", "--out", out) == 2
    assert "poisoned" in capsys.readouterr().err
    assert run("repair", "--checkpoint", victim / "model.safetensors", "--model", "cnn", "--clean",
               "digits", "--poisoned", "plan", "--out", out) == 2  # fmt: skip


def test_guard_has_its_exit_code(folders, digits, tmp_path, capsys):
    """Training anew on 48 digits cannot keep the victim's accuracy."""
    few = digits[0].subset(torch.arange(60))
    np.savez(tmp_path / "few.npz", inputs=few.inputs.numpy(), labels=few.labels, num_classes=10)
    code = run("repair", folders / "victim", "--clean", tmp_path / "few.npz", "--method", "scratch",
               "--max-acc-drop", 0.0, "--out", tmp_path / "f")  # fmt: skip
    assert code == 3
    assert not (tmp_path / "f").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_gate_has_its_exit_code(tmp_path, capsys):
    code = run("attack", "badnets", "--ratio", 0.002, "--out", tmp_path / "weak")
    assert code == 4
    assert "gate=0.9" in capsys.readouterr().err


def test_schedule(tmp_path, capsys):
    assert run("schedule", "--preset", "toolbox", "--plot", tmp_path / "lr.png", "--csv",
               tmp_path / "lr.csv") == 0  # fmt: skip
    assert "809.6" in capsys.readouterr().out
    assert (tmp_path / "lr.png").read_bytes()[:4] == b"\x89PNG"


def test_pickled_checkpoint_is_refused_in_one_line(tmp_path, capsys):
    torch.save(models.SmallCNN(), tmp_path / "m.pt")
    code = run("repair", "--checkpoint", tmp_path / "m.pt", "--model", "cnn", "--clean", "digits",
               "--out", tmp_path / "f")  # fmt: skip
    err = capsys.readouterr().err
    assert code == 2
    assert "pickled code" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "tokens",
    [
        ["attack", "nothing", "--out", "{tmp}/x"],
        ["attack", "badnets", "--data", "nothing", "--out", "{tmp}/x"],
        ["attack", "badnets", "--model", "nothing", "--out", "{tmp}/x"],
        ["attack", "badnets", "--ratio", "0", "--out", "{tmp}/x"],
        ["attack", "badnets", "--target", "12", "--out", "{tmp}/x"],
        ["attack", "rare_word", "--out", "{tmp}/x"],
        ["repair", "--out", "{tmp}/x"],
        ["repair", "{tmp}/missing", "--out", "{tmp}/x"],
        ["repair", "--checkpoint", "{tmp}/m.safetensors", "--out", "{tmp}/x"],
        ["eval", "{tmp}/missing", "{tmp}/missing"],
        ["sequela", "{tmp}/missing", "{tmp}/missing", "--audit", "none"],
        ["schedule", "--preset", "none"],
        ["bench", "{tmp}/missing.toml", "--out", "{tmp}/x"],
        ["report", "{tmp}/missing", "--html", "{tmp}/x.html"],
        ["demo"],
        ["unknown"],
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, tokens):
    assert run(*(t.replace("{tmp}", str(tmp_path)) for t in tokens)) == 2
    err = capsys.readouterr().err
    assert err.strip()
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


MATRIX = """
attacks = ["badnets"]
defenses = ["none", "bn_recalibration", "clp", "head_only"]
seeds = [0]
"""


def test_matrix_is_cached_and_addressed_by_content(tmp_path, capsys):
    (tmp_path / "m.toml").write_text(MATRIX)
    page = tmp_path / "t.html"
    assert run("bench", tmp_path / "m.toml", "--out", tmp_path / "s", "--html", page) == 0
    table = (tmp_path / "s/table.csv").read_bytes()
    cells = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s/cells").iterdir()}
    assert len(cells) == 4
    assert run("bench", tmp_path / "m.toml", "--out", tmp_path / "s") == 0
    assert (tmp_path / "s/table.csv").read_bytes() == table
    assert cells == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s/cells").iterdir()}
    assert run("bench", tmp_path / "m.toml", "--out", tmp_path / "s", "--no-resume") == 2
    assert run("report", tmp_path / "s", "--html", page) == 0
    assert "Means over finished cells" in page.read_text()
    (tmp_path / "s/cells" / next(iter(cells))).write_text("{")
    assert run("report", tmp_path / "s", "--html", page) == 2


def test_parquet_table_and_settings(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    text = (
        'attacks = ["badnets"]\ndefenses = ["none", "ft"]\ngate = 0.0\nrecipe = "digits"\n'
        "[settings.ft]\nsteps = 2\naugment = {pad = 1}\n"
    )
    (tmp_path / "m.toml").write_text(text)
    table = tmp_path / "t.parquet"
    assert run("bench", tmp_path / "m.toml", "--out", tmp_path / "s", "--parquet", table) == 0
    found = pq.read_table(table).to_pylist()
    assert [r["defense"] for r in found] == ["none", "ft"]
    with (tmp_path / "s" / "table.csv").open() as file:
        assert [float(r["asr"]) for r in csv.DictReader(file)] == [r["asr"] for r in found]
    (tmp_path / "m.toml").write_text(text.replace("steps", "strides"))
    assert run("bench", tmp_path / "m.toml", "--out", tmp_path / "s") == 2


def test_matrix_survives_a_kill(tmp_path):
    """Killed while it runs, it goes on; the table has the same figures but processor time."""
    (tmp_path / "m.toml").write_text(MATRIX)
    command = [sys.executable, "-m", "backdoor_ft.cli", "bench", str(tmp_path / "m.toml"), "--out",
               str(tmp_path / "killed")]  # fmt: skip
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    deadline = time.monotonic() + 60
    while job.poll() is None and time.monotonic() < deadline:
        if list((tmp_path / "killed/cells").glob("*.json")):
            job.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    job.wait()
    kept = len(list((tmp_path / "killed/cells").glob("*.json")))
    matrix = Matrix.read(tmp_path / "m.toml")
    resumed = run_matrix(matrix, tmp_path / "killed")
    whole = run_matrix(matrix, tmp_path / "whole")
    assert 1 <= kept <= 4
    drop = lambda rows: [{k: v for k, v in r.items() if k != "cpu_s"} for r in rows]  # noqa: E731
    assert drop(resumed) == drop(whole)


def test_weak_attacks_are_marked_not_averaged(tmp_path):
    rows = run_matrix(
        Matrix(attacks=("badnets",), defenses=("none", "ft"), ratios=(0.002,)), tmp_path
    )
    assert {r["status"] for r in rows} == {"weak attack"}


@pytest.mark.parametrize(
    "text", ["attacks = 3", "attacks = ['x']", "defenses = ['x']", "clean = 0", "colour = 1", "["]
)
def test_bad_matrix(tmp_path, text, capsys):
    (tmp_path / "m.toml").write_text(text)
    assert run("bench", tmp_path / "m.toml", "--out", tmp_path / "s") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_and_version(capsys):
    assert run("--version") == 0
    assert run("--help") == 0
    assert "backdoor-ft attack badnets" in capsys.readouterr().out


def test_checkpoint_of_another_model(tmp_path, capsys):
    save_model(models.build("mlp", 1, 10, 8), tmp_path / "m.safetensors")
    code = run("repair", "--checkpoint", tmp_path / "m.safetensors", "--model", "cnn", "--clean",
               "digits", "--out", tmp_path / "f")  # fmt: skip
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
