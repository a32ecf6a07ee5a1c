"""Command line."""

import json
import subprocess
import sys

import pytest
import yaml
from p2c import PipelineConfig
from p2c.cli import main

from .test_pipeline import TINY


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["p2c", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    text = capsys.readouterr()
    return code, text.out, text.err


def test_evaluate(tmp_path, monkeypatch, capsys):
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "caption": "zebra bus"}]))
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a zebra near a bus"]}))
    (tmp_path / "n.yaml").write_text("zebra: []\nbus:\n")
    code, out, err = call(
        monkeypatch, capsys, "evaluate", tmp_path / "p.json", "--refs", tmp_path / "r.json",
        "--novel", tmp_path / "n.yaml", "--html", tmp_path / "x.html",
    )  # fmt: skip
    assert code == 0
    assert "F1 macro: 1.000" in out
    assert "these captions list tags" in err
    assert "these captions list tags" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "none.json", "--refs", "x"), "preds = 'none.json'"),
        (("pipeline", "--out", "o", "--preset", "huge"), "preset = 'huge'"),
        (("caption", "a.png", "--checkpoint", "none.pt"), "checkpoint = 'none.pt'"),
        (("ablate", "--out", "o", "--grid", "beauty"), "grid = 'beauty'"),
        (("demo",), "--out"),
        (("data", "check", "nowhere"), "refs = 'nowhere/captions.json'"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_pipeline_then_caption(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TINY))
    run = tmp_path / "run"
    code, out, err = call(
        monkeypatch, capsys, "pipeline", "--config", tmp_path / "c.yaml", "--out", run
    )
    assert (code, err) == (0, "")
    assert "stage 2: novel F1" in out
    page = (run / "report.html").read_text()
    for name in ("f1.png", "gallery.png", "rewards.png", "hacking.png"):
        assert name in page
        assert (run / name).stat().st_size > 5000
    assert len(json.loads((run / "captions_stage_2.json").read_text())) == 20
    assert (
        call(monkeypatch, capsys, "data", "make", "--count", "3", "--out", tmp_path / "d")[0] == 0
    )
    code, out, _ = call(monkeypatch, capsys, "data", "check", tmp_path / "d")
    assert (code, "3 images with captions" in out) == (0, True)
    code, out, err = call(
        monkeypatch, capsys, "caption", tmp_path / "d" / "0.png", "--checkpoint",
        run / "captioner.pt", "--tags", "zebra,bus", "--constrain", "zebra",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "zebra" in out.rpartition(":")[2]
    code, _, err = call(
        monkeypatch, capsys, "caption", tmp_path / "d" / "0.png", "--checkpoint",
        run / "captioner.pt", "--tags", "unicorn",
    )  # fmt: skip
    assert (code, "tags = 'unicorn'" in err) == (2, True)


def test_demo_writes_everything_its_result_names(tmp_path, monkeypatch, capsys):
    """With a preset of seconds: the figures mean nothing, the files and claims are there."""
    monkeypatch.setattr(
        PipelineConfig,
        "preset",
        classmethod(lambda cls, name, **changes: cls.from_dict({**TINY, **changes})),
    )
    code, out, err = call(monkeypatch, capsys, "demo", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert len(result["claims"]) == 8
    assert {c["met"] for c in result["claims"]} <= {True, False}
    assert all((tmp_path / "out" / f["path"]).exists() for f in result["figures"])
    assert out.count("stage 1 gains over VIVO + XE") == 2


def test_version_and_help():
    for flag, text in (("--version", "0.1.0"), ("--help", "p2c demo --out")):
        done = subprocess.run(
            [sys.executable, "-m", "p2c.cli", flag], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert text in done.stdout
