"""Elixir under a 24 GiB cap of one GPU: against training in memory."""

import gc
import statistics
import time

import bootstrap
import elixir
import elixir.units
import torch
from common import arguments, goal, write
from elixir._native_loader import available, cuda
from elixir.models import GPT, GPT2_SHAPES

GIB = 1 << 30
DEVICE = torch.device("cuda")


def gpt(shape, dtype=torch.bfloat16, context=1024):
    """Make a model on the GPU (initialising is fast there) and bring it to the host."""
    dim, layers, heads = GPT2_SHAPES[shape]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with DEVICE:
            model = GPT(vocab=50257, context=context, dim=dim, layers=layers, heads=heads)
    finally:
        torch.set_default_dtype(before)
    return model


def batch(size, step, context=1024):
    g = torch.Generator().manual_seed(step)
    return [torch.randint(0, 50257, (size, context), generator=g) for _ in range(2)]


def timed(model, optimizer, size, steps):
    synchronize = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    losses, seconds = [], []
    for step in range(steps):
        tokens = [t.to(DEVICE) for t in batch(size, step)]
        synchronize()
        start = time.perf_counter()
        loss = model(*tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
    return losses, statistics.median(seconds[1:]), peak / GIB


class Mixed(torch.optim.Optimizer):
    """AdamW in memory: bfloat16 parameters, fp32 masters and moments, torch's fused kernel."""

    def __init__(self, params, lr):
        self.low = list(params)
        self.master = [torch.nn.Parameter(p.detach().float()) for p in self.low]
        self.inner = torch.optim.AdamW(self.master, lr=lr, fused=True)

    @torch.no_grad()
    def step(self):  # noqa: D102
        for low, master in zip(self.low, self.master):
            master.grad = low.grad.float()
            low.grad = None
        self.inner.step()
        for low, master in zip(self.low, self.master):
            master.grad = None
            low.copy_(master)

    def zero_grad(self):  # noqa: D102
        for low in self.low:
            low.grad = None


def clean():
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def cap(gib):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(gib * GIB / total, 1.0))


def in_memory(shape, size, steps, recompute):
    model = gpt(shape)
    from elixir.profile.trace import find_blocks
    from elixir.runtime.recompute import recomputed

    with recomputed(model, find_blocks(model) if recompute else []):
        result = timed(model, Mixed(model.parameters(), 1e-4), size, steps)
    del model
    clean()
    return result


def with_elixir(shape, size, steps, budget, hardware, recompute):
    model = gpt(shape).cpu()
    clean()
    plan = elixir.plan(
        model,
        batch(size, 0),
        device_budget=budget,
        device="cuda",
        hardware=hardware,
        recompute=recompute,
        step_in_backward=True,
        keep_gradients=False,
        prefetch=3,
    )
    print(plan.explain(), flush=True)
    model, optimizer = elixir.initialize(model, torch.optim.AdamW, plan=plan, lr=1e-4)
    result = timed(model, optimizer, size, steps)
    optimizer.close()
    del model, optimizer
    clean()
    return (*result, plan)


