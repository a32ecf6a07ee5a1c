"""Where instances can stand on a GPU: bit masks over its memory slices.

A GPU instance of ``size`` memory slices that starts at slice ``s`` occupies the bits
``s .. s + size - 1``. A set of instances is legal when the masks are disjoint, no profile exceeds
its count, and at most one instance has a media extension.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .boards import Board, GpuProfile
from .errors import Infeasible

__all__ = [
    "Placement",
    "compute_slices_free",
    "default_placement",
    "enumerate_placed",
    "fits",
    "fragmentation",
    "gpu_instance_id",
    "is_maximal",
    "largest_placeable",
    "occupied_mask",
    "placeable_starts",
    "solve",
]


@dataclass(frozen=True, order=True)
class Placement:
    """A GPU instance profile at a place.

    Parameters
    ----------
    start : int
        First memory slice.
    size : int
        Memory slices occupied.
    profile : str
        Profile name.
    """

    start: int
    size: int
    profile: str

    @property
    def mask(self) -> int:
        """Bit mask of the occupied memory slices."""
        return ((1 << self.size) - 1) << self.start

    def __str__(self) -> str:
        return f"{self.profile}@{self.start}"


def gpu_instance_id(memory_slices: int, start: int, size: int) -> int:
    """Id that the driver gives a GPU instance: its node in a binary tree over the slices.

    Examples
    --------
    >>> [gpu_instance_id(8, 0, 8), gpu_instance_id(8, 4, 4), gpu_instance_id(8, 6, 1)]
    [0, 2, 13]
    """
    nodes = memory_slices // size
    return nodes - 1 + start // size


def occupied_mask(placed: Sequence[Placement]) -> int:
    """Union of the masks of placed instances."""
    mask = 0
    for p in placed:
        mask |= p.mask
    return mask


def _media_conflict(board: Board, profile: GpuProfile, placed: Sequence[Placement]) -> bool:
    if profile.takes_media_extension:
        return any(board.profile(p.profile).takes_media_extension for p in placed)
    return False


def fits(board: Board, profile: GpuProfile, start: int, placed: Sequence[Placement]) -> bool:
    """Whether one more instance may be placed at `start` beside `placed`."""
    if start not in profile.starts or (profile.mask << start) & occupied_mask(placed):
        return False
    if sum(p.profile == profile.name for p in placed) >= profile.count:
        return False
    return not _media_conflict(board, profile, placed)


def placeable_starts(
    board: Board, profile: GpuProfile, placed: Sequence[Placement]
) -> tuple[int, ...]:
    """List where one more instance of `profile` may start, in the driver's order."""
    return tuple(s for s in profile.starts if fits(board, profile, s, placed))


def default_placement(
    board: Board, profile: GpuProfile, placed: Sequence[Placement]
) -> Placement | None:
    """Place that the driver chooses when none is given, or None where there is no room.

    The driver takes the first free start of a fixed order (``1g``: 6, 4, 5, 0, 1, 2, 3), which is
    why the order of creation matters to tools that let it choose.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> board = load_board("a100-40gb")
    >>> str(default_placement(board, board.profile("3g.20gb"), []))
    '3g.20gb@4'
    """
    starts = placeable_starts(board, profile, placed)
    return Placement(starts[0], profile.size, profile.name) if starts else None


def compute_slices_free(board: Board, placed: Sequence[Placement]) -> int:
    """Compute slices that no instance uses."""
    return board.compute_slices - sum(board.profile(p.profile).compute_slices for p in placed)


def largest_placeable(
    board: Board, placed: Sequence[Placement], profiles: Sequence[GpuProfile] | None = None
) -> int:
    """Compute slices of the largest instance that still fits; 0 where nothing does."""
    candidates = board.gpu_profiles if profiles is None else profiles
    sizes = [p.compute_slices for p in candidates if placeable_starts(board, p, placed)]
    return max(sizes, default=0)


def fragmentation(board: Board, placed: Sequence[Placement]) -> float:
    """Share of the free compute slices that the largest placeable instance leaves unused.

    Returns
    -------
    float
        ``1 - largest placeable g / free compute slices``, in [0, 1]; 0 on a full GPU.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> board = load_board("a100-40gb")
    >>> fragmentation(board, [])
    0.0
    >>> fragmentation(board, [Placement(0, 4, "3g.20gb"), Placement(4, 4, "3g.20gb")])
    1.0
    """
    free = compute_slices_free(board, placed)
    return 1.0 - largest_placeable(board, placed) / free if free > 0 else 0.0


def is_maximal(
    board: Board, placed: Sequence[Placement], profiles: Sequence[GpuProfile] | None = None
) -> bool:
    """Whether no further instance of `profiles` (default: all of the board) fits."""
    return largest_placeable(board, placed, profiles) == 0


def enumerate_placed(
    board: Board, profiles: Sequence[GpuProfile] | None = None
) -> Iterator[tuple[Placement, ...]]:
    """Yield every legal non-empty set of placed instances once, sorted by start.

    Parameters
    ----------
    board : Board
        Geometry.
    profiles : sequence of GpuProfile, optional
        Profiles to draw from; default all of the board.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> board = load_board("a100-40gb")
    >>> base = board.selected_profiles(double_memory=False, media=False)
    >>> sum(1 for _ in enumerate_placed(board, base))
    297
    """
    pool = board.gpu_profiles if profiles is None else profiles
    slots = sorted(
        (Placement(s, p.size, p.name) for p in pool for s in p.starts),
        key=lambda slot: (slot.start, slot.size, slot.profile),
    )

    def extend(first: int, placed: tuple[Placement, ...]) -> Iterator[tuple[Placement, ...]]:
        for index in range(first, len(slots)):
            slot = slots[index]
            if fits(board, board.profile(slot.profile), slot.start, placed):
                grown = (*placed, slot)
                yield grown
                yield from extend(index + 1, grown)

    yield from extend(0, ())


