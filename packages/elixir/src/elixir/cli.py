"""The command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

import elixir
from elixir.errors import BudgetExceededError, CorruptCheckpointError, InfeasiblePlanError

HELP = "Train models larger than device memory, with a plan made before the first step."
EXAMPLES = """Examples:

    elixir doctor                                     what works on this machine
    elixir hw --out hw.json                           measure copies, AdamW, disk
    elixir plan gpt2:4B --batch 4 --seq 1024 --device-budget 24GiB --dtype bfloat16 --out plan.json
    elixir plan train.py --device-budget 2GiB --out plan.json
    elixir explain plan.json
    elixir train train.py --plan plan.json --steps 100 --save run
    elixir trace plan.json --out trace.json           a predicted step, for ui.perfetto.dev
    elixir bench adam
    elixir ckpt inspect run
    elixir demo --out out

A training script defines make_model() and batches() (an iterable of inputs), and may define
optimizer (keywords) and loss_fn(output, batch).
"""

app = App(
    name="elixir",
    help=HELP,
    help_epilogue=EXAMPLES,
    version=elixir.__version__,
    help_format="plaintext",
)
ckpt = App(name="ckpt", help="Inspect, divide and export checkpoints.")
app.command(ckpt)
console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")]


def _table(columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    console.print(table)


def _script(path: Path) -> Any:
    """Import a training script."""
    if not path.is_file():
        raise ValueError(f"script={str(path)!r}: no such file")
    spec = importlib.util.spec_from_file_location("elixir_script", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"script={str(path)!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"script={str(path)!r}: {type(error).__name__}: {error}") from error
    for name in ("make_model", "batches"):
        if not callable(getattr(module, name, None)):
            raise ValueError(f"script={str(path)!r}: must define {name}()")
    return module


def _model(what: str, batch: int, seq: int) -> tuple[Any, Any, Any]:
    """Return a model, a batch and a loss for ``gpt2:SHAPE``, ``hf:NAME`` or a script."""
    import torch

    if what.startswith("gpt2:"):
        from elixir.models import GPT, GPT2_SHAPES

        shape = what.removeprefix("gpt2:")
        if shape not in GPT2_SHAPES:
            raise ValueError(f"model={what!r}: shapes are {', '.join(GPT2_SHAPES)}")
        dim, layers, heads = GPT2_SHAPES[shape]
        with torch.device("meta"):
            model = GPT(vocab=50257, context=seq, dim=dim, layers=layers, heads=heads)
        tokens = torch.zeros(batch, seq, dtype=torch.long)
        return model, [tokens, tokens], None
    if what.startswith("hf:"):
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError:
            raise ValueError(
                f"model={what!r}: needs transformers (pip install transformers)"
            ) from None
        try:
            config = AutoConfig.from_pretrained(what.removeprefix("hf:"))
        except (OSError, ValueError) as error:
            line = " ".join(str(error).split())[:160]
            raise ValueError(f"model={what!r}: its configuration was not found ({line})") from None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        tokens = torch.zeros(batch, seq, dtype=torch.long)
        return model, {"input_ids": tokens, "labels": tokens}, None
    module = _script(Path(what))
    return module.make_model(), next(iter(module.batches())), getattr(module, "loss_fn", None)


@app.command
def hw(
    *, out: Path | None = None, device: str = "cpu", disk: Path | None = None, as_json: Json = False
) -> int:
    """Measure this machine: copies, memory stream, AdamW, matrix products, disk.

    Parameters
    ----------
    out
        Where to save the profile.
    device
        ``cpu`` (the emulated device) or ``cuda``.
    disk
        A folder whose disk is measured.
    """
    found = elixir.Hardware.measure(device, disk=str(disk) if disk else None)
    if out is not None:
        found.save(out)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        _table(["rate", "value"], [[k, v] for k, v in asdict(found).items()])
    return 0


@app.command
def plan(
    model: str,
    *,
    device_budget: str,
    host_budget: str | None = None,
    batch: int = 4,
    seq: int = 1024,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    recompute: Literal["auto", "none", "all"] = "auto",
    offload: Literal["auto", "none", "all"] = "auto",
    policy: Literal["elixir", "paper"] = "elixir",
    moments: Literal["fp32", "8bit"] = "fp32",
    hw: Path | None = None,
    device: str = "cpu",
    disk: bool = False,
    world: int = 1,
    split: str | None = None,
    step_in_backward: bool = False,
    out: Path | None = None,
    as_json: Json = False,
) -> int:
    """Plan a training step; exit code 3 names the least budget if nothing fits.

    Parameters
    ----------
    model
        ``gpt2:4B`` (the paper's shapes), ``hf:gpt2-xl``, or a training script.
    device_budget, host_budget
        Bytes, or text such as 24GiB.
    batch, seq
        Sizes of the batch, unless a script gives it.
    recompute, offload
        Repeated blocks whose activations are recomputed, or visit the host.
    hw
        A profile from ``elixir hw``; typical rates are assumed without it.
    split
        Cut weights that take more than this, such as 64MiB, into tiles; ``auto``: a quarter of the
        budget.
    out
        Where to save the plan.
    """
    import torch

    network, inputs, loss_fn = _model(model, batch, seq)
    hardware = elixir.Hardware.load(hw) if hw else elixir.Hardware()
    made = elixir.plan(
        network,
        inputs,
        device_budget=device_budget,
        host_budget=host_budget,
        recompute=recompute,
        offload=offload,
        dtype=getattr(torch, dtype) if dtype else None,
        policy=policy,
        moments=moments,
        hardware=hardware,
        device=device,
        disk=disk,
        world=world,
        split=split,
        step_in_backward=step_in_backward,
        loss_fn=loss_fn,
    )
    if out is not None:
        made.save(out)
    if as_json:
        print(
            json.dumps(
                made.predicted
                | {"device_bytes": made.device_bytes, "least_budget": made.least_budget}
            )
        )
    else:
        console.print(made.explain(), highlight=False)
    return 0


@app.command
def explain(
    plan: Path,
    *,
    model: str | None = None,
    what_if: str | None = None,
    batch: int = 4,
    seq: int = 1024,
    to: Literal["text", "deepspeed", "fsdp2"] = "text",
) -> int:
    """Say what a plan does, what it would cost under other budgets, or write it for another engine.

    Parameters
    ----------
    plan
        A file from ``elixir plan``.
    model
        The planned model again, needed for ``--what-if``.
    what_if
        Device budgets, such as ``8GiB,12GiB,16GiB``.
    to
        ``deepspeed``: a JSON configuration; ``fsdp2``: Python with ``fully_shard`` calls.
    """
    from elixir.export import to_deepspeed, to_fsdp2

    made = elixir.Plan.load(plan)
    if to == "deepspeed":
        print(json.dumps(to_deepspeed(made), indent=1))
        return 0
    if to == "fsdp2":
        print(to_fsdp2(made), end="")
        return 0
    console.print(made.explain(), highlight=False)
    if what_if is None:
        return 0
    if model is None:
        raise ValueError("what_if: needs --model to plan again")
    import torch

    network, inputs, loss_fn = _model(model, batch, seq)
    again = elixir.plan(
        network,
        inputs,
        made.optimizer,
        device_budget=made.device_budget,
        loss_fn=loss_fn,
        dtype=getattr(torch, made.dtype),
        hardware=elixir.Hardware(**made.hardware),
        device=made.device,
    )
    rows = again.what_if([part.strip() for part in what_if.split(",")])
    _table(
        ["device budget", "seconds", "bytes in", "resident bytes", "recomputed", "offloaded"],
        [
            [
                r["device_budget"],
                *(
                    r.get(k, "infeasible")
                    for k in (
                        "seconds",
                        "loaded_bytes",
                        "resident_bytes",
                        "recomputed",
                        "offloaded",
                    )
                ),
            ]
            for r in rows
        ],
    )
    return 0


@app.command
def train(
    script: Path,
    *,
    plan: Path | None = None,
    device_budget: str | None = None,
    steps: int = 100,
    seed: int = 0,
    save: Path | None = None,
    every: int = 100,
    device: str = "cpu",
    as_json: Json = False,
) -> int:
    """Train a script's model under a plan; a checkpoint in ``--save`` is continued.

    Parameters
    ----------
    script
        Defines make_model() and batches().
    plan
        A saved plan; or give ``--device-budget`` to plan now.
    steps
        Steps in all, those of a continued run included.
    save
        Folder of the checkpoint.
    every
        Steps between checkpoints.
    """
    import torch

    from elixir import checkpoint
    from elixir.api import Plan
    from elixir.api import plan as make_plan
    from elixir.profile.trace import call, default_loss

    if steps < 1 or every < 1:
        raise ValueError(f"steps={steps}, every={every}: must be at least 1")
    if (plan is None) == (device_budget is None):
        raise ValueError("plan: give either --plan or --device-budget")
    module = _script(script)
    torch.manual_seed(seed)
    model = module.make_model()
    loss_fn = getattr(module, "loss_fn", None)
    if plan is not None:
        made = Plan.load(plan)
    else:
        first = next(iter(module.batches()))
        made = make_plan(
            model, first, device_budget=device_budget or "", loss_fn=loss_fn, device=device
        )
    model, optimizer = elixir.initialize(
        model, torch.optim.AdamW, plan=made, **getattr(module, "optimizer", {})
    )
    done, rows = 0, []
    if save is not None and (save / "manifest.json").exists():
        done = int(checkpoint.load(save, optimizer)["step"])
    try:
        for number, inputs in enumerate(module.batches(), start=1):
            if number <= done:
                continue
            if number > steps:
                break
            torch.manual_seed(seed + number)
            output = call(model, inputs)
            loss = loss_fn(output, inputs) if loss_fn else default_loss(output)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append({"step": number, "loss": loss.item()})
            if console.is_terminal and not as_json:
                console.print(f"[dim]step {number}: loss {loss.item():.4f}[/dim]")
            if save is not None and (number % every == 0 or number == steps):
                checkpoint.save(save, optimizer, {"step": number})
    finally:
        optimizer.close()
    if as_json:
        print(json.dumps(rows))
    elif rows:
        console.print(
            f"steps {rows[0]['step']} to {rows[-1]['step']}: loss {rows[0]['loss']:.4f} -> "
            f"{rows[-1]['loss']:.4f}"
        )
    else:
        console.print(f"nothing to do: the checkpoint has {done} steps")
    return 0


@app.command
def trace(plan: Path, *, out: Path) -> int:
    """Write a plan's predicted step as a trace for ui.perfetto.dev, and an HTML page beside it.

    Parameters
    ----------
    plan
        A file from ``elixir plan``.
    out
        The trace (JSON).
    """
    from elixir.timeline import write_trace

    page = write_trace(elixir.Plan.load(plan), out)
    console.print(f"{out}\n{page}", highlight=False)
    return 0


@app.command
def bench(
    what: Literal["adam", "mover"] = "adam", *, repeats: int = 5, as_json: Json = False
) -> int:
    """Time AdamW passes against torch and the stream limit, or copies.

    Parameters
    ----------
    what
        ``adam`` or ``mover``.
    """
    from elixir.measure import adam_rates

    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    if what == "mover":
        found = elixir.Hardware.measure()
        rows = [{"name": k, "value": getattr(found, k)} for k in ("h2d", "d2h", "host_stream")]
        limit = found.host_stream
    else:
        rows, limit = adam_rates(repeats=repeats)
    if as_json:
        print(json.dumps({"rows": rows, "stream": limit}))
    else:
        _table(list(rows[0]), [list(r.values()) for r in rows])
        console.print(f"stream limit {limit / 1e9:.4g} GB/s", highlight=False)
    return 0


@ckpt.command
def inspect(folder: Path, *, as_json: Json = False) -> int:
    """Check a checkpoint's files and list its parameters."""
    from elixir import checkpoint

    found = checkpoint.inspect(folder)
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    _table(
        ["parameter", "shape", "step"],
        [[k, "x".join(map(str, v["shape"])), v["step"]] for k, v in found["parameters"].items()],
    )
    console.print(
        f"{len(found['files'])} files, written by {found['world']} ranks; hashes agree",
        highlight=False,
    )
    return 0


@ckpt.command
def reshard(folder: Path, *, out: Path, world: int) -> int:
    """Divide a checkpoint's pieces for another number of ranks."""
    from elixir import checkpoint

    checkpoint.reshard(folder, out, world)
    console.print(str(out), highlight=False)
    return 0


@ckpt.command
def export(
    folder: Path,
    *,
    out: Path,
    to: Literal["safetensors", "dcp"] = "safetensors",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> int:
    """Write a checkpoint's parameters for other tools."""
    import torch

    from elixir import checkpoint

    if to == "dcp":
        checkpoint.export_dcp(folder, out)
    else:
        checkpoint.export_safetensors(folder, out, getattr(torch, dtype))
    console.print(str(out), highlight=False)
    return 0


@app.command
def doctor(*, as_json: Json = False) -> int:
    """Say what works on this machine, and what to install for the rest."""
    from elixir.measure import doctor as examine

    rows = examine()
    if as_json:
        print(json.dumps([dict(zip(("part", "state", "advice"), r, strict=True)) for r in rows]))
    else:
        _table(["part", "state", "advice"], [list(r) for r in rows])
    return 0


@app.command
def demo(*, out: Path, seed: int = 0) -> int:
    """Train a GPT with ten times the device's memory of state; write a report and figures.

    Parameters
    ----------
    seed
        Everything random derives from it.
    """
    from elixir.demo import run_demo

    result = run_demo(out, seed, lambda text: console.print(f"[dim]{text}[/dim]"))
    for claim in result["claims"]:
        met = {True: "yes", False: "no", None: "shown"}[claim["met"]]
        console.print(f"  {met:5} {claim['name']}: {claim['measured']} {claim['unit']}")
    console.print(f"{out / 'report.html'} ({result['seconds']} s)")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit codes are 0, 2 (bad input), 3 (the computation says no), 130."""
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        errors.print(f"elixir: {' '.join(str(error).split())}")
        sys.exit(2)
    except (InfeasiblePlanError, BudgetExceededError) as error:
        errors.print(f"elixir: {error}")
        sys.exit(3)
    except (CorruptCheckpointError, ValueError, TypeError, OSError) as error:
        errors.print(f"elixir: {' '.join(str(error).split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("elixir: interrupted; the last checkpoint is kept")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