def equality():
    """Train with every tier on this GPU with deterministic kernels; compare losses and weights."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    outcomes = []
    tokens = [batch(2, i, 128) for i in range(4)]
    tokens = [[t % 512 for t in b] for b in tokens]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for tier, factor in (("pinned", None), ("host", 1.0), ("host", 2.0), ("device", None)):
            torch.manual_seed(0)
            model = GPT(vocab=512, context=128, dim=256, layers=6, heads=4)
            plan = elixir.plan(
                model,
                tokens[0],
                device_budget="4GiB",
                device="cuda",
                hardware=elixir.Hardware(),
                recompute="none",
            )
            plan = plan.override("*", tier=tier)
            if factor:
                plan = plan._replan(device_budget=int(plan.least_budget * factor))
            model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3)
            losses = []
            for b in tokens:
                loss = model(*[t.to(DEVICE) for t in b])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            outcomes.append((losses, model.state_dict()))
            optimizer.close()
    torch.use_deterministic_algorithms(False)
    first = outcomes[0]
    same = [
        o[0] == first[0] and all(torch.equal(v, first[1][k]) for k, v in o[1].items())
        for o in outcomes
    ]
    drift = max(abs(a - b) for o in outcomes for a, b in zip(o[0], first[0]))
    return all(same[:3]), same[3], drift


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--budget", default="24GiB")
    parser.add_argument(
        "--seconds", type=float, default=170.0, help="no new part starts after this"
    )
    parser.add_argument("--small-only", action="store_true", help="equality and the 1B shape")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu: left out, there is no CUDA device")
        return
    begin = time.perf_counter()
    goals, rows = [], []
    print(f"elixir from {bootstrap.ROOT}, kernels {available()}, CUDA {cuda() is not None}")

    def left():
        return options.seconds - (time.perf_counter() - begin)

    def say(text):
        print(f"[{time.perf_counter() - begin:.0f} s] {text}", flush=True)

    budget = elixir.units.parse_bytes(options.budget)
    gib = budget / GIB
    moved, resident, drift = equality()
    say(f"equality: host and pinned tiers {moved}, device tier {resident}, drift {drift:.2e}")
    goals.append(
        goal(
            "CUDA: weights equal for every budget (host-side AdamW)",
            "bit-equal",
            "bit-equal" if moved else f"loss differs by {drift:.1e}",
            moved,
            "math attention, deterministic kernels, 4 steps; states on the device: "
            + ("bit-equal" if resident else f"losses within {drift:.1e}"),
        )
    )
    hardware = elixir.Hardware.measure("cuda")
    say(f"h2d {hardware.h2d / 1e9:.1f} GB/s, AdamW {hardware.adam_host / 1e9:.2f} G/s on the host")

    cap(gib)
    loss0, plain, peak0 = in_memory("1B", 4, 5, False)
    say(f"1B in memory: {plain:.3f} s, {peak0:.1f} GiB")
    loss1, ours, peak1, plan = with_elixir("1B", 4, 5, budget, hardware, "auto")
    say(f"1B elixir: {ours:.3f} s, {peak1:.1f} GiB")
    error = max(abs(a - b) / abs(b) for a, b in zip(loss1, loss0))
    rows += [
        ["1B", "in memory", plain, peak0, loss0[-1]],
        ["1B", f"elixir {options.budget}", ours, peak1, loss1[-1]],
    ]
    goals.append(
        goal(
            f"1B under {options.budget}: speed of training in memory, where it fits",
            ">= 84 %",
            f"{100 * plain / ours:.0f} %",
            plain / ours >= 0.84,
            f"losses within {error:.1e} relative; predicted {plan.predicted['seconds']:.3f} s, "
            f"measured {ours:.3f} s",
        )
    )
    goals.append(
        goal("1B: peak device memory over the budget", "<= 1", f"{peak1 / gib:.2f}", peak1 <= gib)
    )
    half = budget // 3
    loss2, tight, peak2, _ = with_elixir("1B", 4, 4, half, hardware, "auto")
    say(f"1B elixir in a third: {tight:.3f} s, {peak2:.1f} GiB")
    rows.append(["1B", f"elixir {half / GIB:.0f}GiB", tight, peak2, loss2[-1]])
    if not options.small_only and left() > 40:
        loss3, big, peak3, plan = with_elixir("4B", 4, 4, budget, hardware, "all")
        say(f"4B elixir: {big:.3f} s, {peak3:.1f} GiB")
        rows.append(["4B", f"elixir {options.budget}", big, peak3, loss3[-1]])
        goals.append(
            goal(
                "4B: peak device memory over the budget", "<= 1", f"{peak3 / gib:.2f}", peak3 <= gib
            )
        )
        if left() > 20:
            cap(1000)
            loss5, full, peak5 = in_memory("4B", 4, 4, True)
            say(f"4B in memory: {full:.3f} s, {peak5:.1f} GiB")
            rows.append(["4B", "in memory, whole GPU, recomputed", full, peak5, loss5[-1]])
            goals.append(
                goal(
                    f"4B under {options.budget}: speed of training in memory on the whole GPU",
                    "shown",
                    f"{100 * full / big:.0f} %",
                    None,
                    f"in memory takes {peak5:.0f} GiB",
                )
            )
    table = {
        "title": "Seconds per step, batch 4 of 1024 tokens, bfloat16",
        "columns": ["model", "how", "median seconds", "peak GiB", "last loss"],
        "rows": rows,
    }
    write(
        options.out,
        __file__,
        "One GPU with a memory cap",
        goals,
        [table],
        torch.cuda.get_device_name(),
    )


if __name__ == "__main__":
    main()
