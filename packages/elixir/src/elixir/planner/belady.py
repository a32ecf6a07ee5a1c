"""The least number of loads for a known trace (Belady's MIN over sets of chunks)."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from elixir._native_loader import native


def belady_loads(steps: Sequence[Sequence[int]], blocks: int) -> int:
    """Return the number of loads that an optimal cache of equal blocks needs.

    Parameters
    ----------
    steps
        Chunks that each step needs at once.
    blocks
        Blocks in the cache.

    Raises
    ------
    ValueError
        If a step needs more chunks than there are blocks.

    Examples
    --------
    The authors' own unit test; they count a move back for every load, so 12 moves:

    >>> belady_loads([[0], [1, 2], [3], [3], [1, 2], [0]], 2)
    6
    """
    widest = max((len(set(step)) for step in steps), default=0)
    if blocks < max(widest, 1):
        raise ValueError(f"blocks={blocks}: a step needs {max(widest, 1)} chunks at once")
    labels: dict[int, int] = {}
    items: list[int] = []
    offsets = [0]
    for step in steps:
        items += [labels.setdefault(chunk, len(labels)) for chunk in step]
        offsets.append(len(items))
    module = native()
    if module is not None:
        return int(module.belady_loads(items, offsets, len(labels), blocks))
    return _python(items, offsets, len(labels), blocks)


def _python(items: list[int], offsets: list[int], chunks: int, blocks: int) -> int:
    steps = [sorted(set(items[a:b])) for a, b in itertools.pairwise(offsets)]
    upcoming: list[list[int]] = [[] for _ in range(chunks)]
    for position in range(len(steps) - 1, -1, -1):
        for chunk in steps[position]:
            upcoming[chunk].append(position)
    present: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    loads = 0
    for step in steps:
        for chunk in step:
            upcoming[chunk].pop()
        for chunk in step:
            if chunk in present:
                continue
            while len(present) >= blocks:
                negative, victim = heapq.heappop(heap)
                if victim not in step and present.get(victim) == -negative:
                    del present[victim]
            present[chunk] = -1
            loads += 1
        for chunk in step:
            present[chunk] = upcoming[chunk][-1] if upcoming[chunk] else len(steps)
            heapq.heappush(heap, (-present[chunk], chunk))
    return loads


def palindrome_loads(chunks: int, blocks: int) -> int:
    """Return the optimum of a forward and backward pass with one chunk per step: ``2 n - k``."""
    return 2 * chunks - min(blocks, chunks)
