"""Which chunks keep parameters and optimizer states on the device: an exact 0/1 knapsack."""

from __future__ import annotations

from collections.abc import Sequence

NODES = 200_000


def knapsack(values: Sequence[float], weights: Sequence[int], capacity: int) -> list[int]:
    """Return the items of the greatest total value within a capacity.

    Branch and bound with the fractional bound; exact unless 200,000 nodes are passed (then the best
    set found so far, at least as good as the greedy one).

    Parameters
    ----------
    values
        Seconds saved by keeping a chunk on the device; items of no value are never taken.
    weights
        Bytes.

    Examples
    --------
    >>> knapsack([6.0, 10.0, 12.0], [1, 2, 3], 5)
    [1, 2]
    """
    items = [i for i, v in enumerate(values) if v > 0 and weights[i] <= capacity]
    items.sort(key=lambda i: (-values[i] / max(weights[i], 1), i))
    value = [values[i] for i in items]
    weight = [weights[i] for i in items]
    n = len(items)
    best_value, best = 0.0, 0
    taken, left, total = 0, capacity, 0.0
    for i in range(n):  # greedy start
        if weight[i] <= left:
            taken |= 1 << i
            left -= weight[i]
            total += value[i]
    best_value, best = total, taken
    stack = [(0, capacity, 0.0, 0)]
    visited = 0
    while stack and visited < NODES:
        visited += 1
        i, left, total, taken = stack.pop()
        if total > best_value:
            best_value, best = total, taken
        bound, room, j = total, left, i
        while j < n and weight[j] <= room:
            bound += value[j]
            room -= weight[j]
            j += 1
        if j < n:
            bound += value[j] * room / weight[j]
        if i == n or bound <= best_value * (1 + 1e-15):
            continue
        stack.append((i + 1, left, total, taken))
        if weight[i] <= left:
            stack.append((i + 1, left - weight[i], total + value[i], taken | 1 << i))
    return sorted(items[i] for i in range(n) if best >> i & 1)
