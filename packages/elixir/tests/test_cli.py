"""The command line: exit codes, one line on bad input, files whole or not at all."""

import json

import elixir
import pytest
from common import HARDWARE, gpt, gpt_batch, least_budget
from elixir.cli import main
from elixir.export import to_deepspeed, to_fsdp2

SCRIPT = """
import torch

from elixir.models import GPT

def make_model():
    torch.manual_seed(0)
    return GPT(vocab=64, context=16, dim=32, layers=2, heads=2)

def batches():
    g = torch.Generator().manual_seed(1)
    while True:
        yield [torch.randint(0, 64, (2, 16), generator=g) for _ in range(2)]

optimizer = dict(lr=1e-2)
"""


def cli(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_help_and_version(capsys):
    assert cli(capsys, "--version")[1].strip() == elixir.__version__
    code, out, _ = cli(capsys, "--help")
    assert code == 0
    for name in ("hw", "plan", "explain", "train", "trace", "bench", "ckpt", "doctor", "demo"):
        assert name in out


def test_plan_explain_trace_train_resume_export(capsys, tmp_path, script):
    plan = tmp_path / "plan.json"
    assert cli(capsys, "plan", script, "--device-budget", "1MiB", "--out", plan)[0] == 0
    code, out, _ = cli(capsys, "plan", script, "--device-budget", "1MiB", "--split", "4KiB")
    assert code == 0
    assert "rows a tile" in out
    code, out, _ = cli(capsys, "explain", plan, "--model", script, "--what-if", "1KiB,1MiB,1GiB")
    assert code == 0
    assert "infeasible" in out
    assert "least" in out
    assert (
        json.loads(cli(capsys, "explain", plan, "--to", "deepspeed")[1])["zero_optimization"][
            "stage"
        ]
        == 3
    )
    assert "fully_shard" in cli(capsys, "explain", plan, "--to", "fsdp2")[1]
    code, out, _ = cli(capsys, "trace", plan, "--out", tmp_path / "trace.json")
    assert code == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert "predicted step" in (tmp_path / "trace.html").read_text()
    whole = json.loads(cli(capsys, "train", script, "--plan", plan, "--steps", 4, "--json")[1])
    first = json.loads(
        cli(
            capsys,
            "train",
            script,
            "--plan",
            plan,
            "--steps",
            2,
            "--save",
            tmp_path / "run",
            "--json",
        )[1]
    )
    rest = json.loads(
        cli(
            capsys,
            "train",
            script,
            "--plan",
            plan,
            "--steps",
            4,
            "--save",
            tmp_path / "run",
            "--json",
        )[1]
    )
    assert first + rest == whole
    assert cli(capsys, "ckpt", "inspect", tmp_path / "run")[0] == 0
    assert (
        cli(capsys, "ckpt", "export", tmp_path / "run", "--out", tmp_path / "m.safetensors")[0] == 0
    )
    assert (tmp_path / "m.safetensors").exists()


def test_infeasible_is_code_3_and_names_the_least(capsys, script):
    code, _, err = cli(capsys, "plan", script, "--device-budget", "1KiB")
    assert code == 3
    assert "the least budget is" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["plan", "nowhere.py", "--device-budget", "1GiB"], "no such file"),
        (["plan", "gpt2:5B", "--device-budget", "1GiB"], "gpt2:5B"),
        (["plan", "gpt2:400M", "--device-budget", "lots"], "device_budget='lots'"),
        (["plan", "gpt2:400M"], "device-budget"),
        (["explain", "nowhere.json"], "nowhere.json"),
        (["train", "nowhere.py", "--device-budget", "1GiB"], "no such file"),
        (["ckpt", "inspect", "nowhere"], "manifest.json"),
        (["bench", "adam", "--repeats", "0"], "repeats=0"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, text):
    code, _, err = cli(capsys, *arguments)
    assert code == 2
    assert text in err
    assert "Traceback" not in err
    assert err.strip().count("\n") == 0


def test_broken_scripts_are_one_line(capsys, tmp_path):
    for text, words in (
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("x = 1", "must define make_model()"),
    ):
        path = tmp_path / "s.py"
        path.write_text(text)
        code, _, err = cli(capsys, "train", path, "--device-budget", "1GiB")
        assert code == 2
        assert words in err


def test_hw_and_doctor(capsys, tmp_path):
    path = tmp_path / "hw.json"
    assert cli(capsys, "hw", "--out", path, "--disk", tmp_path)[0] == 0
    assert elixir.Hardware.load(path).h2d > 0
    path.write_text("{}x")
    with pytest.raises(ValueError, match="not a hardware profile"):
        elixir.Hardware.load(path)
    assert "compiled kernels" in cli(capsys, "doctor")[1]


def test_exported_fsdp2_code_runs():
    model, batch = gpt(), gpt_batch()
    budget = least_budget(model, batch)
    plan = elixir.plan(model, batch, device_budget=budget, hardware=HARDWARE)
    space = {}
    exec(to_fsdp2(plan), space)
    assert callable(space["apply"])
    config = to_deepspeed(plan)
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"
    total = sum(p.numel() for p in model.parameters())
    assert 0 < config["zero_optimization"]["stage3_max_live_parameters"] <= total
