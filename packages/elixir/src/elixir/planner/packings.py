"""What a plan is made for, and the ways to pack a traced model's parameters into chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from elixir.planner import packing, paper
from elixir.planner.result import ChunkPlan
from elixir.profile.hardware import Hardware
from elixir.profile.operators import Operator, Rule
from elixir.profile.trace import ModelProfile
from elixir.runtime.tile import Split

Override = tuple[str, str | None, str | None]
Retrace = Callable[[tuple[Rule, ...]], Sequence["Variant"]]


@dataclass(frozen=True)
class Request:
    """What a plan is made for."""

    device_budget: int
    host_budget: int | None
    hardware: Hardware
    policy: str = "elixir"
    device: str = "cpu"
    dtype: str = "float32"
    optimizer: str = "adamw"
    moments: str = "fp32"
    prefetch: int = 2
    step_in_backward: bool = False
    keep_gradients: bool = True
    world: int = 1
    machines: int = 1
    use_disk: bool = False
    overrides: tuple[Override, ...] = ()
    activation_margin: float = 1.0
    batch: tuple[str, ...] = ()
    batch_bytes: int = 0
    tensor_parallel: int = 1
    rules: tuple[Rule, ...] = ()

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer states and fp32 master per element."""
        moments = {"adamw": 8, "sgd": 4}.get(self.optimizer, 8)
        if self.moments == "8bit":
            moments = 2
        return moments + (0 if self.dtype == "float32" else 4)


@dataclass(frozen=True)
class Variant:
    """A choice of recomputed and of offloaded modules, with its trace."""

    recompute: tuple[str, ...]
    profile: ModelProfile
    offload: tuple[str, ...] = ()
    operators: tuple[Operator, ...] = ()
    splits: tuple[Split, ...] = ()

    @property
    def offload_room(self) -> int:
        """Bytes of activations that may wait on the device for their copy out."""
        return 2 * max((size for *_, size in self.profile.offloads), default=0)


def packings(profile: ModelProfile, request: Request) -> list[tuple[list[ChunkPlan], bool]]:
    """Return packings, and whether each is the same for every budget (and may name the least)."""
    sizes = [packing.aligned(p.numel * profile.itemsize) for p in profile.parameters]
    rules = _rules(profile, request.overrides)
    members = packing.groups(profile, rules)
    kinds = [rules.get(group[0]) for group in members]
    infos = profile.parameters
    wide = [infos[g[0]].wide and not infos[g[0]].shared for g in members]
    alone = [
        infos[g[0]].wide or infos[g[0]].shared or _expert(kind) for g, kind in zip(members, kinds)
    ]
    first = [infos[g[0]].first_use < 0 for g in members]
    labels = [(kind, unused) for kind, unused in zip(kinds, first, strict=True)]
    if request.policy == "paper":
        return [
            (_paper_chunks(profile, members, sizes, alone, wide, request), False),
            (
                _paper_chunks(
                    profile, members, sizes, alone, wide, replace(request, device_budget=1)
                ),
                True,
            ),
        ]
    total = sum(sizes)
    largest = max(sum(sizes[i] for i in g) for g in members)
    targets, target = [], max(total // 512, 1)
    while target < max(total // 3, 2):
        targets.append(target)
        target *= 2
    targets = sorted({*targets[:: max(1, len(targets) // 5)], largest})
    found: list[tuple[list[ChunkPlan], bool]] = []
    seen = set()
    for target in targets:
        lists = packing.pack(members, sizes, target, alone, labels)
        key = tuple(c[0] for c in lists)
        if key in seen:
            continue
        seen.add(key)
        found.append(([_chunk(profile, c, sizes, rules, wide, members) for c in lists], True))
    return found


def paper_packing(profile: ModelProfile, request: Request) -> list[ChunkPlan]:
    """Return the equal chunks that the paper's search chooses."""
    return packings(profile, replace(request, policy="paper"))[0][0]


def _expert(kind: object) -> bool:
    return isinstance(kind, tuple) and kind[1] == "expert"


def _rules(
    profile: ModelProfile, overrides: Sequence[Override]
) -> dict[int, tuple[str | None, str | None]]:
    rules: dict[int, tuple[str | None, str | None]] = {}
    for pattern, tier, shard in overrides:
        hit = [i for i, p in enumerate(profile.parameters) if fnmatchcase(p.name, pattern)]
        if not hit:
            raise ValueError(f"override: pattern {pattern!r} matches no parameter")
        for i in hit:
            old = rules.get(i, (None, None))
            rules[i] = (tier or old[0], shard or old[1])
    return rules


def _chunk(
    profile: ModelProfile,
    indices: Sequence[int],
    sizes: Sequence[int],
    rules: dict[int, tuple[str | None, str | None]],
    wide: Sequence[bool],
    members: Sequence[Sequence[int]],
    size: int | None = None,
) -> ChunkPlan:
    offsets, offset = [], 0
    for i in indices:
        offsets.append(offset)
        offset += sizes[i]
    infos = [profile.parameters[i] for i in indices]
    tier, shard = rules.get(indices[0], (None, None))
    default = "pinned" if infos[0].wide and not infos[0].shared else "host"
    return ChunkPlan(
        tuple(p.name for p in infos),
        tuple(offsets),
        size or offset,
        sum(p.numel for p in infos if p.trainable),
        tier or default,
        shard or "shard",
        tuple(p.gradients for p in infos),
    )


def _paper_chunks(
    profile: ModelProfile,
    members: list[list[int]],
    sizes: list[int],
    alone: Sequence[bool],
    wide: Sequence[bool],
    request: Request,
) -> list[ChunkPlan]:
    """Equal chunks of the public tensors; every shared or wide tensor keeps a block of its own."""
    public = [i for g, single in zip(members, alone, strict=True) if not single for i in g]
    private = [g for g, single in zip(members, alone, strict=True) if single]
    rank = {i: k for k, i in enumerate(public)}
    steps = [[rank[i] for i in step if i in rank] for step in profile.steps]
    elements = [sizes[i] // profile.itemsize for i in public]
    fixed = sum(sizes[i] for g in private for i in g)
    gradient = max(p.numel for p in profile.parameters) * profile.itemsize
    budget = (
        request.device_budget - profile.activation_bytes - gradient - fixed
    ) // profile.itemsize
    chunks = [replace(_chunk(profile, g, sizes, {}, wide, members), tier="pinned") for g in private]
    if not public:
        return chunks
    if sum(elements) * profile.itemsize > 128 * paper.MIB:
        candidates: Sequence[int] = paper.candidate_sizes(elements, profile.itemsize)
    else:  # the authors' least chunk is 32 MiB; smaller models keep their ratio of sizes
        least = max(max(elements), sum(elements) // 64)
        candidates = range(least, 3 * least + 1, max(least // 64, 1))
    try:
        found = paper.search(
            elements,
            [s for s in steps if s],
            max(budget, 1),
            itemsize=profile.itemsize,
            overlap=request.prefetch > 0,
            candidates=candidates,
        )
        size, lists = found.chunk_size, [list(g) for g in found.groups]
    except ValueError:
        size = min(candidates)
        lists = paper.first_fit(elements, size)
    for group in lists:
        indices = [public[k] for k in group]
        chunks.append(
            _chunk(
                profile, indices, sizes, {}, wide, members, packing.aligned(size * profile.itemsize)
            )
        )
    return chunks
