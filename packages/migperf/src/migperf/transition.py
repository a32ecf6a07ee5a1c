"""From the instances that exist to those that are wanted, with as little destroyed as possible.

Pure computation: every placement of the wanted layout is enumerated (a GPU has at most a few
thousand legal states), and the one that keeps most is taken, so the number of destroyed instances
is minimal by construction. Placements are explicit, so the order of creation does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .boards import Board
from .errors import Infeasible, InstanceInUse
from .layout import Layout, LayoutEntry, PlacedLayout, place_compute
from .placement import Placement, all_solutions, fragmentation, solve

__all__ = [
    "Action",
    "ComputeInstance",
    "GpuInstance",
    "Transition",
    "plan_exact",
    "plan_transition",
]


@dataclass(frozen=True, order=True)
class ComputeInstance:
    """A compute instance that exists.

    Parameters
    ----------
    start, slices : int
        Place inside the GPU instance.
    id : int
        Driver's id inside the GPU instance.
    pids : tuple of int
        Processes that run on it.
    """

    start: int
    slices: int
    id: int = field(default=-1, compare=False)
    pids: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, order=True)
class GpuInstance:
    """A GPU instance that exists.

    Parameters
    ----------
    start, size : int
        Memory slices.
    profile : str
        Profile name.
    compute : tuple of ComputeInstance
        What it is cut into, sorted.
    id : int
        Driver's id.
    """

    start: int
    size: int
    profile: str
    compute: tuple[ComputeInstance, ...] = ()
    id: int = field(default=-1, compare=False)

    @property
    def placement(self) -> Placement:
        """Profile and place without the compute instances."""
        return Placement(self.start, self.size, self.profile)

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes on any of its compute instances."""
        return tuple(pid for c in self.compute for pid in c.pids)

    def to_json(self) -> dict[str, Any]:
        """Plain form for the journal: places only, ids and processes change."""
        return {
            "profile": self.profile,
            "start": self.start,
            "size": self.size,
            "compute": [[c.start, c.slices] for c in self.compute],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GpuInstance:
        """Inverse of `to_json`."""
        compute = tuple(sorted(ComputeInstance(s, n) for s, n in data["compute"]))
        return cls(data["start"], data["size"], data["profile"], compute)

    def __str__(self) -> str:
        entry = LayoutEntry(self.profile, self.start, tuple(c.slices for c in self.compute))
        return str(entry) if self.compute else f"{self.profile}@{self.start}[]"


Kind = Literal["destroy_compute", "destroy_gpu", "create_gpu", "create_compute"]


@dataclass(frozen=True)
class Action:
    """One driver call.

    Parameters
    ----------
    kind : str
        ``destroy_compute``, ``destroy_gpu``, ``create_gpu`` or ``create_compute``.
    profile : str
        GPU instance profile.
    start, size : int
        Place of the GPU instance.
    compute_start, compute_slices : int
        Place of the compute instance inside it; -1 where none is meant.
    """

    kind: Kind
    profile: str
    start: int
    size: int
    compute_start: int = -1
    compute_slices: int = -1

    def __str__(self) -> str:
        place = f"{self.profile}@{self.start}"
        if self.kind.endswith("gpu"):
            return f"{self.kind.split('_')[0]} {place}"
        return f"{self.kind.split('_')[0]} {self.compute_slices}c@{self.compute_start} in {place}"

    def to_json(self) -> dict[str, Any]:
        """Plain form for the journal."""
        return dict(vars(self))

    def applied_to(self, instances: Sequence[GpuInstance]) -> tuple[GpuInstance, ...]:
        """Instances after the call."""
        place = Placement(self.start, self.size, self.profile)
        if self.kind == "create_gpu":
            new = GpuInstance(self.start, self.size, self.profile)
            return tuple(sorted((*instances, new)))
        out = []
        for gi in instances:
            if gi.placement != place:
                out.append(gi)
            elif self.kind == "create_compute":
                cut = ComputeInstance(self.compute_start, self.compute_slices)
                cuts = tuple(sorted((*gi.compute, cut)))
                out.append(GpuInstance(gi.start, gi.size, gi.profile, cuts, gi.id))
            elif self.kind == "destroy_compute":
                cuts = tuple(c for c in gi.compute if c.start != self.compute_start)
                out.append(GpuInstance(gi.start, gi.size, gi.profile, cuts, gi.id))
        return tuple(sorted(out))


@dataclass(frozen=True)
class Transition:
    """What has to be done, in order.

    Parameters
    ----------
    board : Board
        Geometry.
    before, after : tuple of GpuInstance
        Instances at the start and at the end.
    actions : tuple of Action
        Calls in order: destroy first, then create.
    """

    board: Board
    before: tuple[GpuInstance, ...]
    after: tuple[GpuInstance, ...]
    actions: tuple[Action, ...]

    @property
    def kept(self) -> tuple[GpuInstance, ...]:
        """GPU instances that no action touches, apart from their compute instances."""
        places = {gi.placement for gi in self.after}
        gone = {a.start for a in self.actions if a.kind == "destroy_gpu"}
        return tuple(g for g in self.before if g.placement in places and g.start not in gone)

    def count(self, kind: Kind) -> int:
        """Count the actions of a kind."""
        return sum(a.kind == kind for a in self.actions)

    def __repr__(self) -> str:
        lines = [f"Transition on {self.board.name}: {len(self.kept)} instance(s) kept"]
        lines += [f"  {i + 1}. {a}" for i, a in enumerate(self.actions)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain form for JSON output."""
        return {
            "schema_version": 1,
            "board": self.board.name,
            "before": [g.to_json() for g in self.before],
            "after": [g.to_json() for g in self.after],
            "kept": [str(g.placement) for g in self.kept],
            "actions": [a.to_json() for a in self.actions],
        }


def _take_all(pool: list[int], items: list[int]) -> bool:
    """Remove the items from the pool; False where one is not there."""
    for item in items:
        if item not in pool:
            return False
        pool.remove(item)
    return True


def _compute_diff(
    board: Board, gi: GpuInstance, wanted: tuple[int, ...]
) -> tuple[list[ComputeInstance], list[ComputeInstance]]:
    """Compute instances to destroy and to create so that `gi` holds the wanted cuts."""
    best: tuple[tuple[int, int], list[ComputeInstance], list[ComputeInstance]] | None = None
    existing = gi.compute
    for subset in range(1 << len(existing)):
        kept = [c for i, c in enumerate(existing) if subset >> i & 1]
        missing = list(wanted)
        if not _take_all(missing, [c.slices for c in kept]):
            continue
        gone = [c for c in existing if c not in kept]
        running = sum(bool(c.pids) for c in gone)
        if best is not None and best[0] <= (running, len(gone)):
            continue
        created: list[ComputeInstance] = []
        if missing:
            entry = LayoutEntry(gi.profile, gi.start, tuple(missing))
            fixed = [(c.start, c.slices) for c in kept]
            try:
                created = [ComputeInstance(s, n) for s, n in place_compute(board, entry, fixed)]
            except Infeasible:
                continue
        best = ((running, len(gone)), gone, created)
    if best is None:
        raise Infeasible(f"{wanted} compute slices cannot stand in one {gi.profile}")
    return best[1], best[2]


def _actions(
    board: Board,
    before: Sequence[GpuInstance],
    target: Sequence[tuple[Placement, tuple[int, ...]]],
) -> tuple[list[GpuInstance], list[tuple[GpuInstance, ComputeInstance]], list[Action]]:
    """GPU instances to destroy, compute instances to destroy in kept ones, and all actions."""
    wanted = dict(target)
    gone = [g for g in before if g.placement not in wanted]
    destroys: list[Action] = []
    creates: list[Action] = []
    cut_away: list[tuple[GpuInstance, ComputeInstance]] = []
    for gi in gone:
        for c in gi.compute:
            destroys.append(
                Action("destroy_compute", gi.profile, gi.start, gi.size, c.start, c.slices)
            )
        destroys.append(Action("destroy_gpu", gi.profile, gi.start, gi.size))
    existing = {g.placement: g for g in before}
    for place, cuts in target:
        found = existing.get(place)
        if found is None:
            creates.append(Action("create_gpu", place.profile, place.start, place.size))
            found = GpuInstance(place.start, place.size, place.profile)
        removed, added = _compute_diff(board, found, cuts)
        for c in removed:
            cut_away.append((found, c))
            destroys.append(
                Action("destroy_compute", place.profile, place.start, place.size, c.start, c.slices)
            )
        for c in added:
            creates.append(
                Action("create_compute", place.profile, place.start, place.size, c.start, c.slices)
            )
    return gone, cut_away, destroys + creates


def _finish(
    board: Board, before: Sequence[GpuInstance], actions: Sequence[Action]
) -> tuple[GpuInstance, ...]:
    state = tuple(sorted(before))
    for action in actions:
        state = action.applied_to(state)
    return state


def plan_transition(
    board: Board,
    before: Sequence[GpuInstance],
    layout: Layout | PlacedLayout,
    *,
    keep_running: bool = True,
) -> Transition:
    """Find the cheapest way from the existing instances to a layout.

    Among all placements of the layout the one is taken that destroys, in this order of weight,
    fewest instances with running processes, fewest GPU instances, fewest compute instances, and
    leaves the least fragmentation.

    Parameters
    ----------
    board : Board
        Geometry.
    before : sequence of GpuInstance
        What exists.
    layout : Layout or PlacedLayout
        What shall exist afterwards, completely.
    keep_running : bool
        Refuse to destroy what a process runs on.

    Raises
    ------
    Infeasible
        The layout cannot be placed at all.
    InstanceInUse
        Every placement would destroy an instance with a running process.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> board = load_board("a100-80gb")
    >>> before = [GpuInstance(0, 4, "4g.40gb", (ComputeInstance(0, 4, 0, (77,)),))]
    >>> plan_transition(board, before, Layout.parse("1g.10gb*2, 4g.40gb"))
    Transition on a100-80gb: 1 instance(s) kept
      1. create 1g.10gb@4
      2. create 1c@0 in 1g.10gb@4
      3. create 1g.10gb@6
      4. create 1c@0 in 1g.10gb@6
    """
    spec = layout if isinstance(layout, Layout) else Layout(layout.entries)
    spec.check(board)
    wanted = [(e.profile, e.start) for e in spec.entries]
    solve(board, wanted)  # raises with the reason where nothing fits
    ranked = {p.name: {s: i for i, s in enumerate(p.starts)} for p in board.gpu_profiles}
    best: tuple[tuple[Any, ...], list[Action], list[int]] | None = None
    for solution in all_solutions(board, wanted):
        for target in _assignments(spec, solution, before):
            gone, cut_away, actions = _actions(board, before, target)
            pids = [pid for g in gone for pid in g.pids]
            pids += [pid for _, c in cut_away for pid in c.pids]
            order = sorted(ranked[p.profile][p.start] for p in solution)
            score = (
                len(pids) if keep_running else 0,
                len(gone),
                len(cut_away),
                len(actions),
                fragmentation(board, solution),
                order,
            )
            if best is None or score < best[0]:
                best = (score, actions, pids)
    if best is None:
        raise Infeasible(f"{spec}: no placement on {board.name}")
    _, actions, pids = best
    if keep_running and pids:
        raise InstanceInUse(
            f"layout {spec}: every placement destroys an instance with running processes "
            f"(pids {', '.join(map(str, sorted(set(pids))))}); end them, or keep their instance "
            "in the layout",
            sorted(set(pids)),
        )
    ordered = sorted(actions, key=_creation_order(board, actions))
    return Transition(board, tuple(sorted(before)), _finish(board, before, ordered), tuple(ordered))


def _creation_order(board: Board, actions: Sequence[Action]) -> Any:
    """Destroy before create; otherwise keep the order of the list."""
    index = {id(a): i for i, a in enumerate(actions)}
    return lambda a: (a.kind.startswith("create"), index[id(a)])


def _assignments(
    spec: Layout, solution: Sequence[Placement], before: Sequence[GpuInstance]
) -> list[list[tuple[Placement, tuple[int, ...]]]]:
    """Give the cuts of the entries to the places of a solution, matching what exists."""
    existing = {g.placement: sorted((c.slices for c in g.compute), reverse=True) for g in before}
    left = list(spec.entries)
    target: list[tuple[Placement, tuple[int, ...]]] = []
    # Places whose present cuts equal an entry's come first, so that this entry gets that place.
    pinned = [p for p in solution if any(e.start == p.start for e in left)]
    for place in [*pinned, *(p for p in solution if p not in pinned)]:
        fitting = [e for e in left if e.profile == place.profile and e.start in (None, place.start)]
        now = existing.get(place)
        fitting.sort(key=lambda e: (e.start is None, sorted(e.compute_slices, reverse=True) != now))
        entry = fitting[0]
        left.remove(entry)
        target.append((place, entry.compute_slices))
    order = {id(p): i for i, p in enumerate(solution)}
    target.sort(key=lambda item: order.get(id(item[0]), 0))
    return [target]


def plan_exact(
    board: Board, before: Sequence[GpuInstance], after: Sequence[GpuInstance]
) -> Transition:
    """Way to a state with all places given; used to resume and to roll back.

    Raises
    ------
    InstanceInUse
        A process runs on what would have to go.
    """
    goal = {g.placement: g for g in after}
    destroys: list[Action] = []
    creates: list[Action] = []
    pids: list[int] = []
    for gi in before:
        target = goal.get(gi.placement)
        stay = set() if target is None else {(c.start, c.slices) for c in target.compute}
        for c in gi.compute:
            if (c.start, c.slices) not in stay:
                pids += c.pids
                destroys.append(
                    Action("destroy_compute", gi.profile, gi.start, gi.size, c.start, c.slices)
                )
        if target is None:
            destroys.append(Action("destroy_gpu", gi.profile, gi.start, gi.size))
    existing = {g.placement: {(c.start, c.slices) for c in g.compute} for g in before}
    for gi in after:
        if gi.placement not in existing:
            creates.append(Action("create_gpu", gi.profile, gi.start, gi.size))
        for c in gi.compute:
            if (c.start, c.slices) not in existing.get(gi.placement, set()):
                creates.append(
                    Action("create_compute", gi.profile, gi.start, gi.size, c.start, c.slices)
                )
    if pids:
        raise InstanceInUse(f"processes {sorted(set(pids))} run on what would have to go", pids)
    actions = (*destroys, *creates)
    return Transition(board, tuple(sorted(before)), _finish(board, before, actions), actions)
