"""Layouts: what a GPU shall be cut into, before and after it has been placed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .boards import Board, load_board
from .errors import Infeasible, InputError
from .placement import (
    Placement,
    enumerate_placed,
    fragmentation,
    gpu_instance_id,
    is_maximal,
    solve,
)
from .profiles import ProfileName

__all__ = ["Layout", "LayoutEntry", "PlacedLayout", "enumerate_layouts"]

_ENTRY = re.compile(r"^(?P<name>[^@*\s]+)\s*(?:@\s*(?P<start>\d+))?\s*(?:\*\s*(?P<count>\d+))?$")
_LAYOUT_RULE = "comma-separated PROFILE[@START][*COUNT], for example '3g.40gb@4, 1g.10gb*2'"


@dataclass(frozen=True, order=True)
class LayoutEntry:
    """One wanted GPU instance and the compute instances inside it.

    Parameters
    ----------
    profile : str
        GPU instance profile.
    start : int or None
        First memory slice, or None to leave the choice to the solver.
    compute : tuple of int
        Compute slices of each compute instance; empty means one that takes the whole.
    """

    profile: str
    start: int | None = None
    compute: tuple[int, ...] = ()

    @property
    def compute_slices(self) -> tuple[int, ...]:
        """Slices of each compute instance, the default written out."""
        return self.compute or (ProfileName.parse(self.profile).graphics,)

    def __str__(self) -> str:
        place = "" if self.start is None else f"@{self.start}"
        whole = ProfileName.parse(self.profile).graphics
        if self.compute_slices == (whole,):
            return f"{self.profile}{place}"
        cuts = "+".join(f"{c}c" for c in self.compute_slices)
        return f"{self.profile}{place}[{cuts}]"


@dataclass(frozen=True)
class PlacedLayout:
    """A layout in which every instance has its place.

    Parameters
    ----------
    board : Board
        Geometry.
    entries : tuple of LayoutEntry
        Instances with starts, sorted by start.
    """

    board: Board
    entries: tuple[LayoutEntry, ...]

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Profile, start and size of every instance."""
        return tuple(
            Placement(e.start or 0, self.board.profile(e.profile).size, e.profile)
            for e in self.entries
        )

    @property
    def multiset(self) -> tuple[str, ...]:
        """Profile names, largest first."""
        order = {p.name: (-p.compute_slices, p.size, p.name) for p in self.board.gpu_profiles}
        return tuple(sorted((e.profile for e in self.entries), key=lambda n: order[n]))

    @property
    def fragmentation(self) -> float:
        """See `migperf.placement.fragmentation`."""
        return fragmentation(self.board, self.placements)

    def __str__(self) -> str:
        return ", ".join(str(e) for e in self.entries) or "(empty)"

    def __repr__(self) -> str:
        return f"PlacedLayout({self.board.name}: {self})"

    def to_json(self) -> dict[str, Any]:
        """Plain form for JSON files."""
        return {
            "schema_version": 1,
            "board": self.board.name,
            "fragmentation": self.fragmentation,
            "instances": [
                {
                    "profile": e.profile,
                    "start": p.start,
                    "size": p.size,
                    "gpu_instance_id": gpu_instance_id(self.board.memory_slices, p.start, p.size),
                    "compute_slices": list(e.compute_slices),
                }
                for e, p in zip(self.entries, self.placements, strict=True)
            ],
        }


