"""Elixir beside DeepSpeed and FSDP2 under a memory cap of one GPU, and two ranks on one GPU.

The peers run each in a process of its own (`--peer` is how it is called), under the same cap.
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback

import bench_gpu
import bootstrap
import elixir
import elixir.units
import torch
from bench_gpu import GIB, batch, cap, clean, gpt, timed, with_elixir
from common import arguments, goal, write
from elixir._native_loader import available, cuda
from elixir.models import GPT


def checkpointed(model, reentrant):
    """Recompute every block in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for block in model.blocks:
        forward = block.forward
        block.forward = lambda x, f=forward: checkpoint(f, x, use_reentrant=reentrant)


def alone(backend):
    """Make a process group of one rank."""
    import torch.distributed as dist

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= one | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group(backend, rank=0, world_size=1)


def with_fsdp2(shape, size, steps):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    alone("cpu:gloo,cuda:nccl")
    model = gpt(shape).cpu().float()
    clean()
    checkpointed(model, reentrant=False)
    kw = {
        "mesh": init_device_mesh("cuda", (1,)),
        "offload_policy": CPUOffloadPolicy(pin_memory=True),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16),
    }
    for block in model.blocks:
        fully_shard(block, **kw)
    fully_shard(model, **kw)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return timed(model, optimizer, size, steps)


class _Engine:
    """DeepSpeed's engine as model and optimizer of :func:`timed`."""

    def __init__(self, engine):
        self.engine = engine

    def __call__(self, *tokens):
        self.loss = self.engine(*tokens)
        return self

    def backward(self):
        self.engine.backward(self.loss)

    def item(self):
        return self.loss.item()

    def step(self):
        self.engine.step()

    def zero_grad(self):
        pass


