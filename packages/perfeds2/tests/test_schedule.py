"""The joint scheduler against enumeration, and greedy against a sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfeds2 import InfeasibleError, InputError, allocate, exact_round, exhaustive_round, greedy


def draw(g: np.random.Generator, n: int):
    return g.uniform(0.1, 5, n), g.exponential(1e7, n), g.uniform(1e5, 1e6, n)


def test_golden_instance():
    s = np.array([2, 4, 6, 8, 10, 0.3]) * 1e7
    found = exact_round([0.5, 1, 1.5, 2, 2.5, 3], s, 640_000, 1e6, 3)
    assert found.participants.tolist() == [0, 1, 2]
    assert found.finish_s == pytest.approx(1.6270095536069, rel=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_equals_enumeration_with_and_without_forced(seed):
    g = np.random.default_rng(seed)
    for _ in range(60):
        n = int(g.integers(1, 10))
        count = int(g.integers(1, n + 1))
        a, s, z = draw(g, n)
        forced = g.permutation(n)[: g.integers(0, count + 1)].tolist()
        found = exact_round(a, s, z, 1e6, count, forced)
        best = exhaustive_round(a, s, z, 1e6, count, forced)
        assert found.participants.tolist() == best.participants.tolist()
        assert found.finish_s == pytest.approx(best.finish_s, rel=1e-12)
        assert set(forced) <= set(found.participants.tolist())


@pytest.mark.stress
def test_equals_enumeration_on_1000_instances():
    g = np.random.default_rng(99)
    for _ in range(1000):
        n = int(g.integers(2, 13))
        count = int(g.integers(1, n + 1))
        a, s, z = draw(g, n)
        forced = g.permutation(n)[: g.integers(0, count // 2 + 1)].tolist()
        found = exact_round(a, s, z, 1e6, count, forced)
        best = exhaustive_round(a, s, z, 1e6, count, forced)
        assert found.participants.tolist() == best.participants.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.data())
def test_never_worse_than_greedy_and_no_swap_helps(seed, n, data):
    g = np.random.default_rng(seed)
    a, s, z = draw(g, n)
    count = data.draw(st.integers(1, n))
    found = exact_round(a, s, z, 1e6, count)
    chosen = greedy(a, s, z, 1e6, count)
    assert found.finish_s <= allocate(a[chosen], s[chosen], z[chosen], 1e6).finish_s * (1 + 1e-12)
    outside = np.setdiff1d(np.arange(n), found.participants)
    for leaves in found.participants[:3]:
        for enters in outside[:3]:
            other = np.r_[found.participants[found.participants != leaves], enters]
            t = allocate(a[other], s[other], z[other], 1e6).finish_s
            assert t >= found.finish_s * (1 - 1e-12)


def test_all_equal_ues_take_the_lowest_ids():
    found = exact_round(np.ones(6), np.full(6, 1e7), 1e5, 1e6, 3)
    assert found.participants.tolist() == [0, 1, 2]


def test_greedy_is_a_sort_by_finishing_time():
    a, s = np.array([3.0, 1.0, 2.0, 0.5]), np.full(4, 1e7)
    assert greedy(a, s, 1e5, 1e6, 2).tolist() == [1, 3]
    assert greedy(a, s, 1e5, 1e6, 2, forced=[0]).tolist() == [0, 3]


def test_one_ue():
    found = exact_round([2.0], [1e7], 1e5, 1e6, 1)
    assert found.participants.tolist() == [0]
    assert found.finish_s == pytest.approx(2.0 + 1e5 / (1e6 * np.log2(11)), rel=1e-14)


def test_faded_ues_are_left_out_until_too_few_remain():
    s = [1e7, 0.0, 1e7]
    assert exact_round([1, 1, 1], s, 1e5, 1e6, 2).participants.tolist() == [0, 2]
    with pytest.raises(InfeasibleError, match="only 2 UEs"):
        exact_round([1, 1, 1], s, 1e5, 1e6, 3)
    with pytest.raises(InfeasibleError, match="never ends"):
        exact_round([1, 1, 1], s, 1e5, 1e6, 2, forced=[1])


@pytest.mark.parametrize(
    ("count", "forced", "word"),
    [(0, (), "participants"), (4, (), "participants"), (1, (0, 1), "forced"), (2, (5,), "forced"),
     (2, (1, 1), "forced")],
)  # fmt: skip
def test_bad_input(count, forced, word):
    with pytest.raises(InputError, match=word):
        exact_round([1.0, 2.0, 3.0], [1e7] * 3, 1e5, 1e6, count, forced)
