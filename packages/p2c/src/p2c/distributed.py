"""Several processes: batches are drawn alike, each works on its part, gradients are averaged.

Frozen scorers are not wrapped. A mean over a batch is divided by the count of all processes: a step
of two processes is the step of one on the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from .errors import require


def world() -> tuple[int, int]:
    """Return this process's number and how many there are (0 and 1 without a group)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def processes() -> Iterator[bool]:
    """Join the group that ``torchrun`` set up, if it did; yield whether this is the first."""
    joined = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joined:
        dist.init_process_group("gloo")
    try:
        yield world()[0] == 0
    finally:
        if joined:
            dist.destroy_process_group()


def part(batch: Tensor) -> Tensor:
    """Return this process's equal share of the rows of a batch that all processes drew alike."""
    rank, size = world()
    require(len(batch) % size == 0, "batch", len(batch), f"a multiple of {size} processes")
    each = len(batch) // size
    return batch[rank * each : (rank + 1) * each]


def global_mean(total: Float[Tensor, ""], count: Tensor | int) -> Float[Tensor, ""]:
    """Return a sum over the count of all processes, scaled so that averaging gradients is right.

    Examples
    --------
    >>> global_mean(torch.tensor(6.0), 3)
    tensor(2.)
    """
    _, size = world()
    whole = torch.as_tensor(count, dtype=total.dtype, device=total.device).clone()
    if size > 1:
        dist.all_reduce(whole)
    return total * size / whole.clamp(min=1)


def everywhere(flag: bool) -> bool:
    """Tell whether a condition holds in all processes."""
    if world()[1] == 1:
        return flag
    whole = torch.tensor(float(flag))
    dist.all_reduce(whole, dist.ReduceOp.MIN)
    return bool(whole)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of all processes; one without a gradient counts as 0."""
    _, size = world()
    if size == 1:
        return
    chosen = list(parameters)
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen]
    )
    dist.all_reduce(flat)
    flat /= size
    start = 0
    for p in chosen:
        p.grad = flat[start : start + p.numel()].view_as(p).clone()
        start += p.numel()
