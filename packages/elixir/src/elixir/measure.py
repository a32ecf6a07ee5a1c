"""Measurements that the command line, the demo and the benchmarks share."""

from __future__ import annotations

import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from elixir._native_loader import available, cuda, native
from elixir.api import initialize, plan
from elixir.memory.mover import HostMover
from elixir.optim.kernels import adamw8_, adamw_
from elixir.planner.result import ChunkPlan, Plan
from elixir.profile.hardware import Hardware
from elixir.testing.sim import why_not
from elixir.testing.strict_device import LiveBytes


def cpu_seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Return process CPU seconds of repeated runs, after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return times


def adam_rates(numel: int = 1 << 23, repeats: int = 5) -> tuple[list[dict[str, Any]], float]:
    """Time AdamW passes and the stream limit; return rows and the limit in bytes per second.

    Times are the least CPU seconds of interleaved runs on torch's threads.
    """
    torch.manual_seed(0)
    p, m, v = torch.randn(numel), torch.zeros(numel), torch.zeros(numel)
    g = torch.randn(numel)
    g16, low = g.bfloat16(), torch.zeros(numel, dtype=torch.bfloat16)
    m8, v8 = torch.zeros(numel, dtype=torch.int8), torch.zeros(numel, dtype=torch.uint8)
    scales = (torch.zeros(-(-numel // 2048)), torch.zeros(-(-numel // 2048)))
    count = torch.tensor(1.0)
    options: dict[str, Any] = {"lr": 1e-4, "step": 10}
    module = native()

    def fused() -> None:
        torch._fused_adamw_(
            [p],
            [g],
            [m],
            [v],
            [],
            [count],
            lr=1e-4,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.01,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def separate() -> None:
        wide = g16.float()
        torch._fused_adamw_(
            [p],
            [wide],
            [m],
            [v],
            [],
            [count],
            lr=1e-4,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.01,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        low.copy_(p)

    def stream() -> None:
        if module is None:
            p.add_(g)
            m.add_(g)
            v.add_(g)
        else:
            module.stream(p.data_ptr(), m.data_ptr(), v.data_ptr(), g.data_ptr(), numel, 1)

    runs: dict[str, tuple[Callable[[], None], int]] = {
        "stream limit": (stream, 28),
        "elixir fp32": (lambda: adamw_(p, m, v, g, **options), 28),
        "torch fused fp32": (fused, 28),
        "elixir bf16 in, bf16 out": (lambda: adamw_(p, m, v, g16, low, **options), 28),
        "torch cast, fused, cast": (separate, 28),
        "elixir 8-bit moments": (lambda: adamw8_(p, m8, v8, scales, g, **options), 16),
    }
    best = {name: float("inf") for name in runs}
    for _ in range(repeats):
        for name, (run, _size) in runs.items():
            v.abs_()
            best[name] = min(best[name], min(cpu_seconds(run, 2)))
    limit = 28 * numel / best["stream limit"]
    rows = [
        {"name": name, "seconds": best[name], "bytes_per_second": size * numel / best[name]}
        for name, (_, size) in runs.items()
        if name != "stream limit"
    ]
    return rows, limit


class Chain(nn.Module):
    """Equal layers, one chunk each."""

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean square of the last layer."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean()


def traffic_rows(layers: int = 12, dim: int = 32) -> list[dict[str, Any]]:
    """Count loads of a chain in training for every cache size, beside the law 2n - k.

    The input requires a gradient, so every layer's weight is read in the backward pass too.
    """
    rows = []
    size = dim * dim * 4
    x = torch.randn(4, dim, requires_grad=True)
    for blocks in range(1, layers + 1):
        model: nn.Module = Chain(layers, dim)
        made = plan(
            model, x, device_budget="64MiB", hardware=Hardware(), recompute="none", prefetch=0
        )
        chunks = tuple(
            ChunkPlan((f"layers.{i}.weight",), (0,), size, dim * dim, gradients=(1,))
            for i in range(layers)
        )
        steps = tuple((i,) for i in [*range(layers), *reversed(range(layers))])
        made = replace(
            made,
            chunks=chunks,
            steps=steps,
            forward_steps=layers,
            cache_bytes=blocks * size,
            resident_bytes=0,
        )
        model, optimizer = initialize(model, plan=made)
        model(x).backward()
        loads = model._elixir_engine.cache.loads  # type: ignore[union-attr]
        optimizer.close()
        rows.append({"blocks": blocks, "loads": loads, "law": 2 * layers - blocks})
    return rows


def train_steps(
    model: nn.Module, optimizer: Any, batches: Sequence[Any]
) -> tuple[list[float], list[float]]:
    """Train on batches; return losses and seconds per step."""
    losses, seconds = [], []
    for batch in batches:
        start = time.perf_counter()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    return losses, seconds


def calibrated(made: Plan, seconds: float, adam_host: float | None = None) -> Plan:
    """Return a plan simulated again with compute times that sum to a measured time.

    Parameters
    ----------
    seconds
        Measured forward and backward pass.
    adam_host
        Measured rate of the update, elements per second; by default the plan's.
    """
    from elixir.planner.simulate import simulate_plan

    if adam_host is not None:
        rates = {"adam_host": adam_host}
        if made.device == "cpu":  # the emulated device is updated where the host is
            rates["adam_device"] = adam_host
        made = replace(made, hardware=made.hardware | rates)
    factor = seconds / max(sum(made.step_seconds), 1e-12)
    per_step = tuple(s * factor for s in made.step_seconds)
    line = simulate_plan(replace(made, step_seconds=per_step), keep_events=False)
    predicted = {k: float(getattr(line, k)) for k in made.predicted}
    return replace(made, step_seconds=per_step, predicted=predicted)


def budget_rows(
    make: Callable[[], nn.Module],
    batches: Sequence[Any],
    budgets: Sequence[int],
    rate: float,
    hardware: Hardware,
    repeats: int = 9,
) -> list[dict[str, float]]:
    """Measure and predict the step time for several budgets with copies throttled to ``rate``.

    Steps of the model with everything resident and without the throttle alternate with those of
    every budget and give the seconds of compute and update (a machine's speed drifts); where
    chunks travel, compute includes the saved-tensor hooks. The rest of a prediction follows from
    the plan and from the hardware profile.
    """
    throttled = hardware.emulating(h2d=rate)
    options: dict[str, Any] = {"hardware": throttled, "recompute": "none"}
    model = make()
    made = plan(model, batches[0], device_budget="1TiB", **options).override("*", tier="device")
    elements = sum(c.trainable for c in made.chunks)
    resident, update = initialize(model, plan=made, lr=1e-3)
    pair = resident._elixir_engine.saved.hooks()  # type: ignore[union-attr, operator]
    rows = []
    for budget in budgets:
        model = make()
        made = plan(model, batches[0], device_budget=budget, **options)
        mover = HostMover(rate, rate, throttled.latency)
        model, optimizer = initialize(model, plan=made, mover=mover, lr=1e-3)
        still = not any(c.tier == "host" for c in made.chunks)
        passes, updates, seconds = [], [], []
        for batch in batches[: repeats + 1]:
            hooks: AbstractContextManager[Any] = nullcontext()
            if not still:
                hooks = torch.autograd.graph.saved_tensors_hooks(*pair)
            start = time.perf_counter()
            with hooks:
                loss = resident(*batch)
            loss.backward()
            middle = time.perf_counter()
            update.step()
            update.zero_grad()
            passes.append(middle - start)
            updates.append(time.perf_counter() - middle)
            seconds += train_steps(model, optimizer, [batch])[1]
        optimizer.close()
        compute = statistics.median(passes[1:])
        made = calibrated(made, compute, elements / statistics.median(updates[1:]))
        rows.append(
            {
                "budget": float(budget),
                "predicted": made.predicted["seconds"],
                "measured": statistics.median(seconds[1:]),
                "compute": compute,
                "loaded": made.predicted["loaded_bytes"],
            }
        )
    update.close()
    return rows


def memory_samples(model: nn.Module, batch: Any, made: Plan) -> dict[str, list[float]]:
    """Record device bytes by class at every operator of one step."""
    engine: Any = model._elixir_engine

    class Sampler(LiveBytes):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[float, float, float]] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = super().__torch_dispatch__(func, types, args, kwargs)
            held = sum(engine.chunks[c].plan.bytes for c in engine.cache.offset)
            self.rows.append((made.resident_bytes, held, self.live))
            return out

    sampler = Sampler()
    with sampler:
        for t in batch:
            sampler.track(t)
        model(*batch).backward()
    resident, cache, live = (list(column) for column in zip(*sampler.rows, strict=True))
    return {"resident": resident, "cache": cache, "activations": live}


def doctor() -> list[tuple[str, str, str]]:
    """Return (part, state, advice) for what this machine and this build offer."""
    module = native()
    rows = [
        ("python", platform.python_version(), ""),
        ("torch", torch.__version__, ""),
        (
            "compiled kernels",
            ", ".join(available()),
            "" if module else "install a C++17 compiler and CMake, then reinstall",
        ),
        ("CUDA device", torch.cuda.get_device_name() if torch.cuda.is_available() else "none", ""),
        (
            "CUDA kernels",
            "built" if cuda() else "absent",
            "" if cuda() else "ELIXIR_CUDA=1 pip install ./packages/elixir",
        ),
        ("compiler", shutil.which("g++") or "none", ""),
        ("nvcc", shutil.which("nvcc") or "none", ""),
        ("strict device", "can be built" if (why := why_not()) is None else "absent", why or ""),
    ]
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        rows.append(("lockable memory", "unlimited" if soft < 0 else f"{soft} bytes", ""))
    except ImportError:
        rows.append(("lockable memory", "unknown", ""))
    import importlib.util

    for peer in ("deepspeed", "transformers", "timm"):
        state = "installed" if importlib.util.find_spec(peer) else "absent"
        rows.append((peer, state, "" if state == "installed" else "only for benchmarks"))
    return rows
