"""The search: recompute, offload or keep x chunk size x resident chunks, by the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

from elixir.errors import InfeasiblePlanError
from elixir.planner import packing
from elixir.planner.packings import Override, Request, Retrace, Variant, packings, paper_packing
from elixir.planner.placement import knapsack
from elixir.planner.result import OPERATORS, ChunkPlan, Plan
from elixir.planner.simulate import ChunkCost, Timeline, simulate, step_seconds
from elixir.units import format_bytes

DISTURBANCE = 0.1
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class _Candidate:
    variant: Variant
    chunks: list[ChunkPlan]
    steps: list[list[int]]
    seconds: list[float]
    gradient: int
    cache: int
    line: Timeline | None = None


def search(variants: Sequence[Variant], request: Request, retrace: Retrace | None = None) -> Plan:
    """Return the plan with the least predicted step time that fits.

    ``retrace`` gives the variants of a model whose operators are divided by rules.

    Raises
    ------
    InfeasiblePlanError
        If none fits; names the least budget.
    """
    candidates: list[_Candidate] = []
    leasts: list[tuple[int, int, _Candidate]] = []

    def consider(variant: Variant, chunks: list[ChunkPlan], names_least: bool) -> None:
        candidate = _prepare(variant, chunks, request)
        fixed = _fixed(candidate, request)
        cache = _least_cache(candidate, request)
        if names_least:
            leasts.append((fixed + cache, cache, candidate))
        room = request.device_budget - fixed
        if room < cache:
            return
        total = sum(c.bytes for c in candidate.chunks if c.tier in ("host", "disk"))
        candidate.cache = min(room, max(total, cache))
        candidate.line = _simulate(candidate, request)
        if not candidate.line.feasible:
            candidate.cache = cache
            candidate.line = _simulate(candidate, request)
        candidates.append(candidate)

    for variant in variants:
        for chunks, names_least in packings(variant.profile, request):
            consider(variant, chunks, names_least)
    if candidates and request.policy == "elixir" and not request.overrides:
        # the paper's own packing competes: a plan is never slower than the paper's
        for variant in variants:
            consider(variant, paper_packing(variant.profile, request), False)
    least, cache, smallest = min(leasts, key=lambda entry: entry[0])
    if request.policy == "paper":
        least = _paper_least(variants, request, least)
    if not candidates:
        raise InfeasiblePlanError(
            f"device_budget={request.device_budget}: too small by "
            f"{least - request.device_budget} bytes; the least budget is {least} bytes "
            f"({format_bytes(least)}){_largest(smallest, cache)}",
            least,
        )
    candidates.sort(key=_cost)
    if request.policy == "elixir" and request.world == 1 and request.moments == "fp32":
        bases: dict[tuple[tuple[str, ...], ...], list[_Candidate]] = {}
        for candidate in candidates:
            variant = candidate.variant
            bases.setdefault((variant.recompute, variant.offload), []).append(candidate)
        best_bases = [c for group in bases.values() for c in group[:2]]
        found = [c for base in best_bases for c in _with_residents(base, request)]
        candidates = sorted([*candidates, *found], key=_cost)
    best = candidates[0]
    return _finish(best, variants, request, least, retrace)


def _paper_least(variants: Sequence[Variant], request: Request, least: int) -> int:
    """Return the least budget of the paper's plan, whose chunks depend on the budget."""
    low = least // 2
    while least - low > least // 256:
        middle = (low + least) // 2
        trial = replace(request, device_budget=middle)
        fits = any(
            _fixed(candidate, trial) + _least_cache(candidate, trial) <= middle
            for variant in variants
            for candidate in [_prepare(variant, paper_packing(variant.profile, trial), trial)]
        )
        low, least = (low, middle) if fits else (middle, least)
    return least


