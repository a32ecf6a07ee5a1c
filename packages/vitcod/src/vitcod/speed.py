"""Timing of kernels, interleaved with their peer so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vitcod.models import Block
from vitcod.ops import sparse_attention
from vitcod.plan import LayerPlan


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs.

    Parameters
    ----------
    median, least, spread : median, minimum, and half the interquartile range
    """

    median: float
    least: float
    spread: float


def interleaved(
    functions: dict[str, Callable[[], object]],
    repeats: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time functions in turns.

    Parameters
    ----------
    functions : by name
    repeats : turns
    clock : seconds; ``time.thread_time`` where the machine is shared and one thread works
    """
    for function in functions.values():
        function()
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            samples[name].append(1e3 * (clock() - start))
    result = {}
    for name, values in samples.items():
        low, high = np.quantile(values, [0.25, 0.75])
        result[name] = Timing(float(np.median(values)), min(values), float(high - low) / 2)
    return result


def attention_share(tokens: int, dim: int = 192, heads: int = 3, repeats: int = 5) -> float:
    """Measure the share of a dense transformer block's time that its attention core takes.

    Parameters
    ----------
    tokens, dim, heads : of the block; the defaults are DeiT-Tiny's
    repeats : interleaved runs

    Returns
    -------
    float, 0 to 1: scores, softmax and weighted sum; projections and MLP are the rest
    """
    block = Block(dim, heads, 4.0).eval()
    x = torch.randn(1, tokens, dim, generator=torch.Generator().manual_seed(0))
    # Views of a fused projection, as the block has them.
    fused = torch.cat([x, x, x], -1).view(1, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = fused.unbind(0)
    with torch.no_grad():
        found = interleaved(
            {
                "block": lambda: block(x),
                "core": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
            },
            repeats,
            time.thread_time if torch.get_num_threads() == 1 else time.perf_counter,
        )
    return min(1.0, found["core"].median / found["block"].median)


def compare_with_dense(
    plan: LayerPlan, batch: int = 1, dim: int = 64, repeats: int = 30, seed: int = 0
) -> tuple[Timing, Timing]:
    """Time dense ``scaled_dot_product_attention`` and the plan's sparse attention."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, plan.heads, plan.queries, dim, generator=generator)
    k, v = (torch.randn(batch, plan.heads, plan.keys, dim, generator=generator) for _ in range(2))
    with torch.no_grad():
        found = interleaved(
            {
                "dense": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
                "sparse": lambda: sparse_attention(q, k, v, plan),
            },
            repeats,
            time.thread_time if torch.get_num_threads() == 1 else time.perf_counter,
        )
    return found["dense"], found["sparse"]
