"""The device's chunk cache as pure bookkeeping: the runtime and the simulator share it.

Chunks have unequal sizes and live at byte offsets. Room for a chunk is made by dropping a window of
neighbours; of all windows without a pinned chunk the one whose earliest next use lies farthest is
taken (Belady's rule over windows), then the one that drops the fewest bytes.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence

FAR = 1 << 60


class Cache:
    """Places chunks in ``capacity`` bytes.

    Parameters
    ----------
    sizes
        Bytes of each chunk.
    capacity
        Bytes of the cache.
    steps
        The trace: chunks per step. Positions repeat from step to step of training.
    """

    def __init__(self, sizes: Sequence[int], capacity: int, steps: Sequence[Sequence[int]]) -> None:
        self.sizes = list(sizes)
        self.capacity = capacity
        self.length = max(len(steps), 1)
        self.uses: list[list[int]] = [[] for _ in sizes]
        for position, step in enumerate(steps):
            for chunk in step:
                self.uses[chunk].append(position)
        self.offset: dict[int, int] = {}
        self.pins = [0] * len(self.sizes)
        self._order: list[tuple[int, int]] = []  # (offset, chunk), sorted
        self.position = 0
        self.loads = 0
        self.loaded_bytes = 0

    def next_use(self, chunk: int, after: int | None = None) -> int:
        """Return the position of the next use after the current one, into the next iteration."""
        uses = self.uses[chunk]
        if not uses:
            return FAR
        position = self.position if after is None else after
        found = bisect_right(uses, position)
        return uses[found] if found < len(uses) else self.length + uses[0]

    def drop(self, chunk: int) -> None:
        """Forget a chunk; its bytes are free."""
        self._order.remove((self.offset.pop(chunk), chunk))

    def fit(self, chunk: int, not_before: int = -1) -> tuple[int, list[int]] | None:
        """Return an offset and the chunks to drop for it, or None.

        ``not_before`` refuses victims whose next use comes earlier (prefetching must not hurt).
        """
        size = self.sizes[chunk]
        if size > self.capacity:
            return None
        order = self._order
        best: tuple[int, int, int, list[int]] | None = None
        n = len(order)
        ends = [o + self.sizes[c] for o, c in order]
        starts = [0, *ends]
        for i, start in enumerate(starts):
            # a window that begins where chunk i-1 ends and drops chunks i, i+1, ...
            victims: list[int] = []
            soonest = FAR * 2
            dropped = 0
            j = i
            while True:
                limit = order[j][0] if j < n else self.capacity
                if limit - start >= size:
                    key = (soonest, -dropped)
                    if best is None or key > (best[0], best[1]):
                        best = (soonest, -dropped, start, victims.copy())
                    break
                if j >= n:
                    break
                victim = order[j][1]
                if self.pins[victim]:
                    break
                use = self.next_use(victim)
                if use < not_before:
                    break
                soonest = min(soonest, use)
                dropped += self.sizes[victim]
                victims.append(victim)
                j += 1
        return (best[2], best[3]) if best else None

    def place(self, chunk: int, offset: int) -> None:
        """Record that a chunk now lives at an offset."""
        self.offset[chunk] = offset
        insort(self._order, (offset, chunk))
        self.loads += 1
        self.loaded_bytes += self.sizes[chunk]

    def at(self, offset: int) -> int | None:
        """Return the chunk that covers a byte offset, or None."""
        found = bisect_right(self._order, (offset, 1 << 62)) - 1
        if found < 0:
            return None
        start, chunk = self._order[found]
        return chunk if offset < start + self.sizes[chunk] else None

    def advance(self, chunk: int) -> None:
        """Move the position to the next traced use of a chunk (cyclically)."""
        use = self.next_use(chunk, self.position - 1)
        self.position = use % self.length if use < FAR else self.position