def _largest(candidate: _Candidate, cache: int) -> str:
    """Say what the least budget is made of."""
    profile = candidate.variant.profile
    info = max(profile.parameters, key=lambda p: p.numel)
    advice = "" if candidate.variant.splits else " (split='auto' cuts linear maps and embeddings)"
    largest = format_bytes(info.numel * profile.itemsize)
    return (
        f": activations {format_bytes(profile.activation_bytes)}, gradients on their way "
        f"{format_bytes(candidate.gradient)}, chunk cache {format_bytes(cache)}; the largest "
        f"tensor, {info.name}, takes {largest} in one piece{advice}"
    )


def _cost(candidate: _Candidate) -> tuple[float, int, int]:
    line = candidate.line
    assert line is not None
    # what runs beside compute disturbs it: of nearly equal plans the one that moves less is better
    beside = line.h2d + line.d2h + line.adam + line.disk
    return round(line.seconds + DISTURBANCE * beside, 9), line.loaded_bytes, len(candidate.chunks)


def _prepare(variant: Variant, chunks: list[ChunkPlan], request: Request) -> _Candidate:
    profile = variant.profile
    names = {p.name: i for i, p in enumerate(profile.parameters)}
    home = {names[n]: k for k, c in enumerate(chunks) for n in c.parameters}
    sets = packing.module_sets(profile)
    reach: dict[int, set[int]] = {}
    for members in sets.values():
        together = {home[i] for i in members if not profile.parameters[i].wide}
        for i in members:
            reach.setdefault(i, set()).update(together or {home[i]})
    steps, seconds = [], step_seconds(profile.flops, profile.traffic, request.hardware)
    for step in profile.steps:
        need: set[int] = set()
        for i in step:
            need |= reach[i] | {home[i]} if not profile.parameters[i].shared else {home[i]}
        steps.append(sorted(need))
    gradient = 2 * max(
        (packing.aligned(p.numel * profile.itemsize) for p in profile.parameters if p.trainable),
        default=0,
    )
    return _Candidate(variant, chunks, steps, seconds, gradient, 0)