def with_deepspeed(shape, size, steps):
    import deepspeed

    on_gpu = bench_gpu.DEVICE.type == "cuda"
    alone("nccl" if on_gpu else "gloo")
    model = gpt(shape).cpu()
    clean()
    checkpointed(model, reentrant=True)
    where = {"device": "cpu", "pin_memory": on_gpu}
    config = {
        "train_micro_batch_size_per_gpu": size,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "offload_param": where,
            "offload_optimizer": where,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    both = _Engine(engine)
    return timed(both, both, size, steps)


PEERS = {"FSDP2 CPUOffloadPolicy": with_fsdp2, "DeepSpeed ZeRO-3 offload": with_deepspeed}


def peer(name, options, seconds):
    """Run a peer in its own process; return losses, seconds and GiB, or None and say why."""
    words = ["--out", str(options.out), "--peer", name, "--budget", options.budget]
    words += ["--shape", options.shape]
    try:
        done = subprocess.run(
            [sys.executable, __file__, *words], capture_output=True, text=True, check=False,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        print(f"{name}: not done in {seconds:.0f} s; {(error.stdout or b'')[-1500:]!r}")
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"peer"')]
    if done.returncode or not lines:
        print(f"{name}: {done.stdout[-1500:]}{done.stderr[-3000:]}")
        return None
    found = json.loads(lines[-1])
    return found["losses"], found["seconds"], found["gib"]


def rank_of_two(rank, port, queue, device):
    """Train on one of two ranks that share this GPU and their parameters in the host's memory."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("cpu:gloo,cuda:gloo", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model = GPT(vocab=512, context=128, dim=256, layers=6, heads=4)
        whole = [t % 512 for t in batch(4, 0, 128)]
        own = [t[2 * rank : 2 * rank + 2] for t in whole]
        plan = elixir.plan(
            model, own, device_budget="4GiB", device=device, hardware=elixir.Hardware(),
            recompute="none", world=2,
        )  # fmt: skip
        plan = plan.override("*", tier="host")
        plan = plan._replan(device_budget=int(plan.least_budget * 1.5))
        model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3)
        shared = model._elixir_engine.shared
        losses = []
        for _ in range(4):
            loss = model(*[t.to(device) for t in own])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        pinned = bool(shared is not None and shared.data.is_pinned())
        queue.put((rank, losses, pinned))
        torch.distributed.barrier()
        optimizer.close()
    except BaseException:
        queue.put((rank, traceback.format_exc(), False))


def two_ranks():
    """Compare two ranks on one GPU with one process on the whole batch; return error and pin."""
    torch.manual_seed(0)
    model = GPT(vocab=512, context=128, dim=256, layers=6, heads=4).to(bench_gpu.DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = [(t % 512).to(bench_gpu.DEVICE) for t in batch(4, 0, 128)]
    plain = []
    for _ in range(4):
        loss = model(*tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        plain.append(loss.item())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [
        context.Process(target=rank_of_two, args=(r, port, queue, bench_gpu.DEVICE.type))
        for r in range(2)
    ]
    for child in children:
        child.start()
    found = {}
    try:
        for _ in children:
            rank, losses, pinned = queue.get(timeout=60)
            if isinstance(losses, str):
                print(losses)
                return None
            found[rank] = (losses, pinned)
    finally:
        for child in children:
            child.join(10)
            child.kill()
    mean = [(a + b) / 2 for a, b in zip(found[0][0], found[1][0])]
    return max(abs(a - b) / b for a, b in zip(mean, plain)), all(f[1] for f in found.values())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--budget", default="24GiB")
    parser.add_argument("--seconds", type=float, default=400.0, help="no peer runs after this")
    parser.add_argument("--shape", default="4B", help="of GPT-2, as in elixir.models.GPT2_SHAPES")
    parser.add_argument("--peers", default="deepspeed,fsdp2", help="in this order")
    parser.add_argument("--peer", choices=PEERS, help="run this peer alone and print its result")
    parser.add_argument("--device", default="cuda", help="of --peer alone")
    options = parser.parse_args()
    if options.peer:
        bench_gpu.DEVICE = torch.device(options.device)
        if options.device == "cuda":
            cap(elixir.units.parse_bytes(options.budget) / GIB)
        losses, seconds, gib = PEERS[options.peer](options.shape, 4, 4)
        print(json.dumps({"peer": options.peer, "losses": losses, "seconds": seconds, "gib": gib}))
        return
    if not torch.cuda.is_available():
        print("bench_gpu_peers: left out, there is no CUDA device")
        return
    begin = time.perf_counter()
    goals, rows = [], []
    print(f"elixir from {bootstrap.ROOT}, kernels {available()}, CUDA {cuda() is not None}")

    def left():
        return options.seconds - (time.perf_counter() - begin)

    def say(text):
        print(f"[{time.perf_counter() - begin:.0f} s] {text}", flush=True)

    def save():
        table = {
            "title": "Seconds per step, batch 4 of 1024 tokens, bfloat16",
            "columns": ["model", "how", "median seconds", "peak GiB", "last loss"],
            "rows": rows,
        }
        write(
            options.out, __file__, "Peers on one GPU with a memory cap", goals, [table],
            torch.cuda.get_device_name(),
        )  # fmt: skip

    budget = elixir.units.parse_bytes(options.budget)
    cap(budget / GIB)
    hardware = elixir.Hardware.measure("cuda")
    say(f"h2d {hardware.h2d / 1e9:.1f} GB/s, AdamW {hardware.adam_host / 1e9:.2f} G/s on the host")
    shape = options.shape
    losses, ours, peak, plan = with_elixir(shape, 4, 4, budget, hardware, "all")
    say(f"{shape} elixir: {ours:.3f} s, {peak:.1f} GiB")
    rows.append([shape, f"elixir {options.budget}", ours, peak, losses[-1]])
    goals.append(
        goal(
            f"{shape} beside peers: peak device memory over the budget",
            "<= 1",
            f"{peak * GIB / budget:.2f}",
            peak * GIB <= budget,
            f"predicted {plan.predicted['seconds']:.3f} s a step, measured {ours:.3f} s",
        )
    )
    for name in options.peers.split(","):
        label = next(p for p in PEERS if p.lower().startswith(name))
        found = peer(label, options, left() - 25) if left() > 60 else None
        if found is None:
            continue
        theirs_loss, theirs, theirs_peak = found
        say(f"{shape} {label}: {theirs:.3f} s, {theirs_peak:.1f} GiB, losses {theirs_loss}")
        rows.append([shape, label, theirs, theirs_peak, theirs_loss[-1]])
        off = max(abs(a - b) / abs(b) for a, b in zip(losses, theirs_loss))
        goals.append(
            goal(
                f"{shape} under {options.budget}: {label} / elixir, time per step",
                ">= 2",
                f"{theirs / ours:.2f}",
                theirs / ours >= 2,
                f"losses of four steps within {off:.1e} relative; its peak {theirs_peak:.1f} GiB",
            )
        )
        save()
    both = two_ranks() if left() > 20 else None
    say(f"two ranks: {both}")
    if both is not None:
        goals.append(
            goal(
                "CUDA: two ranks on one GPU, losses against one process on the whole batch",
                "within 1e-4 relative",
                f"{both[0]:.1e}",
                both[0] <= 1e-4,
                "gloo; parameters once in host memory, "
                + ("page-locked" if both[1] else "not page-locked"),
            )
        )
    save()


if __name__ == "__main__":
    main()
