"""Vectorised Per-FedAvg gradients against a Python loop over UEs."""

from __future__ import annotations

from functools import partial

import torch
from _common import goal, interleaved, median, options, spread, table, write
from perfeds2 import FlatModel, MetaGradient
from torch import nn


def setting(ues: int, dtype: torch.dtype, device: str = "cpu"):
    g = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).to(dtype)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=dtype) * 0.1
    model = FlatModel(module.to(device))
    w = model.initial().cpu() + 0.05 * torch.randn(ues, model.size, generator=g, dtype=dtype)

    def draw():
        x = torch.rand(ues, 16, 64, generator=g, dtype=dtype)
        return x.to(device), torch.randint(0, 10, (ues, 16), generator=g).to(device)

    return MetaGradient(model, 0.1), w.to(device), (draw(), draw(), draw())


def loop(meta, w, batches):
    return torch.stack(
        [meta.single(w[i], *((x[i], y[i]) for x, y in batches)) for i in range(len(w))]
    )


def plain_loop(meta, w, batches):
    """Loop with ordinary autograd, as a sequential client would write it."""
    out = []
    for i in range(len(w)):
        (xi, yi), (xo, yo), (xh, yh) = ((x[i], y[i]) for x, y in batches)
        u = w[i].clone().requires_grad_(True)
        (inner,) = torch.autograd.grad(meta.model.loss(u, (xi, yi)), u)
        v = (u - meta.alpha * inner).detach().requires_grad_(True)
        (outer,) = torch.autograd.grad(meta.model.loss(v, (xo, yo)), v)
        (g,) = torch.autograd.grad(meta.model.loss(u, (xh, yh)), u, create_graph=True)
        (hv,) = torch.autograd.grad((g * outer).sum(), u)
        out.append(outer - meta.alpha * hv)
    return torch.stack(out)


def main() -> None:
    args = options("bench_metagradient", __doc__)
    threads = 2
    torch.set_num_threads(threads)
    rows, ratios = [], {}
    for ues in (20, 100) if args.quick else (20, 100, 1000):
        meta, w, batches = setting(ues, torch.float32)
        times = interleaved(
            {
                "vectorised": partial(meta, w, *batches, chunk=256),
                "functional loop": partial(loop, meta, w, batches),
                "autograd loop": partial(plain_loop, meta, w, batches),
            },
            5,
        )
        fast = median(times["vectorised"])
        ratios[ues] = (
            median(times["functional loop"]) / fast,
            median(times["autograd loop"]) / fast,
        )
        rows.append([ues, fast * 1e3, spread([t * 1e3 for t in times["vectorised"]]),
                     median(times["functional loop"]) * 1e3, median(times["autograd loop"]) * 1e3,
                     *ratios[ues]])  # fmt: skip
    errors = {}
    for dtype, allowed in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        meta, w, batches = setting(100, dtype)
        difference = (meta(w, *batches) - plain_loop(meta, w, batches)).abs().max()
        errors[str(dtype)] = (float(difference), allowed)
    goals = [
        goal(
            f"vectorised exact meta-gradient, n = {ues}, MLP 64-32-10, 16 samples",
            f"at least {bar} times the Python loop",
            f"{ratios[ues][0]:.1f} times the loop of the same functions, "
            f"{ratios[ues][1]:.1f} times an autograd loop (medians of 5, {threads} threads)",
            ratios[ues][0] >= bar,
            "judged by the loop of the same functions; a loop written by hand for ordinary "
            "autograd is faster, and the second figure stands against that one",
        )
        for ues, bar in ((100, 20), (1000, 50))
        if ues in ratios
    ]
    goals.append(
        goal(
            "difference between vectorised and loop, n = 100",
            "at most 1e-6 (float32), 1e-12 (float64)",
            f"{errors['torch.float32'][0]:.1e}, {errors['torch.float64'][0]:.1e}",
            all(e <= a for e, a in errors.values()),
        )
    )
    write(
        args.out,
        "bench_metagradient",
        "Vectorised meta-gradients",
        goals,
        [
            table(
                "Milliseconds for all UEs",
                ["UEs", "vectorised", "spread", "functional loop", "autograd loop",
                 "ratio functional", "ratio autograd"],
                rows,
            )
        ],
        threads,
    )  # fmt: skip


if __name__ == "__main__":
    main()
