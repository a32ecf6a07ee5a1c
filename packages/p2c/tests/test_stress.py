"""Fuzzed files, and runs that are killed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from p2c import InputError, PipelineConfig
from p2c.files import load_tensors
from p2c.formats import read_image, read_predictions, read_references, read_tags, read_vinvl
from p2c.new_objects import read_objects

from .test_pipeline import TINY

GOOD = {
    read_references: b'{"images": [{"id": 1, "domain": "in"}], "annotations": '
    b'[{"image_id": 1, "caption": "a b"}]}',
    read_predictions: b'[{"image_id": 1, "caption": "a b"}, {"image_id": 2, "caption": ""}]',
    read_tags: b'{"image_id": 1, "objects": [{"label": "bus", "score": 0.5}]}\n',
    read_vinvl: b'7\t{"num_boxes": 1, "features": "AACAPwAAAEA="}\n',
    read_objects: b"unicorn: a horse\n",
    PipelineConfig.from_yaml: b"preset: tiny\nlr: 0.001\nseed: 3\n",
    load_tensors: b"PK\x03\x04broken",
}
PIECES = [b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"\xff\xfe", b"\x00", b"NaN", b"true", b":",
          b"[[[[", b"\xed\xa0\x80", b"9" * 400, b"\n", b"\t"]  # fmt: skip


def mutate(r, text):
    """Change a file in one to four places: bytes lost, put in, or the rest cut off."""
    for _ in range(r.randint(1, 4)):
        place = r.randint(0, len(text))
        kind = r.randrange(4)
        if kind == 0:
            text = text[:place]
        elif kind == 1:
            text = text[:place] + text[place + r.randint(1, 5) :]
        elif kind == 2:
            text = text[:place] + r.choice(PIECES) + text[place:]
        else:
            text = text[:place] + r.choice(PIECES) + text[place + r.randint(1, 8) :]
    return text


def assert_one_line(message):
    assert len(message.splitlines()) == 1, message


def fuzz(folder, rounds, seed):
    """Read mutated files; whatever is not read must be an InputError of one line."""
    r = random.Random(seed)
    path = folder / "file"
    refused = 0
    for _ in range(rounds):
        for reader, good in GOOD.items():
            path.write_bytes(mutate(r, good))
            try:
                reader(path)
            except InputError as error:
                refused += 1
                assert_one_line(str(error))
    return refused


def fuzz_pictures(folder, rounds, seed):
    from io import BytesIO

    from PIL import Image

    r = random.Random(seed)
    made = []
    for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff"):
        buffer = BytesIO()
        Image.new("RGB", (9, 7), (200, 10, 30)).save(buffer, kind)
        made.append(buffer.getvalue())
    path, refused = folder / "picture", 0
    for n in range(rounds):
        path.write_bytes(mutate(r, made[n % len(made)]))
        try:
            assert read_image(path, 8).shape == (3, 8, 8)
        except InputError as error:
            refused += 1
            assert_one_line(str(error))
    return refused


def test_fuzzed_files_give_one_line_each(tmp_path):
    assert fuzz(tmp_path, 60, 0) > 100
    assert fuzz_pictures(tmp_path, 60, 0) > 10


@pytest.mark.stress
def test_ten_thousand_fuzzed_files(tmp_path):
    assert fuzz(tmp_path, 1300, 1) > 4000
    assert fuzz_pictures(tmp_path, 1000, 1) > 100


def command(folder, *more):
    return [sys.executable, "-m", "p2c.cli", "pipeline", "--config", str(folder / "c.yaml"), *more]


@pytest.mark.stress
def test_killed_runs_end_with_the_same_bits(tmp_path):
    """SIGKILL at eight moments, resumed each time: the weights equal those of a run left alone."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings = {**TINY, "ablations": False, "checkpoint_every": 1, "stage2_steps": 12,
                "stage1_steps": 12}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    begin = time.monotonic()
    whole = command(tmp_path, "--out", str(tmp_path / "whole"))
    subprocess.run(whole, check=True, env=env, capture_output=True)
    seconds = time.monotonic() - begin
    out = tmp_path / "cut"
    for n in range(8):
        resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running = subprocess.Popen(command(tmp_path, "--out", str(out), *resume), env=env, **quiet)
        try:
            running.wait(seconds * (0.55 + 0.06 * n))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
    subprocess.run(command(tmp_path, "--out", str(out), "--resume"), check=True, env=env,
                   capture_output=True)  # fmt: skip
    one, two = (load_tensors(f / "captioner.pt")["captioner"] for f in (tmp_path / "whole", out))
    assert all(torch.equal(one[k], two[k]) for k in one)
    leftovers = [p for p in out.iterdir() if p.name.startswith(".")]
    assert all(p.name.startswith(".checkpoint.pt.") for p in leftovers)  # of the killed writers
