"""The event simulator: the one predictor of step time, traffic and stalls.

Resources are first-in-first-out: compute, host-to-device, device-to-host, host AdamW, disk. A step
of the trace waits for its chunks; a chunk's gradient leaves when its last reader in the backward
pass is done; its AdamW follows the gradient. Where threads of one host stand for the resources,
each copy takes compute's thread some time, and compute is slower beside copies and updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from elixir.planner.cache import Cache
from elixir.profile.hardware import Hardware

if TYPE_CHECKING:
    from elixir.planner.result import Plan


@dataclass(frozen=True)
class ChunkCost:
    """What the simulator knows of a chunk: bytes, elements, where it lives, how many gradients."""

    bytes: int
    trainable: int
    tier: str = "host"
    state_bytes: int = 8
    gradient_bytes: int = 4
    gradients: int = 1


@dataclass
class Timeline:
    """A simulated step.

    Attributes
    ----------
    seconds
        Predicted time of a step.
    compute, h2d, d2h, adam, disk
        Busy seconds per resource.
    stall
        Seconds that compute waited for copies.
    loads, loaded_bytes, stored_bytes
        Traffic of chunks and gradients.
    offloaded_bytes
        Activations that visited the host.
    events
        (resource, chunk or step, begin, end).
    """

    seconds: float = 0.0
    compute: float = 0.0
    h2d: float = 0.0
    d2h: float = 0.0
    adam: float = 0.0
    disk: float = 0.0
    stall: float = 0.0
    loads: int = 0
    loaded_bytes: int = 0
    stored_bytes: int = 0
    offloaded_bytes: int = 0
    feasible: bool = True
    events: list[tuple[str, int, float, float]] = field(default_factory=list)


class _Beside:
    """What runs beside compute, and how many seconds it takes from it."""

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float, float]] = []

    def add(self, begin: float, end: float, cost: float) -> None:
        """Note something that costs compute so many seconds if it runs beside it."""
        if cost > 0 and end > begin:
            self._intervals.append((begin, end, cost / (end - begin)))

    def lost(self, begin: float, end: float) -> float:
        """Return the seconds lost between two times; later calls ask for later times."""
        self._intervals = [entry for entry in self._intervals if entry[1] > begin]
        return sum(
            max(min(last, end) - max(first, begin), 0.0) * share
            for first, last, share in self._intervals
        )


def prefetch_order(
    cache: Cache, steps: Sequence[Sequence[int]], position: int, depth: int
) -> list[int]:
    """Return up to ``depth`` absent chunks in the order of their next use after ``position``."""
    found: list[int] = []
    seen: set[int] = set()
    n = len(steps)
    ahead = 0
    # a window: far enough for the wanted chunks, never a whole pass over a long trace
    for distance in range(1, min(n - position, 16 * depth + 1)):
        for chunk in steps[position + distance]:
            if chunk in seen:
                continue
            seen.add(chunk)
            ahead += 1
            if chunk not in cache.offset and chunk < len(cache.sizes):
                found.append(chunk)
        if ahead >= depth:
            break
    return found[:depth]


def step_seconds(
    flops: Sequence[float], traffic: Sequence[float], hardware: Hardware
) -> list[float]:
    """Return seconds per trace step: the slower of arithmetic and memory traffic."""
    times, last_f, last_t = [], 0.0, 0.0
    for f, t in zip(flops, traffic, strict=True):
        times.append(max((f - last_f) / hardware.flops, (t - last_t) / hardware.device_stream))
        last_f, last_t = f, t
    return times


def simulate(
    chunks: Sequence[ChunkCost],
    steps: Sequence[Sequence[int]],
    forward_steps: int,
    seconds: Sequence[float],
    cache_bytes: int,
    hardware: Hardware,
    *,
    prefetch: int = 2,
    step_in_backward: bool = False,
    gradient_room: float = float("inf"),
    offloads: Sequence[tuple[int, int, int, int]] = (),
    offload_room: float = float("inf"),
    keep_events: bool = False,
) -> Timeline:
    """Run one training step through the model of the machine.

    Parameters
    ----------
    chunks
        Costs; chunks of tier ``"device"`` or ``"pinned"`` never move.
    steps, forward_steps, seconds
        Trace over chunks, the length of its forward part, and seconds per step.
    cache_bytes
        Bytes that travelling chunks share.
    prefetch
        Chunks looked ahead; 0 fetches on demand.
    gradient_room
        Bytes of gradients that may wait on the device for their copy.
    offloads, offload_room
        Activations on the host, as in :class:`elixir.profile.trace.ModelProfile`; bytes that may
        wait for their copy out.

    Returns
    -------
    Timeline
        ``feasible`` is False if some step's chunks do not fit at once.
    """
    line = Timeline()
    moving = [i for i, c in enumerate(chunks) if c.tier not in ("device", "pinned")]
    still = set(range(len(chunks))) - set(moving)
    travel = [[c for c in step if c not in still] for step in steps]
    cache = Cache([c.bytes for c in chunks], cache_bytes, travel)
    ready = [0.0] * len(chunks)
    compute = up = down = host = disk = 0.0
    last_reader: dict[int, int] = {}
    for position in range(forward_steps, len(steps)):
        for chunk in steps[position]:
            last_reader[chunk] = position
    for chunk in range(len(chunks)):
        last_reader.setdefault(chunk, len(steps) - 1)
    finishing: dict[int, list[int]] = {}
    for chunk, position in last_reader.items():
        finishing.setdefault(position, []).append(chunk)

    def note(resource: str, what: int, begin: float, end: float) -> None:
        if keep_events:
            line.events.append((resource, what, begin, end))

    def load(chunk: int, not_before: int, now: float) -> bool:
        nonlocal up
        found = cache.fit(chunk, not_before)
        if found is None:
            return False
        for victim in found[1]:
            cache.drop(victim)
        cache.place(chunk, found[0])
        begin = max(up, now)
        up = begin + hardware.latency + chunks[chunk].bytes / hardware.h2d
        line.h2d += up - begin
        ready[chunk] = up
        note("h2d", chunk, begin, up)
        beside.add(begin, up, _disturbance(hardware, 1, chunks[chunk].bytes))
        return True

    def hand_over(copies: int) -> None:
        """Let compute's thread hand copies over."""
        nonlocal compute
        compute += copies * hardware.copy_call
        line.compute += copies * hardware.copy_call

    beside = _Beside()
    leaving: dict[int, list[int]] = {}
    calling: dict[int, list[int]] = {}
    needing: dict[int, list[int]] = {}
    for row, (out, called, needed, _) in enumerate(offloads):
        leaving.setdefault(out, []).append(row)
        calling.setdefault(called, []).append(row)
        needing.setdefault(needed, []).append(row)
    left, there = [0.0] * len(offloads), [0.0] * len(offloads)
    finished: list[int] = []
    for position, need in enumerate(travel):
        cache.position = position
        for chunk in need:
            cache.pins[chunk] += 1
        for chunk in need:
            if chunk not in cache.offset:
                hand_over(1)
                if not load(chunk, -1, compute):
                    line.feasible = False
                    return line
        for row in calling.get(position, ()):
            begin = max(up, compute, left[row])
            up = begin + hardware.latency + offloads[row][3] / hardware.h2d
            line.h2d += up - begin
            there[row] = up
            note("h2d", -1, begin, up)
        waited = [there[row] for row in needing.get(position, ())]
        start = max([compute, *(ready[c] for c in need), *waited])
        if start > compute:
            start += hardware.wake
        line.stall += start - compute
        busy = seconds[position]
        if prefetch:
            for chunk in prefetch_order(cache, travel, position, prefetch):
                if not load(chunk, cache.next_use(chunk), start):
                    break
                busy += hardware.copy_call
        end = start + busy + beside.lost(start, start + busy)
        note("compute", position, start, end)
        line.compute += end - start
        for chunk in need:
            cache.pins[chunk] -= 1
        compute = end
        for row in leaving.get(position, ()):
            size = offloads[row][3]
            begin = max(down, compute)
            down = begin + hardware.latency + size / hardware.d2h
            line.d2h += down - begin
            line.offloaded_bytes += size
            left[row] = down
            note("d2h", -1, begin, down)
            hand_over(1)
            beside.add(begin, down, _disturbance(hardware, 1, size))
            held = down - offload_room / hardware.d2h
            if held > compute:
                line.stall += held - compute
                compute = held + hardware.wake
        for chunk in sorted(finishing.get(position, ()), reverse=True):
            cost = chunks[chunk]
            if not cost.trainable:
                continue
            size = cost.trainable * cost.gradient_bytes
            if cost.tier == "device":  # the gradient is copied into the chunk's slot
                finished.append(chunk)
                busy = 2 * size / hardware.device_stream
                compute += busy
                line.compute += busy
                continue
            begin = max(down, compute)
            down = begin + hardware.latency + size / hardware.d2h
            line.d2h += down - begin
            line.stored_bytes += size
            note("d2h", chunk, begin, down)
            hand_over(cost.gradients)
            beside.add(begin, down, _disturbance(hardware, cost.gradients, size))
            # only so many gradient bytes may wait for their copy; then compute waits
            held = down - gradient_room / hardware.d2h
            if held > compute:
                line.stall += held - compute
                compute = held + hardware.wake
            if step_in_backward:
                begin = max(host, down)
                host, disk = _adam(line, cost, chunk, begin, disk, hardware, note, beside)
            else:
                finished.append(chunk)
    if not step_in_backward:
        host = max(host, compute, down)
    for chunk in finished:
        cost = chunks[chunk]
        if cost.tier == "device":
            busy = cost.trainable / hardware.adam_device
            note("compute", -1, compute, compute + busy)
            compute += busy
            line.compute += busy
        else:
            host, disk = _adam(line, cost, chunk, host, disk, hardware, note)
    line.seconds = max(compute, up, down, host, disk)
    line.loads, line.loaded_bytes = cache.loads, cache.loaded_bytes
    return line


