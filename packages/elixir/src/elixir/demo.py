"""The demo: a GPT on real text whose training state is ten times the device budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from elixir import figures
from elixir._files import write_text
from elixir.api import initialize, plan
from elixir.data import batches, corpus
from elixir.measure import adam_rates, budget_rows, memory_samples, traffic_rows, train_steps
from elixir.models import GPT
from elixir.optim import AdamW
from elixir.profile.hardware import Hardware
from elixir.report import Section, environment, write_report
from elixir.units import format_bytes

STEPS = 60
RATE = 1e9


def _model(seed: int, **sizes: Any) -> GPT:
    torch.manual_seed(seed)
    return GPT(**({"vocab": 256, "context": 32, "dim": 128, "layers": 16, "heads": 4} | sizes))


def run_demo(
    out: Path, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run the demo; write ``result.json``, ``report.html`` and the figures into ``out``."""
    begin = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = _run(out, seed, say)
    finally:
        torch.set_num_threads(threads)
    result["seconds"] = round(time.perf_counter() - begin, 1)
    write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _run(out: Path, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    text = corpus()
    stream: Iterator[Any] = iter(batches(text, 2, 32, seed))
    data = list(islice(stream, STEPS))
    hardware = Hardware.measure()

    say("a GPT, all in memory")
    plain = _model(seed)
    state = 16 * sum(p.numel() for p in plain.parameters())
    unlimited, _ = train_steps(plain, AdamW(plain.parameters(), lr=1e-3), data)

    budget = state // 10
    say(f"the same in {format_bytes(budget)} of device memory")
    model: torch.nn.Module = _model(seed)
    made = plan(model, data[0], device_budget=budget, hardware=hardware, step_in_backward=True)
    model, optimizer = initialize(model, torch.optim.AdamW, plan=made, lr=1e-3, poison=True)
    limited, _ = train_steps(model, optimizer, data)
    equal = all(torch.equal(v, model.state_dict()[k]) for k, v in plain.state_dict().items())
    samples = memory_samples(model, data[0], made)
    totals = [sum(row) for row in zip(*samples.values(), strict=True)]
    optimizer.close()

    say("traffic against the law")
    law = traffic_rows()
    say("throughput against budget")
    sizes = {"dim": 256, "layers": 6}
    small = _model(seed, **sizes)
    top = plan(small, data[0], device_budget="4GiB", hardware=hardware, recompute="none")
    least, most = top.least_budget, top.device_bytes
    budgets = [int(least + (most * 1.02 - least) * f) for f in (0.0, 0.25, 0.5, 0.75, 1.0)]
    speeds = budget_rows(lambda: _model(seed, **sizes), data, budgets, RATE, hardware)
    errors = sorted(abs(r["predicted"] / r["measured"] - 1) for r in speeds)
    say("AdamW")
    adam, limit = adam_rates(1 << 22, 3)
    rate = {r["name"]: r["seconds"] for r in adam}
    fp32_share = next(r for r in adam if r["name"] == "elixir fp32")["bytes_per_second"] / limit

    drawn = {
        "loss.png": (
            figures.loss_curves(unlimited, limited, state / budget),
            "Loss on real text: a tenth of the state on the device, the same curve",
        ),
        "memory.png": (
            figures.memory_timeline(samples, budget),
            "Device memory of one step, by class",
        ),
        "traffic.png": (figures.traffic_law(law, 12), "Chunk loads per step against 2n - k"),
        "throughput.png": (
            figures.throughput(speeds),
            "Steps per second against the device budget",
        ),
        "adam.png": (figures.roofline(adam, limit), "AdamW against the memory stream"),
    }
    for name, (figure, _) in drawn.items():
        figures.save(figure, out / name)
    claims = [
        _claim(
            "Training state over device budget",
            None,
            round(state / budget, 1),
            "x",
            state >= 10 * budget,
            f"GPT of {state // 16} parameters on the Python language reference; 16 bytes of "
            f"state each",
        ),
        _claim(
            "Largest difference of the loss to training in memory",
            None,
            max(abs(a - b) for a, b in zip(unlimited, limited, strict=True)),
            "nats",
            unlimited == limited,
            f"{STEPS} steps, same seed, same AdamW kernel; plain PyTorch is the reference",
        ),
        _claim(
            "Weights bit-equal to training in memory",
            None,
            "yes" if equal else "no",
            "",
            equal,
            "state_dict of both after the last step",
        ),
        _claim(
            "Peak device bytes over the budget",
            None,
            round(max(totals) / budget, 4),
            "x",
            max(totals) <= budget,
            "cache, resident chunks and every live storage, at every operator",
        ),
        _claim(
            "Loads per step over the law 2n - k, worst cache size",
            1.0,
            max(r["loads"] / r["law"] for r in law),
            "x",
            all(r["loads"] == r["law"] for r in law),
            "chain of 12 layers, caches of 1 to 12 blocks, counted in training",
        ),
        _claim(
            "Error of the predicted step time, median over budgets",
            None,
            round(100 * errors[len(errors) // 2], 1),
            "%",
            errors[len(errors) // 2] <= 0.10,
            "copies throttled to 1 GB/s; compute and update measured in turns with each budget, "
            "with everything resident and no throttle",
        ),
        _claim(
            "fp32 AdamW share of the stream limit",
            None,
            round(100 * fp32_share, 1),
            "%",
            fp32_share >= 0.98,
            "least CPU time of interleaved runs, one thread",
        ),
        _claim(
            "torch's cast, fused step, cast over one fused pass",
            None,
            round(rate["torch cast, fused, cast"] / rate["elixir bf16 in, bf16 out"], 2),
            "x",
            None,
            "bfloat16 gradient and parameter, fp32 master and moments",
        ),
        _claim(
            "Efficiency against training in memory on a GPU",
            "84 % (OPT-30B, one A100-40GB)",
            "not run here",
            "",
            None,
            "needs a GPU: benchmarks/bench_gpu.py",
        ),
    ]
    sections = [
        Section(
            "Claims",
            columns=["claim", "paper", "measured", "met", "how"],
            rows=[
                [
                    c["name"],
                    c["paper"] if c["paper"] is not None else "not stated",
                    f"{c['measured']} {c['unit']}",
                    {True: "yes", False: "no", None: "shown"}[c["met"]],
                    c["how"],
                ]
                for c in claims
            ],
        ),
        Section("The plan", "\n".join(made.explain().splitlines())),
        *[Section(title, figures=[name]) for name, (_, title) in drawn.items()],
        Section(
            "Throughput against budget",
            columns=["budget", "predicted", "measured"],
            rows=[
                [
                    format_bytes(r["budget"]),
                    f"{r['predicted'] * 1e3:.1f} ms",
                    f"{r['measured'] * 1e3:.1f} ms",
                ]
                for r in speeds
            ],
        ),
    ]
    write_report(
        out / "report.html",
        "elixir: training beyond device memory",
        f"A GPT whose training state ({format_bytes(state)}) is ten times the device's memory "
        f"({format_bytes(budget)}), trained with a plan made before the first step.",
        sections,
    )
    return {
        "schema_version": 1,
        "package": "elixir",
        "version": environment()["versions"]["elixir"],
        "seed": seed,
        "claims": claims,
        "figures": [{"path": name, "title": title} for name, (_, title) in drawn.items()],
        "seconds": 0.0,
        "environment": environment(),
    }


def _claim(
    name: str, paper: Any, measured: Any, unit: str, met: bool | None, how: str
) -> dict[str, Any]:
    return {
        "name": name,
        "paper": paper,
        "measured": measured,
        "unit": unit,
        "met": met,
        "how": how,
    }
