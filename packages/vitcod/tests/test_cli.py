import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import random_mask
from safetensors.torch import save_file
from vitcod import SparsityPlan, VisionTransformer, cli, polarize
from vitcod.models import PRESETS
from vitcod.synthetic import vit_like_plan


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "deit_tiny", {"dim": 32, "depth": 2, "heads": 2})
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        images=rng.random((8, 3, 64, 64), np.float32),
        labels=rng.integers(5, size=8),
    )
    model = VisionTransformer(image=64, classes=5, dim=32, depth=2, heads=2)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    np.save(tmp_path / "mask.npy", ~np.stack([random_mask(2, 17, 17, 0.4)] * 2))
    plan = polarize(SparsityPlan.from_masks([random_mask(2, 17, 17, 0.4)] * 2))
    plan.save(tmp_path / "p.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


def test_the_whole_way(files, capsys):
    own = "--data data.npz --classes 5"
    code, out, _ = run(f"collect {own} --checkpoint w.pth -o s.safetensors", capsys)
    assert code == 0
    assert "8 images, 2 layers" in out
    code, out, _ = run(
        "prune s.safetensors --sparsity 0.5 -o q.safetensors --report r.html", capsys
    )
    assert code == 0
    assert "sparsity 49.9" in out or "sparsity 50.0" in out
    assert (files / "r.html").read_text().count("<img") == 2
    line = "prune s.safetensors --theta 0.5 -o u.safetensors"
    code, _, _ = run(line, capsys)
    assert code == 0
    code, _, _ = run(line.replace("u.saf", "v.saf") + " --official", capsys)
    assert code == 0
    plain, official = (SparsityPlan.load(files / f"{name}.safetensors") for name in "uv")
    assert official.sparsity < plain.sparsity  # one key more per row
    assert official.info["official"] is True
    code, out, _ = run("diagnose s.safetensors", capsys)
    assert code == 3  # an untrained model's maps are uniform
    assert "unsuited" in out
    tune = "finetune --plan q.safetensors -o t.safetensors --epochs 1 --distillation 0.5"
    code, out, _ = run(f"{tune} {own} --checkpoint w.safetensors", capsys)
    assert code == 0
    assert "accuracy" in out
    line = f"eval {own} --plan q.safetensors --checkpoint t.safetensors"
    code, out, _ = run(line, capsys)
    assert code == 0
    assert out.count("%") == 2


def test_plan_commands(files, capsys):
    code, out, _ = run("import-mask mask.npy -o i.safetensors", capsys)
    assert code == 0
    assert "2 layers" in out
    code, out, _ = run("inspect p.safetensors --layer 1 --polarized --report i.html", capsys)
    assert code == 0
    assert "checksum" in out
    code, _, err = run("simulate --plan p.safetensors --compat official", capsys)
    assert code == 2
    assert "divides by zero" in err
    wide = vit_like_plan(2, 2, 197, 0.9).save(files / "w.plan").name
    code, out, _ = run(f"simulate --plan {wide} --compat official --report s.html", capsys)
    assert code == 0
    assert "official script" in out
    assert (files / "s.html").read_text().count("<img") == 3
    code, out, _ = run("simulate --plan p.safetensors --json", capsys)
    assert json.loads(out)["attention_cycles"] > 0
    code, out, _ = run("bench kernel --plan p.safetensors --repeats 2", capsys)
    assert code == 0
    assert out.count("x\n") == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prune missing --sparsity 0.5 -o x", "stats='missing' cannot be read"),
        ("prune p.safetensors --sparsity 0.5 -o x", "holds no attention statistics"),
        ("inspect p.safetensors --layer 9", "layer=9 is not allowed: 0 to 1"),
        ("inspect p.safetensors --head 9", "head=9 is not allowed: 0 to 1"),
        ("inspect data.npz", "plan='data.npz' cannot be read"),
        ("simulate --plan p.safetensors --ae-ratio 2", "ae_ratio=2"),
        ("simulate --plan p.safetensors --compat new", "compat"),
        ("import-mask data.npz -o x", "mask="),
        ("import-mask mask.npy -o no/such/x", "cannot be written"),
        ("import-mask mask.npy -o x --dense-threshold 0", "dense_threshold=0"),
        ("collect --data w.pth -o x", "data='w.pth' cannot be read"),
        ("collect --data data.npz -o x --checkpoint mask.npy", "checkpoint="),
        ("eval --data data.npz --plan data.npz --classes 5", "plan="),
        ("bench kernel --repeats 0", "repeats=0"),
        ("frobnicate", "frobnicate"),
        ("prune", "STATS"),
    ],
)
def test_bad_input_is_one_line(files, capsys, line, message):
    code, _, err = run(line, capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (files / "x").exists()


def test_version_and_help():
    for flag, text in (("--version", "0.1.0"), ("--help", "vitcod simulate")):
        done = subprocess.run(
            [sys.executable, "-m", "vitcod.cli", flag], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert text in done.stdout
