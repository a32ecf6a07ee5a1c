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

from elixir.optim.kernels import adamw_, copy_

ROUNDS = 7


def measure_interference() -> dict[str, float]:
    """Return ``copy_call``, ``wake``, ``copy_disturbs``, ``adam_disturbs`` and ``adam_beside``."""
    size = 1 << 21
    source, target = torch.zeros(size), torch.zeros(size)
    lost, copies, _ = _beside(lambda: copy_(target, source))
    p, m, v, g = (torch.zeros(size // 4) for _ in range(4))
    slower, updates, seconds = _beside(lambda: adamw_(p, m, v, g, lr=1e-3, step=1))
    alone = statistics.median(
        _timed(lambda: adamw_(p, m, v, g, lr=1e-3, step=1)) for _ in range(ROUNDS)
    )
    return {
        "copy_call": _per_copy(),
        "wake": _wake(),
        "copy_disturbs": lost / (copies * source.nbytes),
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


def _wake(rate: float = 1e9) -> float:
    """Return how much later than at its rate a throttled copy is seen to end."""
    from elixir.memory.mover import HostMover

    source, target = torch.zeros(1 << 16), torch.zeros(1 << 16)
    waits: dict[float, list[float]] = {rate: [], 1e15: []}
    for speed, found in waits.items():
        mover = HostMover(speed, speed)
        for _ in range(8 * ROUNDS):
            found.append(_timed(lambda: mover.h2d(target, source).wait()))  # noqa: B023
        mover.close()
    # the hand-over itself, without the copy, is in copy_call
    copy = statistics.median(_timed(lambda: copy_(target, source)) for _ in range(8 * ROUNDS))
    late = statistics.median(waits[rate]) - source.nbytes / rate
    return max(late - (statistics.median(waits[1e15]) - copy), 0.0)


def _per_copy() -> float:
    """Return seconds of the computing thread per copy: hooks, eviction, the hand-over to a lane.

    A chain of small layers trains with every chunk travelling and with every chunk resident.
    """
    from elixir.api import initialize, plan
    from elixir.measure import Chain, train_steps
    from elixir.memory.mover import HostMover
    from elixir.profile.hardware import Hardware

    random = torch.random.get_rng_state()
    x = torch.randn(4, 32, requires_grad=True)
    made = plan(
        Chain(12, 32), x, device_budget="64MiB", hardware=Hardware(), recompute="none", prefetch=0
    )
    least = made.override("*", tier="host")._replan(device_budget=made.least_budget)
    resident = made.override("*", tier="device")
    mover = HostMover(1e15, 1e15)
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
    torch.random.set_rng_state(random)
    return max(statistics.median(extra), 0.0) / copies
