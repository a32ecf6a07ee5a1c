"""What copies and updates cost compute that runs beside them, measured on the emulated device.

Threads of a host share its cores, its memory and the interpreter, so compute, copies and AdamW
are no independent resources there. Nothing here looks at the model that is planned for.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from elixir.optim.kernels import adamw_

ROUNDS = 7


@torch.random.fork_rng(devices=())
def measure_interference() -> dict[str, float]:
    """Return the fields of a hardware profile that tell of interference, by name."""
    p, m, v, g = (torch.zeros(1 << 19) for _ in range(4))
    slower, updates, seconds = _beside(lambda: adamw_(p, m, v, g, lr=1e-3, step=1))
    alone = statistics.median(
        _timed(lambda: adamw_(p, m, v, g, lr=1e-3, step=1)) for _ in range(ROUNDS)
    )
    lane, byte = _lanes()
    return {
        "copy_call": _per_copy(),
        "wake": _wake(),
        "copy_beside": lane,
        "copy_disturbs": byte,
        "adam_disturbs": slower / (updates * p.numel()),
        "adam_beside": max(seconds / updates / alone, 1.0),
    }


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _compute() -> Callable[[], None]:
    x, w = torch.randn(256, 512), torch.randn(512, 512)

    def run() -> None:
        y: Tensor = x
        for _ in range(8):
            y = torch.tanh(y @ w)

    return run


class _Worker(threading.Thread):
    """Repeats some work until it is stopped."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work, self.done = work, 0
        self.started, self.stopped = threading.Event(), threading.Event()

    def run(self) -> None:
        self.started.set()
        with torch.no_grad():
            while not self.stopped.is_set():
                self.work()
                self.done += 1


def _beside(work: Callable[[], object]) -> tuple[float, float, float]:
    """Run compute alone and beside a thread that repeats some work, in turns.

    Returns
    -------
    tuple
        Seconds that compute loses per round, repeats of the work per round, and the round's
        seconds.
    """
    compute = _compute()
    compute()
    lost, repeats, lengths = [], [], []
    for _ in range(ROUNDS):
        alone = _timed(compute)
        worker = _Worker(work)
        worker.start()
        worker.started.wait()
        before, length = worker.done, _timed(compute)
        repeats.append(worker.done - before + 0.5)  # one is under way at the end
        worker.stopped.set()
        worker.join()
        lost.append(max(length - alone, 0.0))
        lengths.append(length)
    return statistics.median(lost), statistics.median(repeats), statistics.median(lengths)


def _lanes(layers: int = 24, dim: int = 512) -> tuple[float, float]:
    """Return seconds that compute loses per copy and per byte copied beside it.

    Layers run on weights that stay; on those while a throttled thread copies next to nothing per
    layer; and on weights that the thread has just copied into one of three places. The throttle
    leaves each copy half of a layer's time, so that compute never waits for it.
    """
    from elixir.memory.mover import HostMover

    pool = torch.randn(layers, dim * dim) / dim**0.5
    places, x = torch.zeros(3, dim * dim), torch.randn(dim // 2, dim)

    def run(size: int, mover: HostMover | None) -> None:
        y = x
        handle = None if mover is None else mover.h2d(places[0, :size], pool[0, :size])
        for i in range(layers):
            if mover is not None and handle is not None:
                handle.wait()
                following = places[(i + 1) % 3, :size], pool[(i + 1) % layers, :size]
                handle = mover.h2d(*following)
            weight = places[i % 3] if size == dim * dim else pool[i]
            y = torch.tanh(y @ weight.view(dim, dim))
        if handle is not None:
            handle.wait()

    sizes = (16, dim * dim)
    with torch.no_grad():
        run(16, None)
        layer = statistics.median(_timed(lambda: run(16, None)) for _ in range(3)) / layers
        movers = [HostMover(8 * size / layer) for size in sizes]
        for size, mover in zip(sizes, movers, strict=True):
            run(size, mover)
        lost: list[list[float]] = []
        for _ in range(2 * ROUNDS):
            still, few, all_ = (
                _timed(lambda: run(size, mover))  # noqa: B023
                for size, mover in ((16, None), *zip(sizes, movers, strict=True))
            )
            lost.append([few - still, all_ - few])
    for mover in movers:
        mover.close()
    per_copy, per_byte = (max(statistics.median(c), 0.0) for c in zip(*lost, strict=True))
    return per_copy / layers, per_byte / pool.nbytes


def _wake(rate: float = 1e9) -> float:
    """Return how much later than at its rate a throttled copy is seen to end."""
    from elixir.memory.mover import HostMover

    source, target = torch.zeros(1 << 16), torch.zeros(1 << 16)
    mover = HostMover(rate)
    waits = [_timed(lambda: mover.h2d(target, source).wait()) for _ in range(8 * ROUNDS)]
    mover.close()
    return max(statistics.median(waits) - source.nbytes / rate, 0.0)


def _per_copy() -> float:
    """Return seconds of the computing thread per copy, without the copy: hooks, eviction.

    A chain of small layers trains with every chunk travelling and with every chunk resident.
    """
    from elixir.api import initialize, plan
    from elixir.measure import Chain, train_steps
    from elixir.memory.mover import HostMover
    from elixir.profile.hardware import Hardware

    x = torch.randn(4, 32, requires_grad=True)
    made = plan(
        Chain(12, 32), x, device_budget="64MiB", hardware=Hardware(), recompute="none", prefetch=0
    )
    least = made.override("*", tier="host")._replan(device_budget=made.least_budget)
    resident = made.override("*", tier="device")
    mover = HostMover()
    far, pair = initialize(Chain(12, 32), plan=least, mover=mover)
    near, other = initialize(Chain(12, 32), plan=resident)
    batches = [(x,)]
    for _ in range(3):
        train_steps(far, pair, batches)
        train_steps(near, other, batches)
    before, extra = sum(mover.copies.values()), []
    for _ in range(4 * ROUNDS):
        apart = train_steps(far, pair, batches)[1][0]
        extra.append(apart - train_steps(near, other, batches)[1][0])
    copies = (sum(mover.copies.values()) - before) / len(extra)
    pair.close()
    other.close()
    return max(statistics.median(extra), 0.0) / copies