def simulate_plan(plan: Plan, *, keep_events: bool = True) -> Timeline:
    """Run a plan through the simulator again, as the search judged it."""
    itemsize = 4 if plan.dtype == "float32" else 2
    state = 8 if itemsize == 4 else 12
    costs = [
        ChunkCost(
            c.bytes,
            c.trainable // plan.world,
            c.tier,
            state,
            itemsize * plan.world,
            len(c.parameters),
        )
        for c in plan.chunks
    ]
    return simulate(
        costs,
        plan.steps,
        plan.forward_steps,
        plan.step_seconds,
        plan.cache_bytes,
        Hardware(**plan.hardware),
        prefetch=plan.prefetch,
        step_in_backward=plan.step_in_backward,
        gradient_room=plan.gradient_bytes / 2,
        offloads=plan.offloads,
        offload_room=plan.offload_bytes or float("inf"),
        keep_events=keep_events,
    )


def _disturbance(hardware: Hardware, copies: int, size: float) -> float:
    """Return the seconds that compute would lose beside copies of so many bytes in all."""
    return copies * hardware.copy_beside + size * hardware.copy_disturbs


def _adam(
    line: Timeline,
    cost: ChunkCost,
    chunk: int,
    begin: float,
    disk: float,
    hardware: Hardware,
    note: object,
    beside: _Beside | None = None,
) -> tuple[float, float]:
    if cost.tier == "disk":
        size = cost.trainable * cost.state_bytes
        busy = size / hardware.disk_read + size / hardware.disk_write
        begin = max(begin, disk)
        disk = begin + busy
        line.disk += busy
        begin = disk
    slowed = hardware.adam_beside if beside is not None else 1.0
    end = begin + cost.trainable / hardware.adam_host * slowed
    if beside is not None:
        beside.add(begin, end, cost.trainable * hardware.adam_disturbs)
    line.adam += end - begin
    note("adam", chunk, begin, end)  # type: ignore[operator]
    return end, disk
