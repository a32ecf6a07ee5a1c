"""Minimal-change plans: all 37 x 37 A100 transitions against exhaustive search."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from migperf.boards import load_board
from migperf.errors import InstanceInUse
from migperf.layout import Layout, PlacedLayout, enumerate_layouts
from migperf.transition import ComputeInstance, GpuInstance, plan_exact, plan_transition

BOARD = load_board("a100-40gb")
MULTISETS = enumerate_layouts(BOARD, placed=False)
PLACED: dict[tuple[str, ...], list[PlacedLayout]] = {}
for _layout in enumerate_layouts(BOARD):
    PLACED.setdefault(_layout.multiset, []).append(_layout)


def instances(layout: PlacedLayout, busy: int | None = None) -> list[GpuInstance]:
    out = []
    for number, place in enumerate(layout.placements):
        slices = BOARD.profile(place.profile).compute_slices
        pids = (1000 + number,) if number == busy else ()
        out.append(
            GpuInstance(
                place.start, place.size, place.profile, (ComputeInstance(0, slices, 0, pids),)
            )
        )
    return out


def fewest_destroys(before: list[GpuInstance], multiset: tuple[str, ...]) -> int:
    """Exhaustive: over every placed layout with this multiset."""
    places = {g.placement for g in before}
    return min(len(places - set(x.placements)) for x in PLACED[multiset])


def test_all_37_by_37_transitions_destroy_the_minimum() -> None:
    needless = 0
    for source, target in itertools.product(MULTISETS, MULTISETS):
        before = instances(source)
        plan = plan_transition(BOARD, before, Layout.of(target.multiset))
        assert Counter(g.profile for g in plan.after) == Counter(target.multiset)
        assert plan.count("destroy_gpu") == fewest_destroys(before, target.multiset)
        assert plan.count("create_gpu") == len(target.entries) - len(plan.kept)
        needless += plan.count("destroy_gpu") - fewest_destroys(before, target.multiset)
    assert needless == 0


def test_running_instances_are_never_destroyed() -> None:
    refused = kept = 0
    for source, target in itertools.product(MULTISETS, MULTISETS):
        for busy in range(len(source.entries)):
            before = instances(source, busy)
            place = before[busy].placement
            possible = any(place in x.placements for x in PLACED[target.multiset])
            if not possible:
                with pytest.raises(InstanceInUse) as caught:
                    plan_transition(BOARD, before, Layout.of(target.multiset))
                assert caught.value.pids == (1000 + busy,)
                refused += 1
                continue
            plan = plan_transition(BOARD, before, Layout.of(target.multiset))
            assert place in {g.placement for g in plan.kept}
            assert all(a.start != place.start for a in plan.actions)
            kept += 1
    assert refused > 1000
    assert kept > 1000


def test_reconfigures_one_instance_beside_a_running_4g() -> None:
    # k8s-device-plugin#992
    before = instances(Layout.parse("4g.20gb@0, 3g.20gb@4").solve(BOARD), busy=0)
    plan = plan_transition(BOARD, before, Layout.parse("4g.20gb, 1g.5gb*3"))
    assert {a.kind for a in plan.actions if a.start == 0} == set()
    assert plan.count("destroy_gpu") == 1


def test_compute_instances_change_inside_a_kept_gpu_instance() -> None:
    before = [GpuInstance(4, 4, "3g.20gb", (ComputeInstance(0, 3),))]
    plan = plan_transition(BOARD, before, Layout.parse("1c.3g.20gb*3"))
    assert [str(a) for a in plan.actions] == [
        "destroy 3c@0 in 3g.20gb@4",
        "create 1c@0 in 3g.20gb@4",
        "create 1c@1 in 3g.20gb@4",
        "create 1c@2 in 3g.20gb@4",
    ]
    kept = [GpuInstance(4, 4, "3g.20gb", (ComputeInstance(2, 1, 0, (5,)),))]
    plan = plan_transition(BOARD, kept, Layout.parse("1c.3g.20gb, 2c.3g.20gb"))
    assert [str(a) for a in plan.actions] == ["create 2c@0 in 3g.20gb@4"]


def test_exact_plans_end_where_they_shall() -> None:
    states = [instances(x) for x in enumerate_layouts(BOARD)[::7]]
    for before, after in itertools.product(states, states):
        plan = plan_exact(BOARD, before, after)
        assert plan.after == tuple(sorted(after))
    assert plan_exact(BOARD, states[0], states[0]).actions == ()
