import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from noiser import SelfRegressionModel, cli, png
from PIL import Image


def run(*tokens):
    """Run the command line in this process; return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(token) for token in tokens])
    return caught.value.code


@pytest.fixture
def model_file(tmp_path, model):
    return model.save(tmp_path / "srm.json")


def one_line(capsys):
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "Traceback" not in captured
    return captured


def test_train_then_enhance(tmp_path, photograph, capsys):
    assert run("train", "-o", tmp_path / "srm.json", "--steps", 30, "--size", 16) == 0
    assert SelfRegressionModel.load(tmp_path / "srm.json").training["steps"] == 30
    Image.fromarray(photograph // 8).save(tmp_path / "dark.png")
    out = tmp_path / "out"
    command = [
        "enhance",
        tmp_path / "dark.png",
        "-o",
        out,
        "--method",
        "paper",
        "--model",
        tmp_path / "srm.json",
    ]
    assert run(*command) == 0
    with Image.open(out / "dark.png") as image:
        assert abs(np.asarray(image).mean() - 127) < 30
    first = (out / "dark.png").read_bytes()
    assert run(*command) == 0
    assert (out / "dark.png").read_bytes() == first
    assert str(out / "dark.png") in capsys.readouterr().out


def test_many_seeds_make_many_files(tmp_path, capsys):
    options = ["--steps", 20, "--size", 16, "--channels", 4, "--seed", 3]
    assert run("train", "-o", tmp_path / "many.json", "--count", 3, *options) == 0
    assert run("train", "-o", tmp_path / "one.json", *options) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "many-3.json", "many-4.json", "many-5.json", "one.json",
    }  # fmt: skip
    assert (tmp_path / "many-3.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert run("train", "-o", tmp_path / "x.json", "--count", 0) == 2
    assert "count=0" in capsys.readouterr().err


def test_16_bit_png_stays_16_bit(tmp_path, model_file):
    image = np.random.default_rng(0).integers(0, 3000, (20, 20, 3)).astype(np.uint16)
    (tmp_path / "deep.png").write_bytes(png.encode16(image))
    assert run("enhance", tmp_path / "deep.png", "-o", tmp_path / "o", "--model", model_file) == 0
    data = (tmp_path / "o" / "deep.png").read_bytes()
    assert png.bit_depth(data) == 16
    assert (png.decode16(data) % 257 != 0).any()


def test_bad_images_give_one_line_and_code_2(tmp_path, model_file, photograph, capsys):
    (tmp_path / "text.png").write_text("this is no image")
    Image.fromarray(photograph[:1, :1]).save(tmp_path / "pixel.png")
    for name in ("missing.png", "text.png", "pixel.png"):
        out = tmp_path / f"out_{name}"
        assert run("enhance", tmp_path / name, "-o", out, "--model", model_file) == 2
        assert name in one_line(capsys)
        assert list(out.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path, model_file, photograph, capsys):
    Image.fromarray(photograph).save(tmp_path / "a.png")
    blocked = tmp_path / "a.png" / "out"
    assert run("enhance", tmp_path / "a.png", "-o", blocked, "--model", model_file) == 2
    assert "write permission" in one_line(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_without_write_permission(tmp_path, model_file, photograph, capsys):
    Image.fromarray(photograph).save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir(mode=0o500)
    out = tmp_path / "closed"
    assert run("enhance", tmp_path / "a.png", "-o", out, "--model", model_file) == 2
    assert "write permission" in one_line(capsys)


def test_the_batch_goes_on_after_a_bad_file(tmp_path, model_file, photograph, capsys):
    Image.fromarray(photograph).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("")
    files = [tmp_path / "bad.png", tmp_path / "good.png"]
    assert run("enhance", *files, "-o", tmp_path / "o", "--model", model_file) == 4
    assert "bad.png" in one_line(capsys)
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["good.png"]


def test_the_input_is_never_overwritten(tmp_path, model_file, photograph, capsys):
    Image.fromarray(photograph).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert run("enhance", tmp_path / "a.png", "-o", tmp_path, "--model", model_file) == 2
    assert "overwrite" in one_line(capsys)
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    "tokens",
    [
        ["enhance"], ["enhance", "a.png"], ["enhance", "a.png", "-o", "x", "--method", "magic"],
        ["enhance", "a.png", "-o", "x", "--target", "7"], ["train", "--steps", "many", "-o", "x"],
        ["train", "-o", "x.json", "--steps", "0"], ["train"], ["nothing"], ["demo"],
        ["train", "-o", "x.json", "--sigma", "nan"], ["enhance", "a.png", "-o", "x", "--bogus"],
        ["enhance", "a.png", "-o", "x", "--model", "missing.json"], ["train", "-o", "."],
    ],
)  # fmt: skip
def test_bad_arguments_give_one_line_and_code_2(tokens, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*tokens) == 2
    one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_version_and_help(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip().count(".") == 2
    assert run("--help") == 0
    assert "noiser enhance night.jpg" in capsys.readouterr().out


def test_interrupted_training_leaves_no_model(tmp_path):
    command = [sys.executable, "-m", "noiser.cli", "train", "-o", "srm.json", "--steps", "1000000"]
    code = (
        "import sys, noiser.cli as c, noiser.training as t\n"
        "step = t.noise_image\n"
        "def tell(*a, **k):\n"
        "    print('step', flush=True)\n"
        "    return step(*a, **k)\n"
        "t.noise_image = tell\n"
        f"c.main({command[3:]!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"step\n"
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 60
    _, err = process.communicate(timeout=deadline - time.monotonic())
    assert process.returncode == 130
    assert err.decode().strip() == "interrupted"
    assert list(tmp_path.iterdir()) == []


def test_the_demo_names_the_extra_that_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert run("demo", "--out", tmp_path / "demo") == 2
    assert "noiser[demo]" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_small_commands(tmp_path, photograph, capsys):
    Image.fromarray(photograph // 8).save(tmp_path / "dark.png")
    assert run("assess", tmp_path / "dark.png") == 0
    assert "lift" in capsys.readouterr().out
    assert run("lut", tmp_path / "dark.png", "-o", tmp_path / "look.cube", "--size", 5) == 0
    assert (tmp_path / "look.cube").read_text().count("\n") == 4 + 5**3
    assert run("assess", tmp_path / "missing.png") == 2
    assert run("lut", tmp_path / "dark.png", "-o", tmp_path / "x.cube", "--size", 1) == 2
    assert not (tmp_path / "x.cube").exists()


def test_pages_of_the_measuring_commands(tmp_path, photograph):
    Image.fromarray(photograph // 8).save(tmp_path / "dark <1>.png")
    train_options = ["--steps", 40, "--size", 16, "--count", 2, "--channels", 4]
    pages = {name: tmp_path / f"{name}.html" for name in ("assess", "bench", "train")}
    assert run("assess", tmp_path / "dark <1>.png", "--page", pages["assess"]) == 0
    assert run("bench", "--size", "600x400", "--repeats", 2, "--page", pages["bench"]) == 0
    assert run("train", "-o", tmp_path / "a.json", *train_options, "--page", pages["train"]) == 0
    words = {"assess": "dark &lt;1&gt;.png", "bench": "noiser plus", "train": "one line per seed"}
    for name, path in pages.items():
        text = path.read_text()
        assert words[name] in text
        assert "http" not in text
        assert "nan" not in text
    assert pages["train"].read_text().count("<polyline") == 4
