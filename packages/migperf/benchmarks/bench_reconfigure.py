"""Reconfiguration: minimal change against the policy of mig-parted, all A100 transitions."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pynvml
from common import goal, parse, table, write
from migperf import Infeasible, InstanceInUse, Layout, Node, enumerate_layouts, load_board
from migperf.nvml import abi
from migperf.placement import solve

BOARD = load_board("a100-40gb")
LATENCIES = {"gi_create": 250.0, "ci_create": 50.0, "gi_destroy": 100.0, "ci_destroy": 100.0}


def mig_parted(node: Node, wanted: Sequence[str]) -> None:
    """Destroy everything, then try orders of creation, largest first, until one works.

    A restatement of SetMigConfig of NVIDIA/mig-parted: the driver chooses the places; where an
    order runs out of room, everything is cleared and the next permutation is tried.
    """
    gpu = node.gpus[0]

    def clear() -> None:
        for instance in gpu.instances():
            handle = pynvml.nvmlDeviceGetGpuInstanceById(gpu.handle, instance.id)
            for cut in instance.compute:
                ci = pynvml.nvmlGpuInstanceGetComputeInstanceById(handle, cut.id)
                pynvml.nvmlComputeInstanceDestroy(ci)
            pynvml.nvmlGpuInstanceDestroy(handle)

    clear()
    tried = set()
    for order in itertools.permutations(wanted):
        if order in tried:
            continue
        tried.add(order)
        try:
            for name in order:
                profile = BOARD.profile(name)
                handle = abi.call("nvmlDeviceCreateGpuInstance", gpu.handle, profile.id)
                whole = profile.compute_profile(profile.compute_slices)
                abi.call("nvmlGpuInstanceCreateComputeInstance", handle, whole.id)
        except Infeasible:
            clear()
            continue
        return
    raise RuntimeError(f"no order works for {wanted}")


def start_from(node: Node, source: Sequence[str]) -> None:
    node.gpus[0].apply(Layout(()))
    node.gpus[0].apply(Layout.of(source))


def main() -> None:
    arguments = parse(__doc__ or "")
    multisets = [x.multiset for x in enumerate_layouts(BOARD, placed=False)]
    # An exhaustive lower bound: the fewest instances that any placement of the target loses.
    placed: dict[tuple[str, ...], list[set[object]]] = {}
    for layout in enumerate_layouts(BOARD):
        placed.setdefault(layout.multiset, []).append(set(layout.placements))
    ours = theirs = our_calls = their_calls = needless = touched = 0.0
    destroyed = 0
    ratios = []
    # The journal is synced before each call; memory keeps that out of this count of calls.
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(dir=folder) as journals,
        Node.open(sim="a100-40gb", state_dir=journals) as node,
    ):
        node.gpus[0].set_mig_mode(True)
        node.sim.set_latency(virtual=True, **LATENCIES)
        for source, target in itertools.product(multisets, multisets):
            start_from(node, source)
            before = set(node.gpus[0].placed())
            node.sim.counters(clear=True)
            plan = node.gpus[0].apply(Layout.of(target)).transition
            mine = node.sim.counters(clear=True)
            least = min(len(before - places) for places in placed[target])
            needless += plan.count("destroy_gpu") - least
            destroyed += plan.count("destroy_gpu")
            start_from(node, source)
            node.sim.counters(clear=True)
            mig_parted(node, target)
            other = node.sim.counters(clear=True)
            our_calls, their_calls = our_calls + mine.changes, their_calls + other.changes
            ours, theirs = ours + mine.virtual_seconds, theirs + other.virtual_seconds
            if source != target:
                ratios.append(mine.changes / other.changes)
        # A running job on the first instance: it must keep its place and its UUID.

        for source, target in itertools.product(multisets, multisets):
            start_from(node, source)
            gpu = node.gpus[0]
            job = gpu.instances()[0]
            uuid = {d.gpu_instance_id: d.uuid for d in gpu.devices()}[job.id]
            node.sim.occupy(0, os.getpid(), gpu_instance=job.id, compute_instance=0)
            # Refused where every placement would have destroyed it.
            with contextlib.suppress(InstanceInUse):
                gpu.apply(Layout.of(target))
            alive = {d.uuid for d in gpu.devices()}
            touched += uuid not in alive
            node.sim.vacate(0, os.getpid())
    verdicts = []
    for names in itertools.islice(
        itertools.product([p.name for p in BOARD.gpu_profiles], repeat=4), 2000
    ):
        started = time.process_time_ns()  # of this process: others share the cores
        with contextlib.suppress(Infeasible):
            solve(BOARD, [(n, None) for n in names])
        verdicts.append((time.process_time_ns() - started) * 1e-6)
    slowest = sorted(verdicts)[int(0.999 * len(verdicts))]
    ratio = our_calls / their_calls
    write(
        arguments.out,
        __file__,
        "Reconfiguration against mig-parted's policy",
        [
            goal(
                "driver calls that change something, all 37 x 37 A100 transitions",
                "<= 0.4 of mig-parted's policy",
                f"{ratio:.2f}",
                ratio <= 0.4,
                "No policy can do better: for each transition the kept instances are the most "
                "that any placement of the target allows (exhaustive search), and every other "
                "instance of both ends costs its calls.",
            ),
            goal(
                "needless destroys, against exhaustive search",
                "0",
                f"{needless:g} of {destroyed}",
                needless == 0,
            ),
            goal(
                "running instances touched in 37 x 37 transitions",
                "0",
                f"{touched:g}",
                touched == 0,
            ),
            goal(
                "verdict on any request",
                "<= 1 ms",
                f"median {statistics.median(verdicts):.3f} ms, 99.9 % {slowest:.3f} ms",
                slowest <= 1.0,
            ),
        ],
        [
            table(
                "Sums over 37 x 37 transitions",
                ["policy", "calls", "seconds at 250/50/100 ms"],
                [
                    ["minimal change", our_calls, round(ours, 1)],
                    ["clear all, permute orders", their_calls, round(theirs, 1)],
                    ["ratio", round(ratio, 3), round(ours / theirs, 3)],
                ],
            ),
            table(
                "Calls, ratio per transition between different layouts",
                ["median", "lowest", "highest"],
                [
                    [
                        round(statistics.median(ratios), 3),
                        round(min(ratios), 3),
                        round(max(ratios), 3),
                    ]
                ],
            ),
        ],
        ("nvidia-ml-py",),
    )


if __name__ == "__main__":
    main()
