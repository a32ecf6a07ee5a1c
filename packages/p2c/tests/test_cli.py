"""Command line."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from p2c import Pipeline, PipelineConfig
from p2c.cli import main
from p2c.files import load_tensors
from p2c.summary import summarize

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
    page = (tmp_path / "x.html").read_text()
    assert "these captions list tags" in page
    assert "x_f1.png" in page
    assert (tmp_path / "x_f1.png").stat().st_size > 3000


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
    (tmp_path / "new.yaml").write_text("unicorn: a horse with a hat\n")
    code, out, err = call(
        monkeypatch, capsys, "caption", tmp_path / "d" / "0.png", "--checkpoint",
        run / "captioner.pt", "--tags", "unicorn", "--constrain", "unicorn", "--objects",
        tmp_path / "new.yaml", "--html", tmp_path / "page" / "captions.html",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "unicorn" in out.rpartition(":")[2]
    assert "picture_0.png" in (tmp_path / "page" / "captions.html").read_text()
    assert (tmp_path / "page" / "picture_0.png").exists()
    check_score(tmp_path, run, monkeypatch, capsys)
    check_explain(tmp_path, run, monkeypatch, capsys)


def check_score(tmp_path, run, monkeypatch, capsys):
    """Every term is there; a caption that repeats a word loses what the definition says."""
    found = {}
    for text in ("a zebra stands on a bus", "zebra zebra zebra"):
        code, out, err = call(
            monkeypatch, capsys, "score", tmp_path / "d" / "0.png", text, "--checkpoint",
            run / "captioner.pt", "--tags", "zebra", "--refs", "a zebra stands on a bus", "--json",
            "--html", tmp_path / "page" / "score.html",
        )  # fmt: skip
        assert (code, err) == (0, "")
        found[text] = json.loads(out)
    good, hacked = found.values()
    assert set(good) == {"association", "cosine", "clipscore", "coverage", "repetition", "fluency",
                         "cider"}  # fmt: skip
    assert good["clipscore"] == pytest.approx(2.5 * max(0.0, good["cosine"]))
    assert (hacked["repetition"], good["coverage"]) == (pytest.approx(0, abs=1e-6), 0.6)
    assert good["cider"] > hacked["cider"]
    assert good["fluency"] < 0
    assert "probability of retrieval" in (tmp_path / "page" / "score.html").read_text()
    code, _, err = call(
        monkeypatch, capsys, "score", tmp_path / "none.png", "a", "--checkpoint",
        run / "captioner.pt",
    )  # fmt: skip
    assert (code, "readable picture" in err) == (2, True)


def check_explain(tmp_path, run, monkeypatch, capsys):
    rows = json.loads((run / "paraphrases.json").read_text())
    if not rows:  # so short a training may leave captions without a verb
        rows = [{"scene": 3, "before": "a bus stands", "after": "a bus stops", "a_before": 0.1,
                 "a_after": 0.4, "accepted": True, "true_verb": "stops"}]  # fmt: skip
        (run / "paraphrases.json").write_text(json.dumps(rows))
    code, out, err = call(
        monkeypatch, capsys, "explain", rows[0]["scene"], "--run", run, "--html",
        tmp_path / "page" / "explain.html",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert f"greedy caption: {rows[0]['before']}" in out
    assert "the margin is 0.1" in out
    assert (tmp_path / "page" / "scene.png").exists()
    code, _, err = call(monkeypatch, capsys, "explain", 99_999, "--run", run)
    assert (code, "scene = 99999" in err) == (2, True)


def test_train_stops_after_its_stage_and_the_pipeline_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "ablations": False}))
    here = ("--config", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert call(monkeypatch, capsys, "train", "vivo", *here)[0] == 0
    done = load_tensors(tmp_path / "run" / "checkpoint.pt")["done"]
    assert list(done) == ["LM", "judge", "evaluator", "VIVO"]
    code, out, _ = call(monkeypatch, capsys, "train", "stage1", *here, "--resume")
    assert (code, "stage1 is trained" in out) == (0, True)
    assert call(monkeypatch, capsys, "pipeline", *here, "--resume")[0] == 0
    cut = load_tensors(tmp_path / "run" / "captioner.pt")["captioner"]
    whole = Pipeline(PipelineConfig.from_yaml(tmp_path / "c.yaml")).run().captioner.state_dict()
    assert all(torch.equal(cut[k], whole[k]) for k in whole)
    code, _, err = call(monkeypatch, capsys, "train", "stage3", *here)
    assert (code, "stage = 'stage3'" in err) == (2, True)


def test_ablate_over_terms_language_models_and_judges(tmp_path, monkeypatch, capsys):
    """Shared stages come from checkpoints; a row equals the run that is trained alone."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "xe_steps": 12, "margin": -1.0}))
    out = tmp_path / "out"
    code, text, err = call(
        monkeypatch, capsys, "ablate", "--config", tmp_path / "c.yaml", "--grid", "coverage",
        "--lm", "none", "--judge", "plain", "--out", out,
    )  # fmt: skip
    assert (code, err) == (0, "")
    rows = {row["what"]: row for row in json.loads((out / "ablation.json").read_text())}
    assert list(rows) == ["everything", "no coverage", "language model none", "judge plain"]
    assert rows["language model none"]["right paraphrases"] == "0 of 0"
    assert rows["everything"]["right paraphrases"] != "0 of 0"
    assert "judge plain" in text
    assert "ablation.png" in (out / "report.html").read_text()
    base = PipelineConfig.from_yaml(tmp_path / "c.yaml").with_(ablations=False)
    alone = summarize(Pipeline(base.with_(language_model="none")).run())["stage 2"]
    assert rows["language model none"]["novel F1 (95 %)"] == str(alone.novel.macro)
    assert rows["language model none"]["evaluator R@1 (95 %)"] == str(alone.evaluator)
    code, _, err = call(monkeypatch, capsys, "ablate", "--out", out, "--lm", "gpt")
    assert (code, "language_model = 'gpt'" in err) == (2, True)


def test_split(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.json").write_text(json.dumps({
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"image_id": 1, "caption": "a sofa"}, {"image_id": 2, "caption": "a cat"}],
    }))  # fmt: skip
    code, out, _ = call(
        monkeypatch, capsys, "data", "split", tmp_path / "c.json", "--out", tmp_path / "dcc"
    )
    assert (code, "couch: 1 images" in out, "train 1, val 1, test 0" in out) == (0, True, True)
    (tmp_path / "plain.json").write_text('{"1": ["a sofa"]}')
    code, _, err = call(
        monkeypatch, capsys, "data", "split", tmp_path / "plain.json", "--out", tmp_path / "dcc"
    )
    assert (code, "a COCO caption file" in err) == (2, True)


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


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    """Standard output is a pipe whose other end is closed."""
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "caption": "a bus"}]))
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a zebra near a bus"]}))
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "p2c.cli", "evaluate", str(tmp_path / "p.json")]
    done = subprocess.run(
        [*command, "--refs", str(tmp_path / "r.json")], stdout=write, stderr=subprocess.PIPE,
        check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_version_and_help():
    for flag, text in (("--version", "0.1.0"), ("--help", "p2c demo --out")):
        done = subprocess.run(
            [sys.executable, "-m", "p2c.cli", flag], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert text in done.stdout