@dataclass(frozen=True)
class Layout:
    """A multiset of wanted instances; places may be left open.

    Examples
    --------
    >>> layout = Layout.parse("3g.40gb@4, 2g.20gb, 1g.10gb*2")
    >>> len(layout.entries)
    4
    >>> print(layout.solve("a100-80gb"))
    2g.20gb@0, 1g.10gb@2, 1g.10gb@3, 3g.40gb@4
    """

    entries: tuple[LayoutEntry, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read ``PROFILE[@START][*COUNT], ...``; compute parts (``1c.3g.40gb*3``) share instances.

        Raises
        ------
        InputError
            An entry does not follow the grammar.
        """
        if not isinstance(text, str):
            raise InputError.of("layout", text, _LAYOUT_RULE)
        items: list[tuple[ProfileName, int | None]] = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            match = _ENTRY.match(part)
            if match is None:
                raise InputError.of("layout", part, _LAYOUT_RULE)
            count = int(match["count"] or 1)
            if not 1 <= count <= 64:
                raise InputError.of("layout", part, "a count from 1 to 64")
            start = None if match["start"] is None else int(match["start"])
            if start is not None and count > 1:
                raise InputError.of("layout", part, "a count of 1 where a start is given")
            items.extend([(ProfileName.parse(match["name"]), start)] * count)
        return cls.from_profiles(items)

    @classmethod
    def from_profiles(cls, items: Iterable[tuple[ProfileName, int | None]]) -> Layout:
        """Group profile names into GPU instances; partial compute instances fill up in turn."""
        entries: list[LayoutEntry] = []
        open_entries: dict[str, list[list[int]]] = {}
        starts: dict[int, int | None] = {}
        for name, start in items:
            if name.is_whole:
                entries.append(LayoutEntry(name.gpu_profile, start))
                continue
            bins = open_entries.setdefault(name.gpu_profile, [])
            for cuts in bins:
                same_place = start is None or starts[id(cuts)] in (None, start)
                if sum(cuts) + name.compute <= name.graphics and same_place:
                    cuts.append(name.compute)
                    starts[id(cuts)] = start if start is not None else starts[id(cuts)]
                    break
            else:
                cuts = [name.compute]
                bins.append(cuts)
                starts[id(cuts)] = start
        for profile, bins in open_entries.items():
            entries.extend(
                LayoutEntry(profile, starts[id(c)], tuple(sorted(c, reverse=True))) for c in bins
            )
        return cls(tuple(entries))

    @classmethod
    def of(cls, profiles: Sequence[str]) -> Layout:
        """Layout of whole instances from a list of profile names."""
        return cls.from_profiles((ProfileName.parse(p), None) for p in profiles)

    def __str__(self) -> str:
        return ", ".join(str(e) for e in self.entries) or "(empty)"

    def __repr__(self) -> str:
        return f"Layout({self})"

    def check(self, board: Board) -> None:
        """Check that every profile and compute cut exists on the board.

        Raises
        ------
        InputError
            A profile is unknown.
        Infeasible
            The compute instances of one entry cannot stand together in it.
        """
        for entry in self.entries:
            profile = board.profile(entry.profile)
            place_compute(board, entry)
            for cut in entry.compute_slices:
                profile.compute_profile(cut)

    def solve(self, board: Board | str | Any) -> PlacedLayout:
        """Give every instance a place.

        Parameters
        ----------
        board : Board, str or Gpu
            Geometry, its name, or a GPU of a `Node`.

        Raises
        ------
        Infeasible
            No placement exists; the message says why.
        """
        target = resolve_board(board)
        self.check(target)
        wanted = [(e.profile, e.start) for e in self.entries]
        return self.attach(target, solve(target, wanted))

    def attach(self, board: Board, placements: Sequence[Placement]) -> PlacedLayout:
        """Give the entries the places of a solution, pinned entries first."""
        left = list(placements)
        entries: list[LayoutEntry] = []
        for entry in sorted(self.entries, key=lambda e: e.start is None):
            for p in left:
                if p.profile == entry.profile and entry.start in (None, p.start):
                    entries.append(LayoutEntry(entry.profile, p.start, entry.compute))
                    left.remove(p)
                    break
        return PlacedLayout(board, tuple(sorted(entries, key=lambda e: e.start or 0)))


def resolve_board(board: Board | str | Any) -> Board:
    """Accept a board, its name, or anything with a ``board`` attribute."""
    if isinstance(board, Board):
        return board
    if isinstance(board, str):
        return load_board(board)
    found = getattr(board, "board", None)
    if isinstance(found, Board):
        return found
    raise InputError.of("board", board, "a Board, a board name or a Gpu")


def place_compute(
    board: Board, entry: LayoutEntry, fixed: Sequence[tuple[int, int]] = ()
) -> tuple[tuple[int, int], ...]:
    """Place the compute instances of one GPU instance.

    Parameters
    ----------
    board : Board
        Geometry.
    entry : LayoutEntry
        GPU instance and its cuts.
    fixed : sequence of (start, slices)
        Compute instances that stand already and stay; the cuts are placed beside them.

    Returns
    -------
    tuple of (start, slices)
        One pair per cut, in the order of `LayoutEntry.compute_slices`.

    Raises
    ------
    Infeasible
        The cuts cannot stand together.
    """
    profile = board.profile(entry.profile)
    cuts = entry.compute_slices
    chosen: list[tuple[int, int]] = list(fixed)

    def extend(index: int) -> bool:
        if index == len(cuts):
            return True
        size = cuts[index]
        for start in profile.compute_profile(size).starts:
            if all(start + size <= s or s + n <= start for s, n in chosen):
                chosen.append((start, size))
                if extend(index + 1):
                    return True
                chosen.pop()
        return False

    if not extend(0):
        wanted = " + ".join(f"{c}c" for c in cuts)
        beside = f" beside {' + '.join(f'{n}c' for _, n in fixed)}" if fixed else ""
        raise Infeasible(
            f"{wanted} cannot stand together{beside} in one {entry.profile} "
            f"({profile.compute_slices} compute slices)",
            [f"{c}c.{entry.profile}" for c in cuts],
        )
    return tuple(chosen[len(fixed) :])


def enumerate_layouts(
    board: Board | str | Any,
    maximal: bool = False,
    placed: bool = True,
    *,
    double_memory: bool = False,
    media: bool = False,
) -> list[PlacedLayout]:
    """List every layout of a board.

    Parameters
    ----------
    board : Board, str or Gpu
        Geometry.
    maximal : bool
        Only layouts to which no further instance can be added.
    placed : bool
        Count places as different; with False one representative per multiset is returned.
    double_memory, media : bool
        Also use the double-memory 1g profile and the profiles with attributes (``+me``, ...).

    Returns
    -------
    list of PlacedLayout
        In a fixed order.

    Examples
    --------
    >>> len(enumerate_layouts("a100-40gb")), len(enumerate_layouts("a100-40gb", placed=False))
    (297, 37)
    >>> len(enumerate_layouts("a100-40gb", maximal=True))
    19
    >>> len(enumerate_layouts("a100-40gb", maximal=True, placed=False))
    14
    """
    target = resolve_board(board)
    profiles = target.selected_profiles(double_memory=double_memory, media=media)
    layouts = []
    seen: set[tuple[str, ...]] = set()
    for placements in enumerate_placed(target, profiles):
        if maximal and not is_maximal(target, placements, profiles):
            continue
        entries = tuple(LayoutEntry(p.profile, p.start) for p in sorted(placements))
        layout = PlacedLayout(target, entries)
        if not placed:
            if layout.multiset in seen:
                continue
            seen.add(layout.multiset)
        layouts.append(layout)
    return layouts


def describe_multiset(profiles: Sequence[str]) -> str:
    """Write a multiset of profiles shortly.

    Examples
    --------
    >>> describe_multiset(["2g.10gb", "1g.5gb", "1g.5gb"])
    '2g.10gb + 2 x 1g.5gb'
    """
    counts = Counter(profiles)
    return " + ".join(n if c == 1 else f"{c} x {n}" for n, c in counts.items())
