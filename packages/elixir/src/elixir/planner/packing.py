"""Parameters to chunks: in order of first use, cut only between modules, of unequal size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from elixir.planner.result import ChunkPlan
from elixir.profile.trace import ModelProfile

ALIGNMENT = 64


def aligned(size: int) -> int:
    """Round bytes up to a multiple of 64: vector kernels see every tensor as torch allocates it."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def share_elements(size: int, itemsize: int, world: int) -> int:
    """Return the elements of each rank's part of a chunk of ``size`` bytes, padding included."""
    return aligned(-(-size // itemsize // world) * 4) // 4


def transit_elements(chunks: Sequence[ChunkPlan], itemsize: int, world: int) -> int:
    """Return the elements in which divided gradients gather: the largest two neighbours.

    While one chunk's gradients are reduced, those of the next arrive.
    """
    sizes = [
        share_elements(c.bytes, itemsize, world) * world
        for c in chunks
        if c.trainable and c.shard != "replicate"
    ]
    if world == 1 or not sizes:
        return 0
    return max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True))


def module_sets(profile: ModelProfile) -> dict[str, list[int]]:
    """Return which parameters each module's call needs: its own and those it reads of others."""
    sets: dict[str, list[int]] = {}
    for index, info in enumerate(profile.parameters):
        sets.setdefault(info.owner, []).append(index)
    for module, extra in profile.extras.items():
        mine = sets.setdefault(module, [])
        mine += [i for i in extra if i not in mine]
    return sets


def groups(profile: ModelProfile, key: Mapping[int, object] | None = None) -> list[list[int]]:
    """Return parameters that should share a chunk, in order of first use.

    Shared parameters stand alone; so do wide ones (their module runs while others do). ``key``
    splits
    groups further (patterns of ``override``).
    """
    sets = module_sets(profile)
    home: dict[int, str] = {}
    for module, members in sets.items():
        for index in members:
            if module in profile.extras or index not in home:
                home[index] = module
    found: dict[object, list[int]] = {}
    last = len(profile.steps)
    order = sorted(
        range(len(profile.parameters)),
        key=lambda i: (f if (f := profile.parameters[i].first_use) >= 0 else last, i),
    )
    for index in order:
        info = profile.parameters[index]
        label: object = home[index]
        if info.shared:
            label = ("shared", index)
        elif info.wide:
            label = ("wide", info.owner)
        found.setdefault((label, info.first_use < 0, (key or {}).get(index)), []).append(index)
    return list(found.values())


def pack(
    members: Sequence[Sequence[int]],
    sizes: Sequence[int],
    target: int,
    alone: Sequence[bool],
    kinds: Sequence[object],
) -> list[list[int]]:
    """Fill chunks with whole groups up to ``target`` bytes.

    Parameters
    ----------
    members
        Groups of parameter indices.
    sizes
        Bytes of each parameter, aligned.
    alone
        Groups that must not share a chunk.
    kinds
        Only neighbours of equal kind share a chunk.
    """
    chunks: list[list[int]] = []
    filled, open_kind = 0, None
    for group, single, kind in zip(members, alone, kinds, strict=True):
        size = sum(sizes[i] for i in group)
        if chunks and not single and open_kind == (kind,) and filled + size <= target:
            chunks[-1] += group
            filled += size
        else:
            chunks.append(list(group))
            filled, open_kind = size, None if single else (kind,)
    return chunks