def resident_bytes(chunk: ChunkPlan, itemsize: int, request: Request) -> int:
    """Return the device bytes of a chunk that stays."""
    if chunk.tier == "pinned":
        return chunk.bytes
    count = 2 if request.dtype == "float32" else 3
    slots = 2 if request.keep_gradients else 1
    return slots * chunk.bytes + count * packing.aligned(4 * (chunk.bytes // itemsize))


def _fixed(candidate: _Candidate, request: Request) -> int:
    profile = candidate.variant.profile
    held = sum(
        resident_bytes(c, profile.itemsize, request)
        for c in candidate.chunks
        if c.tier in ("device", "pinned")
    )
    activations = int(profile.activation_bytes * request.activation_margin)
    return activations + candidate.variant.offload_room + candidate.gradient + held


def _costs(candidate: _Candidate, request: Request) -> list[ChunkCost]:
    itemsize = candidate.variant.profile.itemsize
    return [
        ChunkCost(
            c.bytes,
            c.trainable // request.world,
            c.tier,
            request.state_bytes,
            itemsize * request.world,
            len(c.parameters),
        )
        for c in candidate.chunks
    ]


def _simulate(candidate: _Candidate, request: Request, prefetch: int | None = None) -> Timeline:
    return simulate(
        _costs(candidate, request),
        candidate.steps,
        candidate.variant.profile.forward_steps,
        candidate.seconds,
        candidate.cache,
        request.hardware,
        prefetch=request.prefetch if prefetch is None else prefetch,
        step_in_backward=request.step_in_backward,
        gradient_room=candidate.gradient / 2,
        offloads=candidate.variant.profile.offloads,
        offload_room=candidate.variant.offload_room or float("inf"),
    )


def _least_cache(candidate: _Candidate, request: Request) -> int:
    """Return the least cache with which every step's chunks fit together, by bisection."""
    moving = [c.tier in ("host", "disk") for c in candidate.chunks]
    sizes = [c.bytes for c in candidate.chunks]
    if not any(moving):
        return 0
    # a parameter that the trace did not see must fit as well
    low = max(
        max(sum(sizes[c] for c in step if moving[c]) for step in candidate.steps),
        max(s for s, m in zip(sizes, moving, strict=True) if m),
    )
    widest = max(len(step) for step in candidate.steps)
    if widest <= 1 or _feasible(candidate, request, low):
        return low
    high = low
    while not _feasible(candidate, request, high):
        high += low
    while high - low > 64:
        middle = (low + high) // 128 * 64
        low, high = (low, middle) if _feasible(candidate, request, middle) else (middle, high)
    return high


def _feasible(candidate: _Candidate, request: Request, cache: int) -> bool:
    trial = replace_cache(candidate, cache)
    return _simulate(trial, request).feasible and _simulate(trial, request, 0).feasible


def replace_cache(candidate: _Candidate, cache: int) -> _Candidate:
    """Return a copy with another cache size."""
    return _Candidate(
        candidate.variant,
        candidate.chunks,
        candidate.steps,
        candidate.seconds,
        candidate.gradient,
        cache,
    )


def _with_residents(base: _Candidate, request: Request) -> list[_Candidate]:
    """Spend a share of the cache on chunks that stay with their states, chosen by knapsack."""
    itemsize = base.variant.profile.itemsize
    least = _least_cache(base, request)
    room = request.device_budget - _fixed(base, request)
    forced = {p for p, tier, _ in request.overrides if tier}
    free = [
        k
        for k, c in enumerate(base.chunks)
        if c.tier == "host" and not any(fnmatchcase(n, f) for n in c.parameters for f in forced)
    ]
    uses = [0] * len(base.chunks)
    for step in base.steps:
        for k in step:
            uses[k] += 1
    hardware, found = request.hardware, []
    values, weights = [], []
    for k in free:
        chunk = base.chunks[k]
        saved = min(uses[k], 2) * chunk.bytes / hardware.h2d
        if chunk.trainable:
            saved += chunk.bytes / hardware.d2h
            saved += chunk.trainable / hardware.adam_host - chunk.trainable / hardware.adam_device
        values.append(saved)
        weights.append(resident_bytes(replace(chunk, tier="device"), itemsize, request))
    everything = sum(weights) <= room
    for fraction in (*FRACTIONS[1:], 2.0):
        if fraction == 2.0:
            if not everything:
                continue
            chosen = list(range(len(free)))
        else:
            chosen = knapsack(values, weights, int((room - least) * fraction))
        if not chosen:
            continue
        stay = {free[i] for i in chosen}
        chunks = [replace(c, tier="device") if k in stay else c for k, c in enumerate(base.chunks)]
        trial = _prepare(base.variant, chunks, request)
        left = request.device_budget - _fixed(trial, request)
        moving = sum(c.bytes for c in chunks if c.tier in ("host", "disk"))
        trial.cache = min(left, moving)
        if trial.cache < _least_cache(trial, request):
            continue
        trial.line = _simulate(trial, request)
        if trial.line.feasible:
            found.append(trial)
    return found


def _finish(
    best: _Candidate,
    variants: Sequence[Variant],
    request: Request,
    least: int,
    retrace: Retrace | None,
) -> Plan:
    profile = best.variant.profile
    chunks, host, disk = _host(best, request)
    best.chunks = chunks
    line = _simulate(best, request)
    names = [p.name for p in profile.parameters]
    held = sum(
        resident_bytes(c, profile.itemsize, request)
        for c in chunks
        if c.tier in ("device", "pinned")
    )

    def again(device_budget: int | None = None, override: Override | None = None) -> Plan:
        changed, found = request, variants
        if device_budget is not None:
            changed = replace(changed, device_budget=device_budget)
        if override is not None and override[2] in OPERATORS:
            assert retrace is not None
            changed = replace(changed, rules=(*changed.rules, (override[0], override[2])))
            found = retrace(changed.rules)
        elif override is not None:
            changed = replace(changed, overrides=(*changed.overrides, override))
        return search(found, changed, retrace)

    again_typed: Callable[..., Plan] = again
    return Plan(
        fingerprint=profile.fingerprint,
        policy=request.policy,
        device=request.device,
        dtype=request.dtype,
        device_budget=request.device_budget,
        host_budget=request.host_budget,
        chunks=tuple(chunks),
        steps=tuple(tuple(s) for s in best.steps),
        forward_steps=profile.forward_steps,
        step_seconds=tuple(best.seconds),
        extras={m: tuple(names[i] for i in v) for m, v in profile.extras.items()},
        recompute=best.variant.recompute,
        offload=best.variant.offload,
        offloads=tuple(profile.offloads),
        offload_bytes=best.variant.offload_room,
        activation_bytes=int(profile.activation_bytes * request.activation_margin),
        gradient_bytes=best.gradient,
        cache_bytes=best.cache,
        resident_bytes=held,
        host_bytes=host,
        disk_bytes=disk,
        least_budget=least,
        prefetch=request.prefetch,
        step_in_backward=request.step_in_backward,
        keep_gradients=request.keep_gradients,
        optimizer=request.optimizer,
        moments=request.moments,
        world=request.world,
        hardware=asdict(request.hardware),
        predicted={
            k: float(getattr(line, k))
            for k in (
                "seconds",
                "compute",
                "h2d",
                "d2h",
                "adam",
                "disk",
                "stall",
                "loads",
                "loaded_bytes",
                "stored_bytes",
                "offloaded_bytes",
            )
        },
        batch=request.batch,
        batch_bytes=request.batch_bytes,
        notes=(*profile.notes, *_notes(best)),
        tensor_parallel=request.tensor_parallel,
        splits=tuple((s.modules, s.rows) for s in best.variant.splits),
        operators=tuple((o.module, o.kind, o.whole) for o in best.variant.operators),
        again=again_typed,
    )


def _notes(best: _Candidate) -> tuple[str, ...]:
    if not best.variant.operators:
        return ()
    return ("the sums between ranks that divided operators need are not in the predicted step",)


def _host(best: _Candidate, request: Request) -> tuple[list[ChunkPlan], int, int]:
    """Move optimizer states to disk, largest chunks first, until the host budget holds."""
    itemsize = best.variant.profile.itemsize

    def share(chunk: ChunkPlan) -> tuple[int, int]:
        parameters = chunk.bytes  # the host's copy is what evicted chunks are read from
        divided = request.world if chunk.shard != "replicate" else 1
        if divided > 1:  # one copy per machine, counted to its ranks in equal parts
            parameters = parameters * request.machines // request.world
        if chunk.tier == "device" and request.world == 1:
            return parameters, 0
        gradient = chunk.trainable * itemsize // divided
        states = chunk.trainable * request.state_bytes // divided
        if chunk.tier == "disk":
            return parameters + gradient, states
        return parameters + gradient + states, 0

    chunks = list(best.chunks)
    fixed = sum(size for *_, size in best.variant.profile.offloads)
    fixed += itemsize * packing.transit_elements(chunks, itemsize, request.world)

    def held() -> int:
        return fixed + sum(share(c)[0] for c in chunks)

    total = held()
    if request.host_budget is not None and total > request.host_budget:
        order = sorted(range(len(chunks)), key=lambda k: -chunks[k].trainable)
        for k in order if request.use_disk else ():
            if chunks[k].tier == "host":
                chunks[k] = replace(chunks[k], tier="disk")
                total = held()
            if total <= request.host_budget:
                break
        if total > request.host_budget:
            advice = "" if request.use_disk else "; pass disk= to keep optimizer states on disk"
            raise InfeasiblePlanError(
                f"host_budget={request.host_budget}: the least is {total} bytes "
                f"({format_bytes(total)}){advice}",
                total,
            )
    disk = sum(share(c)[1] for c in chunks)
    host = total + (4 * max((c.trainable for c in chunks), default=0) * 2 if disk else 0)
    return chunks, host, disk
