"""The paper's search: equal chunks, size by traffic, rCache or optimizer first.

Formulas of the authors' code (``search/optimal.py``, ``search/utils.py``, ``search/simulator.py``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from elixir.planner.belady import belady_loads

MIB = 1 << 20


@dataclass(frozen=True)
class PaperPlan:
    """Result of the equal-chunk search.

    Attributes
    ----------
    chunk_size, blocks, chunks
        Elements per chunk, blocks of the rCache, number of chunks.
    moves
        ``2 * loads``: the authors charge a move back for every load.
    waste
        Elements of chunks that hold nothing.
    groups
        Tensor indices of each chunk.
    """

    chunk_size: int
    blocks: int
    chunks: int
    moves: int
    waste: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def objective(self) -> int:
        """Elements moved, by the authors' count."""
        return self.chunk_size * self.moves


def first_fit(sizes: Sequence[int], chunk_size: int) -> list[list[int]]:
    """Fill chunks in order of first use; a tensor that does not fit opens the next chunk."""
    groups: list[list[int]] = []
    left = -1
    for index, size in enumerate(sizes):
        if size > left:
            groups.append([])
            left = chunk_size
        groups[-1].append(index)
        left -= size
    return groups


def _starts(sums: Sequence[int], chunk_size: int) -> tuple[int, ...]:
    """Return the first tensor of every chunk of :func:`first_fit`, from the sums of the sizes."""
    starts: list[int] = []
    start, last = 0, len(sums) - 1
    while start < last:
        starts.append(start)
        start = max(bisect_right(sums, sums[start] + chunk_size) - 1, start + 1)
    return tuple(starts)


def candidate_sizes(sizes: Sequence[int], itemsize: int, parameters: int | None = None) -> range:
    """Return the chunk sizes the authors try, in elements.

    From 32 MiB, doubled until the largest tensor fits, to three times that.
    """
    least = 32 * MIB
    while least < max(sizes) * itemsize:
        least *= 2
    most = 3 * least
    count = len(sizes) if parameters is None else parameters
    tries = 16 * MIB // (2 * (1 << max(count - 1, 0).bit_length()))
    interval = 1024 if tries > (most - least) / 1024 else max((most - least) // max(tries, 1), 1)
    return range(least // itemsize, most // itemsize + 1, max(interval // itemsize, 1))


def search(
    sizes: Sequence[int],
    steps: Sequence[Sequence[int]],
    budget: int,
    *,
    itemsize: int = 2,
    overlap: bool = True,
    candidates: Sequence[int] | None = None,
) -> PaperPlan:
    """Choose the chunk size with the least traffic (Elixir, section "search").

    Parameters
    ----------
    sizes
        Elements of each public tensor, in order of first use.
    steps
        Tensors that each operator reads, forward and backward.
    budget
        Elements of the rCache.
    candidates
        Chunk sizes to try; by default the authors'.

    Raises
    ------
    ValueError
        If no chunk size leaves enough blocks for the widest operator.
    """
    best: PaperPlan | None = None
    tried: dict[tuple[int, tuple[int, ...]], PaperPlan | None] = {}
    sums = [0, *accumulate(sizes)]
    for size in candidates or candidate_sizes(sizes, itemsize):
        room = budget // size - (2 if overlap else 0)
        if room < 1:
            continue
        starts = _starts(sums, size)
        blocks = min(room, len(starts))
        plan = tried.get((blocks, starts), _MISSING)
        if plan is _MISSING:
            plan = _simulate(size, blocks, first_fit(sizes, size), steps)
            tried[blocks, starts] = plan  # later sizes with this packing only move more
        if isinstance(plan, PaperPlan) and (best is None or plan.objective < best.objective):
            best = plan
    if best is None:
        raise ValueError(f"budget={budget} elements: too small for the widest operator's chunks")
    total = sum(sizes)
    return PaperPlan(
        best.chunk_size,
        best.blocks,
        best.chunks,
        best.moves,
        best.chunks * best.chunk_size - total,
        best.groups,
    )


_MISSING = object()


def _simulate(
    size: int, blocks: int, groups: list[list[int]], steps: Sequence[Sequence[int]]
) -> PaperPlan | None:
    home = {tensor: chunk for chunk, group in enumerate(groups) for tensor in group}
    mapped = [sorted({home[t] for t in step}) for step in steps]
    if blocks < max(len(step) for step in mapped):
        return None
    moves = 2 * belady_loads(mapped, blocks)
    return PaperPlan(size, blocks, len(groups), moves, 0, tuple(tuple(g) for g in groups))


@dataclass(frozen=True)
class Priority:
    """Gains of one more rCache element and of the same bytes spent on optimizer states.

    Section 1.6 of the reference: ``I = e_p/c2g + e_p/g2c``;
    ``J = n/r (e_o/c2g + I + e_p/g2c + 1/v_cpu - 1/v_gpu)``.
    """

    cache: float
    optimizer: float

    @property
    def cache_first(self) -> bool:
        """Whether the rCache comes first."""
        return self.cache > self.optimizer


def priority(devices: int, *, itemsize: int = 2, states: int = 2) -> Priority:
    """Return the gains with the authors' constants of their server (nanoseconds per element).

    Examples
    --------
    >>> [priority(n).cache_first for n in (1, 2, 4, 8)]
    [True, False, False, False]
    """
    n = devices
    c2g, g2c = 16.3 * n + 8.7, 15.8 * n + 2.3
    v_gpu, v_cpu = 50.0 * n, 1.66 * math.log(n) + 5.15
    gain = itemsize / c2g + itemsize / g2c
    ratio = 1 + (1 + states) * (2 if itemsize == 2 else 1)
    inner = 4 / c2g + gain + itemsize / g2c + 1 / v_cpu - 1 / v_gpu
    return Priority(gain, n / ratio * inner)


def gpt2_tensors(hidden: int, layers: int) -> tuple[list[int], list[list[int]]]:
    """Return GPT-2's public tensors in order of first use, and the steps of both passes."""
    h = hidden
    sizes, forward = [1024 * h], [[0]]
    pairs = [(h, h), (3 * h * h, 3 * h), (h * h, h), (h, h), (4 * h * h, 4 * h), (4 * h * h, h)]
    for weight, bias in [pair for _ in range(layers) for pair in pairs] + [(h, h)]:
        forward.append([len(sizes), len(sizes) + 1])
        sizes += [weight, bias]
    return sizes, forward + forward[::-1]
