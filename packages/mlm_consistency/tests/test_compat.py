"""Compatibility: closed forms, LP oracle, certificates, invariances."""

import itertools

import numpy as np
import pytest
from conftest import random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from mlm_consistency import CubeTable, InputError, PairTable, SupportError, compat, hodge, umr
from mlm_consistency.tables import normalise
from scipy.optimize import linprog

LN9 = 2.1972245773362196


def test_two_by_two_closed_form():
    first = np.log([[0.25, 0.75], [0.75, 0.25]])
    second = np.log(np.full((2, 2), 0.5))
    assert abs(compat.curl(first, second)[0, 0]) == pytest.approx(LN9, abs=1e-14)
    verdict = compat.test(PairTable(first, second))
    assert not verdict.compatible
    assert verdict.certificate.kind == "quadruple"
    assert abs(verdict.certificate.gap) == pytest.approx(LN9, abs=1e-14)


def joints_and_injections(draws, seed):
    """Random joints of 2 to 4 positions; one odds ratio of one conditional moved by 1e-6."""
    rng = np.random.default_rng(seed)
    worst, found = 0.0, 0
    for _ in range(draws):
        k = int(rng.integers(2, 5))
        shape = tuple(int(v) for v in rng.integers(2, {2: 9, 3: 6, 4: 5}[k], k))
        table = CubeTable.from_joint(rng.normal(size=shape) * 2)
        worst = max(worst, abs(compat.worst_quadruple(table).gap))
        worst = max(worst, hodge.decompose(table).curl_energy ** 0.5)
        axis = int(rng.integers(k))
        cell = tuple(int(rng.integers(s)) for s in shape)
        arrays = [c.copy() for c in table.conditionals]
        arrays[axis][cell] += 1e-6  # every odds ratio with this corner moves by 1e-6
        verdict = compat.test(CubeTable(tuple(arrays)), tol=1e-9)
        corner = cell in verdict.certificate.cells and axis in verdict.certificate.axes
        found += (
            (not verdict.compatible) and corner and abs(abs(verdict.certificate.gap) - 1e-6) < 1e-9
        )
    return worst, found


def test_random_joints_are_consistent_and_errors_of_1e_6_are_found_with_their_corner():
    worst, found = joints_and_injections(150, 1)
    assert worst <= 1e-10
    assert found == 150


@pytest.mark.stress
def test_ten_thousand_random_joints():
    worst, found = joints_and_injections(10_000, 2)
    assert worst <= 1e-10
    assert found == 10_000


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_curl_is_invariant_and_antisymmetric(seed, a, b):
    rng = np.random.default_rng(seed)
    table = random_table(rng, a, b)
    whole = np.sort(np.abs(compat.curl(*table.conditionals)).ravel())
    p, q = rng.permutation(a), rng.permutation(b)
    moved = table.restrict(p, q)
    assert np.allclose(np.sort(np.abs(compat.curl(*moved.conditionals)).ravel()), whole)
    # restriction and renormalisation leave each quadruple alone
    small = table.restrict([0, 1], [0, b - 1]).renormalised()
    assert compat.curl(*small.conditionals)[0, 0] == pytest.approx(
        compat.gap_at(table, 0, 1, 0, b - 1), abs=1e-12
    )
    assert compat.gap_at(table, 0, 1, 0, 1) == pytest.approx(-compat.gap_at(table, 1, 0, 0, 1))
    assert compat.gap_at(table, 0, 1, 0, 1) == pytest.approx(-compat.gap_at(table, 0, 1, 1, 0))


def test_a_rectangle_is_the_sum_of_its_unit_squares(rng):
    table = random_table(rng, 5, 6)
    total = sum(compat.gap_at(table, a, a + 1, b, b + 1) for a in range(4) for b in range(5))
    assert compat.gap_at(table, 0, 4, 0, 5) == pytest.approx(total, abs=1e-12)


def test_worst_quadruple_equals_the_full_list(rng):
    for _ in range(20):
        table = random_table(rng, 7, 5)
        gaps = compat.curl(*table.conditionals)
        worst = compat.worst_quadruple(table)
        assert abs(worst.gap) == pytest.approx(np.abs(gaps).max(), abs=1e-12)
        (a, b), (a2, _), (_, b2), _ = worst.cells
        assert compat.gap_at(table, a, a2, b, b2) == pytest.approx(worst.gap, abs=1e-12)
        at = np.unravel_index(np.abs(gaps).argmax(), gaps.shape)
        assert sorted(compat.quadruples(7, 5)[at][:2]) == sorted((a, a2))


def test_renormalisation_moves_kl_but_not_the_curl(rng):
    from mlm_consistency import joints

    table = random_table(rng, 6, 6)
    small = table.restrict(range(4), range(4))
    inner = small.renormalised()
    assert np.allclose(compat.curl(*small.conditionals), compat.curl(*inner.conditionals))
    whole = joints.ag(table).log_q[:4, :4]
    assert not np.allclose(normalise(whole, (0, 1)), joints.ag(small).log_q, atol=1e-3)


@pytest.mark.parametrize(("v", "k"), [(2, 2), (3, 2), (2, 3), (3, 3), (2, 4)])
def test_quadruples_span_all_constraints(v, k):
    rank, constraints = compat.enough_constraints(v, k)
    assert rank == constraints


