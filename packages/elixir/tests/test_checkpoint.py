"""Save and resume: other plans, kills during a save, damaged files."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import elixir
import pytest
import torch
from common import HARDWARE, gpt, gpt_batch, least_budget
from elixir import checkpoint
from safetensors.torch import load_file


def start(budget, dtype=None, **kw):
    model = gpt() if dtype is None else gpt().to(dtype)
    plan = elixir.plan(
        model, gpt_batch(), device_budget=budget, hardware=HARDWARE, dtype=dtype, recompute="none"
    )
    return elixir.initialize(model, plan=plan, lr=1e-2, **kw)


def steps(model, optimizer, numbers):
    losses = []
    for i in numbers:
        loss = model(*gpt_batch(i))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_resume_under_another_plan_is_bit_exact(tmp_path, dtype):
    least = least_budget(gpt(), gpt_batch(), dtype=dtype, recompute="none")
    model, optimizer = start(least, dtype)
    steps(model, optimizer, range(3))
    checkpoint.save(tmp_path / "run", optimizer, {"step": 3})
    rest = steps(model, optimizer, range(3, 6))
    for budget in (least, 2 * least, "64MiB"):
        fresh, second = start(budget, dtype)
        steps(fresh, second, [9])  # something to overwrite
        assert checkpoint.load(tmp_path / "run", second) == {"step": 3}
        assert steps(fresh, second, range(3, 6)) == rest
        for key, value in model.state_dict().items():
            assert torch.equal(value, fresh.state_dict()[key]), key


def test_reshard_and_exports(tmp_path):
    model, optimizer = start("64MiB")
    steps(model, optimizer, range(2))
    checkpoint.save(tmp_path / "run", optimizer)
    checkpoint.reshard(tmp_path / "run", tmp_path / "three", 3)
    assert len(checkpoint.inspect(tmp_path / "three")["files"]) == 3
    checkpoint.reshard(tmp_path / "three", tmp_path / "one", 1)
    checkpoint.export_safetensors(tmp_path / "one", tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    for key, value in model.named_parameters():
        assert torch.equal(tensors[key], model.state_dict()[key]), key
        del value
    checkpoint.export_dcp(tmp_path / "run", tmp_path / "dcp")
    import torch.distributed.checkpoint as dcp

    target = {"model.blocks.0.up.weight": torch.zeros_like(tensors["blocks.0.up.weight"])}
    dcp.load(target, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    assert torch.equal(target["model.blocks.0.up.weight"], tensors["blocks.0.up.weight"])


def test_damage_is_named(tmp_path):
    model, optimizer = start("64MiB")
    steps(model, optimizer, range(1))
    checkpoint.save(tmp_path / "run", optimizer)
    with pytest.raises(elixir.CorruptCheckpointError, match=r"manifest\.json"):
        checkpoint.inspect(tmp_path)
    path = next((tmp_path / "run").glob("data-*/rank-0.safetensors"))
    data = bytearray(path.read_bytes())
    draw = random.Random(0)
    for _ in range(5):
        damaged = data.copy()
        damaged[draw.randrange(len(data))] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(elixir.CorruptCheckpointError, match="hash"):
            checkpoint.load(tmp_path / "run", optimizer)
    path.unlink()
    with pytest.raises(elixir.CorruptCheckpointError, match="missing"):
        checkpoint.load(tmp_path / "run", optimizer)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(elixir.CorruptCheckpointError, match="schema 99"):
        checkpoint.load(tmp_path / "run", optimizer)


SCRIPT = """
import sys, torch, elixir
sys.path.insert(0, {tests!r})
from test_checkpoint import start, steps
from elixir import checkpoint
torch.set_num_threads(1)
model, optimizer = start("64MiB")
print("ready", flush=True)
for i in range(10_000):
    steps(model, optimizer, [i])
    checkpoint.save({folder!r}, optimizer, {{"step": i + 1}})
"""


def kill_during_saves(tmp_path, kills, seed=0):
    draw = random.Random(seed)
    for number in range(kills):
        folder = tmp_path / f"run{number}"
        code = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder))
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            child.stdout.readline()
            deadline = time.monotonic() + 60
            while not (folder / "manifest.json").exists() and time.monotonic() < deadline:
                pass
            # saves take most of the child's time: any moment of the next steps will do
            until = time.monotonic() + draw.uniform(0, 0.2)
            while time.monotonic() < until:
                pass
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.wait()
        model, optimizer = start("64MiB")
        done = checkpoint.load(folder, optimizer)["step"]
        reference, other = start("64MiB")
        steps(reference, other, range(done))
        assert steps(model, optimizer, [done]) == steps(reference, other, [done])


def test_kill_during_a_save_leaves_a_whole_checkpoint(tmp_path):
    kill_during_saves(tmp_path, 1)


@pytest.mark.stress
def test_hundred_kills(tmp_path):
    kill_during_saves(tmp_path, 100)