def all_solutions(
    board: Board,
    wanted: Sequence[tuple[str, int | None]],
    fixed: Sequence[Placement] = (),
) -> Iterator[tuple[Placement, ...]]:
    """Yield every placement of the wanted instances beside the fixed ones, without repeats.

    Parameters
    ----------
    board : Board
        Geometry.
    wanted : sequence of (profile name, start or None)
        What to place; a start pins the instance.
    fixed : sequence of Placement
        Instances that stand already and stay.
    """
    pinned = [(n, s) for n, s in wanted if s is not None]
    free = Counter(n for n, s in wanted if s is None)
    placed: list[Placement] = list(fixed)
    for name, start in pinned:
        profile = board.profile(name)
        assert start is not None
        if not fits(board, profile, start, placed):
            return
        placed.append(Placement(start, profile.size, name))
    names = sorted(free, key=lambda n: (-board.profile(n).size, n))
    order = [n for n in names for _ in range(free[n])]
    first = len(fixed)

    def extend(index: int, last: int) -> Iterator[tuple[Placement, ...]]:
        if index == len(order):
            yield tuple(sorted(placed[first:]))
            return
        profile = board.profile(order[index])
        repeated = index > 0 and order[index - 1] == order[index]
        for rank, start in enumerate(profile.starts):
            if repeated and rank <= last:
                continue
            if fits(board, profile, start, placed):
                placed.append(Placement(start, profile.size, profile.name))
                yield from extend(index + 1, rank)
                placed.pop()

    yield from extend(0, -1)


def solve(
    board: Board,
    wanted: Sequence[tuple[str, int | None]],
    fixed: Sequence[Placement] = (),
) -> tuple[Placement, ...]:
    """Place the wanted instances, or say why that is impossible.

    Parameters
    ----------
    board : Board
        Geometry.
    wanted : sequence of (profile name, start or None)
        What to place.
    fixed : sequence of Placement
        Instances that stay where they are.

    Returns
    -------
    tuple of Placement
        The first solution in the driver's order of starts, sorted by start.

    Raises
    ------
    Infeasible
        No placement exists; `culprits` is a smallest conflicting subset of `wanted`.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> board = load_board("a100-40gb")
    >>> [str(p) for p in solve(board, [("4g.20gb", None), ("3g.20gb", None)])]
    ['4g.20gb@0', '3g.20gb@4']
    """
    return _solve(board, tuple(wanted), tuple(fixed))


@functools.lru_cache(maxsize=65536)
def _solve(
    board: Board, wanted: tuple[tuple[str, int | None], ...], fixed: tuple[Placement, ...]
) -> tuple[Placement, ...]:
    quick = _quick_reason(board, wanted, fixed)
    if quick is not None:
        raise quick
    for solution in all_solutions(board, wanted, fixed):
        return solution
    raise _packing_reason(board, wanted, fixed)


def _entry(item: tuple[str, int | None]) -> str:
    return item[0] if item[1] is None else f"{item[0]}@{item[1]}"


def _quick_reason(
    board: Board, wanted: tuple[tuple[str, int | None], ...], fixed: tuple[Placement, ...]
) -> Infeasible | None:
    names = [n for n, _ in wanted]
    for name, start in wanted:
        profile = board.profile(name)
        if start is not None and start not in profile.starts:
            legal = ", ".join(map(str, sorted(profile.starts)))
            return Infeasible(f"{name} cannot start at slice {start}; legal: {legal}", [name])
    for name, asked in Counter(names).items():
        profile = board.profile(name)
        if asked > profile.count:
            reason = f"{asked} x {name} asked, {board.name} holds at most {profile.count}"
            return Infeasible(reason, [name] * (profile.count + 1))
    media = [n for n in names if board.profile(n).takes_media_extension]
    media += [p.profile for p in fixed if board.profile(p.profile).takes_media_extension]
    if len(media) > 1:
        reason = f"{' and '.join(media[:2])}: a GPU has one media extension (+me) at most"
        return Infeasible(reason, media[:2])
    needed = sum(board.profile(n).size for n in names)
    free = board.memory_slices - occupied_mask(fixed).bit_count()
    if needed > free:
        used = f", {len(fixed)} instance(s) that stay hold the rest" if fixed else ""
        reason = (
            f"{needed} memory slices needed, {free} of {board.memory_slices} free{used} "
            f"({', '.join(f'{n} takes {board.profile(n).size}' for n in dict.fromkeys(names))})"
        )
        return Infeasible(reason, names)
    return None


def _packing_reason(
    board: Board, wanted: tuple[tuple[str, int | None], ...], fixed: tuple[Placement, ...]
) -> Infeasible:
    # Drop entries one at a time as long as the rest stays impossible: what remains conflicts.
    culprits = list(wanted)
    index = 0
    while index < len(culprits):
        trial = culprits[:index] + culprits[index + 1 :]
        if trial and next(all_solutions(board, trial, fixed), None) is None:
            culprits = trial
        else:
            index += 1
    texts = [_entry(item) for item in culprits]
    parts = []
    for name in dict.fromkeys(n for n, _ in culprits):
        profile = board.profile(name)
        legal = ", ".join(map(str, sorted(profile.starts)))
        parts.append(f"{name} takes {profile.size} slice(s) from {legal}")
    beside = f" beside {', '.join(map(str, fixed))}" if fixed else ""
    reason = (
        f"{' + '.join(texts)} cannot stand together{beside} on {board.name}, "
        f"although each is legal: {'; '.join(parts)}"
    )
    return Infeasible(reason, texts)