@pytest.mark.parametrize("dependent", [True, False])
def test_temperature_on_one_side_is_seen_exactly_where_positions_depend(rng, dependent):
    joint = rng.normal(size=(4, 1)) + rng.normal(size=(1, 5))
    if dependent:
        joint = joint + rng.normal(size=(4, 5))
    table = PairTable.from_joint(joint)
    hot = PairTable(normalise(table.log_a_given_b / 2.0, 0), table.log_b_given_a)
    gaps = compat.curl(*hot.conditionals)
    odds = compat.curl(table.log_a_given_b, np.zeros((4, 5)))
    assert np.allclose(gaps, (1 / 2.0 - 1.0) * odds, atol=1e-12)
    assert compat.test(hot).compatible == (not dependent)


def lp_compatible(first, second):
    """Largest least margin of a joint with these conditionals, by linear programming."""
    a, b = first.shape
    n = a * b
    rows = []
    for i, j in itertools.product(range(a), range(b)):
        column = np.zeros((a, b))
        column[:, j] -= first[i, j]
        column[i, j] += 1
        line = np.zeros((a, b))
        line[i] -= second[i, j]
        line[i, j] += 1
        rows += [column.ravel(), line.ravel()]
    equal = np.hstack([np.asarray(rows), np.zeros((2 * n, 1))])
    total = np.append(np.ones(n), 0)
    margins = []
    for i in range(a):
        m = np.zeros((a, b))
        m[i] = -1
        margins.append(np.append(m.ravel(), 1))
    for j in range(b):
        m = np.zeros((a, b))
        m[:, j] = -1
        margins.append(np.append(m.ravel(), 1))
    found = linprog(
        -np.eye(n + 1)[-1], np.asarray(margins), np.zeros(a + b),
        np.vstack([equal, total]), np.append(np.zeros(2 * n), 1.0), bounds=[(0, 1)] * (n + 1),
    )  # fmt: skip
    return found.status == 0 and found.x[-1] > 1e-7


def zero_pattern_draws(draws, seed):
    rng = np.random.default_rng(seed)
    agree = compatible = 0
    for _ in range(draws):
        a, b = rng.integers(2, 5, 2)
        while True:
            support = rng.random((a, b)) < 0.6
            if support.any(0).all() and support.any(1).all():
                break
        q = np.where(support, rng.random((a, b)) + 0.1, 0.0)
        first, second = q / q.sum(0), q / q.sum(1, keepdims=True)
        kind = rng.integers(3)
        if kind == 1:  # another table on the same support
            r = np.where(support, rng.random((a, b)) + 0.1, 0.0)
            second = r / r.sum(1, keepdims=True)
        elif kind == 2 and support.sum() > a + b:  # another support
            r = q.copy()
            i, j = np.argwhere(support)[0]
            r[i, j] = 0
            if (r.sum(0) > 0).all() and (r.sum(1) > 0).all():
                second = r / r.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            verdict = compat.test(PairTable(np.log(first), np.log(second)), tol=1e-7)
        answer = lp_compatible(first, second)
        agree += verdict.compatible == answer
        compatible += answer
    return agree, compatible


def test_zero_patterns_against_linear_programming():
    agree, compatible = zero_pattern_draws(60, 3)
    assert agree == 60
    assert 10 < compatible < 60


@pytest.mark.stress
def test_a_thousand_zero_patterns_against_linear_programming():
    assert zero_pattern_draws(1000, 4)[0] == 1000


def test_blocks_uniqueness_and_the_cycle_certificate():
    with np.errstate(divide="ignore"):
        q = np.log(np.array([[0.2, 0.3, 0, 0], [0.1, 0.1, 0, 0], [0, 0, 0.2, 0.1]]))
    verdict = compat.test(PairTable.from_joint(q))
    assert verdict.compatible
    assert (verdict.blocks, verdict.unique) == (2, False)
    table = PairTable.from_joint(q)
    broken = table.log_a_given_b.copy()
    broken[0, 0] += 0.5
    verdict = compat.test(PairTable(broken, table.log_b_given_a))
    assert not verdict.compatible
    assert verdict.certificate.kind == "cycle"
    assert abs(verdict.certificate.gap) == pytest.approx(0.5)
    assert (0, 0) in verdict.certificate.cells


def test_contradictory_zero_is_the_certificate():
    first = np.log([[0.5, 0.5], [0.5, 0.5]])
    with np.errstate(divide="ignore"):
        second = np.log([[1.0, 0.0], [0.5, 0.5]])
    verdict = compat.test(PairTable(first, second))
    assert verdict.certificate.kind == "support"
    assert verdict.certificate.cells == ((0, 1),)
    assert "gap" in verdict.to_json()


def test_rank_one_umr_and_quadruples_agree(rng):
    joint = PairTable.from_joint(rng.normal(size=(4, 5)))
    other = random_table(rng, 4, 5)
    for table, same in ((joint, True), (other, False)):
        first, second = (
            umr.uniform_marginal_representation(c).log_table for c in table.conditionals
        )
        assert np.allclose(first, second, atol=1e-9) == same
        assert (compat.ratio_rank_one(table) < 1e-10) == same
        assert (compat.lfm_score(table) < 1e-18) == same


def test_errors_name_argument_value_and_remedy():
    good = np.log(np.full((2, 2), 0.5))
    with pytest.raises(InputError, match="equal shapes"):
        PairTable(good, np.log(np.full((3, 2), 0.5)))
    with pytest.raises(InputError, match=r"log_a_given_b\[0, 0\] = nan"):
        PairTable(np.full((2, 2), np.nan), good)
    with pytest.raises(SupportError, match="probability zero"):
        PairTable(np.array([[-np.inf, 0.0], [-np.inf, -1.0]]), good)
    with pytest.raises(InputError, match=r"compat\.test"):
        compat.curl(np.array([[-np.inf, 0.0], [0.0, 0.0]]), good)
