import json
import subprocess
import sys

import pytest
from nasa import Architecture, SearchSpace
from nasa.cli import main


def run(capsys, *arguments):
    """Return exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def architecture(tmp_path):
    path = tmp_path / "arch.json"
    Architecture(SearchSpace.from_yaml("digits"), (1, 3, 5, 1)).save(path)
    return path


def test_map_prints_and_writes(capsys, architecture, tmp_path):
    code, out, _ = run(capsys, "map", str(architecture), "--top", "3", "--out", str(tmp_path / "o"))
    assert code == 0
    assert "EDP" in out
    for name in ("mapping.json", "report.html", "energy.png", "gantt.png"):
        assert (tmp_path / "o" / name).stat().st_size > 0
    code, out, _ = run(capsys, "map", str(architecture), "--json")
    assert json.loads(out)[0]["combinations"] == 64


def test_allocate_export_lut(capsys, architecture, tmp_path):
    code, out, _ = run(capsys, "allocate", str(architecture), "--budget", "6", "--json")
    assert code == 0
    assert json.loads(out)["mappings tried"] >= 6
    code, out, _ = run(capsys, "export", str(architecture), "--to", "scalesim")
    assert (code, out.splitlines()[1].split(",")[0]) == (0, "stem")
    table = tmp_path / "lut.json"
    code, _, _ = run(capsys, "lut", "build", "--space", "digits", "--out", str(table))
    assert code == 0
    assert len(json.loads(table.read_text())["cells"]) == 4


def test_search_train_quantize_report(capsys, tmp_path):
    out = str(tmp_path / "run")
    arguments = ["search", "--out", out, "--pretraining-epochs", "6", "--epochs", "1"]
    code, text, err = run(capsys, *arguments)
    assert code == 0
    lines = err.splitlines()  # no terminal here: a log gets one line per epoch and generation
    assert len(lines) == 7
    assert all(line.startswith("search: epoch ") for line in lines)
    assert "loss" in lines[0]
    assert "search: " not in text
    again = (tmp_path / "run" / "arch.json").read_text()
    code, _, err = run(capsys, *arguments, "--seed", "5")
    assert code == 2
    assert "other settings" in err
    code, _, _ = run(capsys, "resume", out)
    assert code == 0
    assert (tmp_path / "run" / "arch.json").read_text() == again
    code, text, err = run(
        capsys, "train", f"{out}/arch.json", "--out", out, "--epochs", "2", "--json"
    )
    assert code == 0
    assert [line.split(",")[0] for line in err.splitlines()] == ["train: epoch 0", "train: epoch 1"]
    assert json.loads(text)["test_accuracy"] > 0.3
    code, text, _ = run(capsys, "quantize", out, "--json")
    assert code == 0
    assert json.loads(text)["packed_bytes"] > 0
    code, _, _ = run(capsys, "report", out)
    assert code == 0
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"training.html", "training.png"} <= names
    assert {"report.html", "search.json", "mapping.json", "network.packed.safetensors"} <= names
    assert not [n for n in names if n.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["map", "none.json"], 2, "none.json"),
        (["map", "ARCH", "--accelerator", "moon"], 2, "nasa_45nm"),
        (["map", "ARCH", "--objective", "speed"], 2, "speed"),
        (["map", "ARCH", "--top", "0"], 2, "top=0"),
        (["map", "TINY", "--accelerator", "MACHINE"], 3, "smallest that fits"),
        (["allocate", "ARCH", "--area", "1"], 2, "area=1"),
        (["export", "ARCH", "--to", "onnx"], 2, "onnx"),
        (["search", "--out", "x", "--space", "moon"], 2, "space='moon'"),
        (["search", "--out", "x", "--data", "nowhere"], 2, "data='nowhere'"),
        (["search", "--out", "x", "--space", "hybrid-all"], 2, "expects (3, 32, 32)"),
        (["resume", "nowhere"], 2, "settings.json"),
        (["quantize", "nowhere"], 2, "nowhere"),
        (["report", "nowhere"], 2, "search.json"),
        (["ops", "bench", "--repeats", "0"], 2, "repeats=0"),
        (["ops", "ceiling", "--repeats", "0"], 2, "repeats=0"),
        (["fly"], 2, "fly"),
        (["demo"], 2, "out"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, architecture, tmp_path, arguments, code, word):
    monkeypatch.chdir(tmp_path)
    machine = tmp_path / "m.yaml"
    machine.write_text("name: m\nglobal_buffer_words: 30\n")
    places = {"ARCH": str(architecture), "TINY": str(architecture), "MACHINE": str(machine)}
    found, _, err = run(capsys, *(places.get(a, a) for a in arguments))
    assert found == code
    assert word in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x" / "arch.json").exists()


def test_doctor_and_check(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(out)[0]["part"] == "compiled kernels"
    code, out, _ = run(capsys, "ops", "check", "--json")
    assert code == 0
    assert all(row["passed"] for row in json.loads(out))


def test_version_and_help():
    from importlib.metadata import version

    done = subprocess.run(
        [sys.executable, "-m", "nasa", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == version("nasa")
    done = subprocess.run(
        [sys.executable, "-m", "nasa", "--help"], capture_output=True, text=True, check=True
    )
    assert "nasa search" in done.stdout
