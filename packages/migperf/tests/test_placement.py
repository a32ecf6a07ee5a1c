"""Placement: counts from the literature, driver sessions that NVIDIA prints, brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migperf.boards import Board, load_board
from migperf.errors import Infeasible
from migperf.layout import enumerate_layouts
from migperf.placement import (
    Placement,
    default_placement,
    enumerate_placed,
    fragmentation,
    gpu_instance_id,
    solve,
)

A100 = load_board("a100-40gb")


def short(names: tuple[str, ...]) -> str:
    return "+".join(n.split("g")[0] for n in names)


def test_a100_counts() -> None:
    # 19 maximal placed layouts is the number the literature quotes for A100 since driver R510.
    assert len(enumerate_layouts(A100)) == 297
    assert len(enumerate_layouts(A100, placed=False)) == 37
    assert len(enumerate_layouts(A100, maximal=True)) == 19
    assert len(enumerate_layouts(A100, maximal=True, placed=False)) == 14


def test_a100_maximal_multisets_are_the_published_ones() -> None:
    found = {short(x.multiset) for x in enumerate_layouts(A100, maximal=True, placed=False)}
    assert found == {
        "7", "4+3", "4+2+1", "4+1+1+1", "3+3", "3+2+2", "3+2+1+1", "3+2+1", "3+1+1+1+1",
        "3+1+1+1", "2+2+2+1", "2+2+1+1+1", "2+1+1+1+1+1", "1+1+1+1+1+1+1",
    }  # fmt: skip


def test_special_profiles_can_be_switched() -> None:
    everything = enumerate_layouts(A100, double_memory=True, media=True)
    assert len(everything) == 2318
    media = [x for x in everything if any("+me" in p for p in x.multiset)]
    assert all(sum("+me" in p for p in x.multiset) == 1 for x in media)


def _brute_force(board: Board) -> int:
    """Count disjoint sets of slots by going through all subsets of up to 7 of them."""
    profiles = board.selected_profiles(double_memory=False, media=False)
    masks = [(p.mask << s) for p in profiles for s in p.starts]
    total = 0
    for size in range(1, board.compute_slices + 1):
        for subset in itertools.combinations(masks, size):
            union = 0
            for mask in subset:
                if union & mask:
                    break
                union |= mask
            else:
                total += 1
    return total


@pytest.mark.parametrize("name", ["a30-24gb", "a100-80gb"])
def test_enumeration_equals_brute_force(name: str) -> None:
    board = load_board(name)
    assert len(enumerate_layouts(board)) == _brute_force(board)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        # Sessions of the MIG User Guide: profile ids in order -> (instance id, start:size).
        ([9, 19, 14, 19], [(2, 4, 4), (7, 0, 1), (4, 2, 2), (8, 1, 1)]),
        ([14, 19, 19, 19, 19, 19], [(5, 4, 2), (13, 6, 1), (7, 0, 1), (8, 1, 1), (9, 2, 1),
                                    (10, 3, 1)]),
        ([19] * 7, [(13, 6, 1), (11, 4, 1), (12, 5, 1), (7, 0, 1), (8, 1, 1), (9, 2, 1),
                    (10, 3, 1)]),
        ([9, 9], [(2, 4, 4), (1, 0, 4)]),
    ],
)  # fmt: skip
def test_default_placement_follows_the_printed_sessions(
    ids: list[int], expected: list[tuple[int, int, int]]
) -> None:
    placed: list[Placement] = []
    for profile_id, (instance, start, size) in zip(ids, expected, strict=True):
        place = default_placement(A100, A100.profile_by_id(profile_id), placed)
        assert place is not None
        assert (gpu_instance_id(8, place.start, place.size), place.start, place.size) == (
            instance, start, size,
        )  # fmt: skip
        placed.append(place)


def test_order_of_creation_can_block_what_explicit_placement_allows() -> None:
    # The guide's failing session: 1g, 1g, 2g, then 3g finds no room. The set itself is fine.
    placed: list[Placement] = []
    for profile_id in (19, 19, 14):
        place = default_placement(A100, A100.profile_by_id(profile_id), placed)
        assert place is not None
        placed.append(place)
    assert [gpu_instance_id(8, p.start, p.size) for p in placed] == [13, 11, 3]
    assert default_placement(A100, A100.profile_by_id(9), placed) is None
    names = [p.profile for p in placed] + ["3g.20gb"]
    assert len(solve(A100, [(n, None) for n in names])) == 4


def test_every_request_gets_a_witness_or_a_reason() -> None:
    """Solver against the enumeration: all multisets of up to four base instances."""
    names = [p.name for p in A100.selected_profiles(double_memory=False, media=False)]
    feasible = {tuple(sorted(x.multiset)) for x in enumerate_layouts(A100)}
    for size in range(1, 5):
        for request in itertools.combinations_with_replacement(names, size):
            wanted = [(n, None) for n in request]
            if tuple(sorted(request)) in feasible:
                witness = solve(A100, wanted)
                assert sorted(p.profile for p in witness) == sorted(request)
                masks = [p.mask for p in witness]
                assert sum(masks) == sum(m for m in set(masks))
                assert sum(m.bit_count() for m in masks) == sum(masks).bit_count()
            else:
                with pytest.raises(Infeasible) as caught:
                    solve(A100, wanted)
                assert caught.value.reason
                assert caught.value.culprits


def test_legal_entries_that_cannot_be_packed_are_named() -> None:
    # k8s-test-infra#886: each entry is legal, the set is not.
    board = load_board("a100-40gb")
    with pytest.raises(Infeasible, match="cannot stand together") as caught:
        solve(board, [("2g.10gb", 2), ("2g.10gb", 4), ("3g.20gb", None)])
    assert caught.value.culprits == ("2g.10gb@2", "2g.10gb@4", "3g.20gb")
    with pytest.raises(Infeasible, match="11 memory slices needed, 8 of 8 free"):
        solve(board, [("1g.10gb", None)] * 4 + [("1g.5gb", None)] * 3)
    with pytest.raises(Infeasible, match="one media extension"):
        solve(load_board("a30-24gb"), [("1g.6gb+me", None), ("2g.12gb+me", None)])


def test_fixed_instances_stay() -> None:
    fixed = (Placement(0, 4, "4g.20gb"),)
    assert [str(p) for p in solve(A100, [("3g.20gb", None)], fixed)] == ["3g.20gb@4"]
    with pytest.raises(Infeasible, match="hold the rest"):
        solve(A100, [("7g.40gb", None)], fixed)


@given(st.integers(0, 296))
def test_fragmentation_is_a_share(index: int) -> None:
    layout = enumerate_layouts(A100)[index]
    value = fragmentation(A100, layout.placements)
    assert 0.0 <= value <= 1.0
    free = 7 - sum(A100.profile(p).compute_slices for p in layout.multiset)
    if free == 0:
        assert value == 0.0


def test_enumerated_sets_are_distinct_and_legal() -> None:
    seen = list(enumerate_placed(A100, A100.selected_profiles(double_memory=False, media=False)))
    assert len({tuple(sorted(s)) for s in seen}) == len(seen)
    for placed in seen:
        bits = sum(p.mask.bit_count() for p in placed)
        union = 0
        for p in placed:
            union |= p.mask
        assert union.bit_count() == bits
