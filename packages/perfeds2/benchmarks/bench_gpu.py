"""Meta-gradients of many UEs on a GPU, with the same computation on the CPU beside it."""

from __future__ import annotations

import torch
from _common import goal, interleaved, median, options, spread, table, write
from bench_metagradient import plain_loop, setting


def main() -> None:
    args = options("bench_gpu", __doc__)
    if not torch.cuda.is_available():
        print("bench_gpu: left out, there is no GPU")
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    threads = torch.get_num_threads()
    ues = 10_000 if args.quick else 100_000
    meta, w, batches = setting(ues, torch.float32, "cuda")

    def on_gpu() -> None:
        meta(w, *batches, chunk=25_000)
        torch.cuda.synchronize()

    few = 2000
    small, w_cpu, batches_cpu = setting(few, torch.float32)
    times = interleaved({"gpu": on_gpu, "cpu": lambda: small(w_cpu, *batches_cpu, chunk=256)}, 5)
    rates = {"gpu": ues / median(times["gpu"]), "cpu": few / median(times["cpu"])}
    check, w_few, batches_few = setting(100, torch.float64, "cuda")
    difference = float(
        (check(w_few, *batches_few) - plain_loop(check, w_few, batches_few)).abs().max()
    )
    name = torch.cuda.get_device_name()
    goals = [
        goal("UE steps on a GPU, MLP 64-32-10, 16 samples", "at least 10^5 per second",
             f"{rates['gpu']:.3g} per second on {name}, {rates['gpu'] / rates['cpu']:.1f} times "
             f"{threads} CPU threads of that machine", rates["gpu"] >= 1e5),
        goal("difference to the loop on the GPU, float64, n = 100", "at most 1e-12",
             f"{difference:.1e}", difference <= 1e-12),
    ]  # fmt: skip
    rows = [
        [side, count, rates[side], spread([count / t for t in times[side]])]
        for side, count in (("gpu", ues), ("cpu", few))
    ]
    columns = ["side", "UEs", "UE steps per second", "spread"]
    write(args.out, "bench_gpu", f"Meta-gradients on {name}", goals,
          [table("UE steps per second (exact meta-gradient)", columns, rows)], threads)  # fmt: skip


if __name__ == "__main__":
    main()
