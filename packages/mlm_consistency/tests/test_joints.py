"""Joints, Hodge, UMR and Gibbs laws against independent solvers."""

import itertools

import numpy as np
import pytest
from conftest import random_table
from mlm_consistency import CubeTable, InputError, PairTable, gibbs, hodge, joints, metrics, umr
from mlm_consistency import arnold_gokhale as ag_module
from mlm_consistency.tables import normalise
from scipy.optimize import minimize
from scipy.sparse.linalg import lsqr
from scipy.special import logsumexp


def random_cube(rng, shape, scale=1.0):
    return CubeTable(tuple(normalise(rng.normal(size=shape) * scale, i) for i in range(len(shape))))


def test_ag_returns_the_joint_when_there_is_one(rng):
    exact = normalise(rng.normal(size=(5, 6)), (0, 1))
    found = joints.ag(PairTable.from_joint(exact))
    assert np.allclose(found.log_q, exact, atol=1e-8)
    assert found.objective <= 1e-12
    assert found.gap <= 1e-10


def test_ag_against_cvxpy(rng):
    import cvxpy as cp

    for a, b in ((3, 4), (5, 5)):
        table = random_table(rng, a, b)
        n = np.exp(table.log_a_given_b) + np.exp(table.log_b_given_a)
        theta = cp.Variable((a, b))
        value = (
            -cp.sum(cp.multiply(n, theta))
            + sum(cp.log_sum_exp(theta[:, j]) for j in range(b))
            + sum(cp.log_sum_exp(theta[i, :]) for i in range(a))
        )
        problem = cp.Problem(cp.Minimize(value), [cp.sum(theta) == 0])
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        constant = sum((np.exp(c) * c).sum() for c in table.conditionals)
        found = joints.ag(table)
        assert found.objective == pytest.approx(problem.value + constant, abs=1e-8)
        assert found.gap <= 1e-10


def test_ag_against_lbfgs_for_three_positions(rng):
    cube = random_cube(rng, (3, 4, 3))
    arrays = cube.conditionals

    def value(flat):
        theta = flat.reshape(3, 4, 3)
        return sum((np.exp(c) * (c - normalise(theta, i))).sum() for i, c in enumerate(arrays))

    def gradient(flat):
        theta = flat.reshape(3, 4, 3)
        return sum(np.exp(normalise(theta, i)) - np.exp(c) for i, c in enumerate(arrays)).ravel()

    other = minimize(value, np.zeros(36), jac=gradient, method="L-BFGS-B",
                     options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 2000})  # fmt: skip
    found = joints.ag(cube)
    assert found.objective == pytest.approx(other.fun, abs=1e-8)
    assert found.gap <= 1e-10


def test_gap_is_a_bound_at_every_point(rng):
    table = random_table(rng, 6, 6)
    best = joints.ag(table).objective
    for iterations in (1, 5, 20):
        plain = ag_module.plain_iterations(table.conditionals, iterations)
        assert plain.gap >= plain.objective - best - 1e-12


def test_plain_iteration_is_monotone_and_slower(rng):
    table = random_table(rng, 8, 8, scale=3)
    values = [
        ag_module.plain_iterations(table.conditionals, n).objective for n in (1, 2, 5, 20, 60)
    ]
    assert all(x >= y - 1e-12 for x, y in itertools.pairwise(values))
    found = joints.ag(table)
    slow = ag_module.plain_iterations(table.conditionals, 20_000, 1e-10)
    assert found.iterations <= slow.iterations / 5
    # forty iterations, the default of earlier code, leave the optimum visibly behind
    forty = ag_module.plain_iterations(table.conditionals, 40)
    assert forty.objective > found.objective


def test_ag_weights_and_zeros(rng):
    table = random_table(rng, 4, 5)
    heavy = (np.array([1e4, 1, 1, 1, 1]), np.ones(4))
    found = joints.ag(table, heavy)
    assert np.allclose(found.conditional(0)[:, 0], table.log_a_given_b[:, 0], atol=1e-2)
    assert found.gap <= 1e-10
    assert joints.ag(table, "marginal").gap <= 1e-10
    with np.errstate(divide="ignore"):
        q = np.log(np.array([[0.3, 0.2, 0.0], [0.0, 0.4, 0.1]]))
    zero = joints.ag(PairTable.from_joint(q))
    assert np.allclose(np.exp(zero.log_q), np.exp(q), atol=1e-8)
    with pytest.raises(InputError, match="weights"):
        joints.ag(table, "half")


def test_all_constructions_recover_a_joint(rng):
    exact = normalise(rng.normal(size=(4, 5)), (0, 1))
    table = PairTable.from_joint(exact, log_z_a=rng.normal(size=5), log_z_b=rng.normal(size=4))
    for name in ("ag", "hodge", "hcb", "chain_ij", "chain_ji", "umr"):
        assert np.allclose(joints.METHODS[name](table).log_q, exact, atol=1e-7), name
    independent = PairTable.from_joint(
        normalise(rng.normal(size=(4, 1)) + rng.normal(size=5), (0, 1))
    )
    assert np.allclose(joints.naive(independent).log_q, joints.ag(independent).log_q, atol=1e-8)
    # the sum of two conditionals is not the joint, even when one exists
    assert not np.allclose(joints.mrf_local(table).log_q, exact, atol=1e-2)


def test_joint_interface(rng):
    joint = joints.ag(random_table(rng, 3, 4))
    assert logsumexp(joint.log_q) == pytest.approx(0, abs=1e-12)
    assert np.allclose(logsumexp(joint.conditional(0), axis=0), 0)
    assert joint.marginal(1).shape == (4,)
    drawn = joint.sample(20_000, seed=1)
    share = np.bincount(drawn[:, 0], minlength=3) / 20_000
    assert np.allclose(share, np.exp(joint.marginal(0)), atol=0.02)
    assert joint.to_frame().probability.sum() == pytest.approx(1)
    assert "ag" in repr(joint)


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 5), (2, 3, 2, 3)])
def test_hodge_against_sparse_least_squares(rng, shape):
    cube = random_cube(rng, shape)
    matrix, flow = hodge.edge_flow(cube)
    solution = lsqr(matrix, flow, atol=1e-14, btol=1e-14, iter_lim=5000)
    parts = hodge.decompose(cube)
    assert parts.edges == len(flow)
    assert parts.flow_energy == pytest.approx((flow**2).sum(), rel=1e-10)
    assert parts.curl_energy == pytest.approx(solution[3] ** 2, rel=1e-7)
    ours = parts.potential.ravel() - parts.potential.mean()
    assert np.allclose(ours, solution[0] - solution[0].mean(), atol=1e-6)


def test_raking_against_ipfn(rng):
    """Iterative proportional fitting to any margins, and to uniform ones, as ipfn does it."""
    peer = pytest.importorskip("ipfn").ipfn
    table = rng.normal(size=(4, 6))
    rows, columns = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(6))
    for margins in ((rows, columns), (np.full(4, 1 / 4), np.full(6, 1 / 6))):
        other = peer.ipfn(
            np.exp(table), list(margins), [[0], [1]], convergence_rate=1e-14, max_iteration=5000
        ).iteration()
        found = umr.scale(table, *map(np.log, margins))
        assert np.allclose(np.exp(found.log_table), other, atol=1e-10)


def test_umr_against_pot(rng):
    ot = pytest.importorskip("ot")
    table = rng.normal(size=(5, 7))
    other = ot.sinkhorn(np.full(5, 1 / 5), np.full(7, 1 / 7), -table, 1.0, stopThr=1e-14,
                        numItermax=5000)  # fmt: skip
    found = umr.uniform_marginal_representation(table)
    assert np.allclose(np.exp(found.log_table), other, atol=1e-10)


def test_gibbs_law_against_power_iteration(rng):
    table = random_table(rng, 5, 4)
    a, b = (np.exp(c) for c in table.conditionals)
    q = np.full((5, 4), 1 / 20)
    for _ in range(5000):
        q = q.sum(0, keepdims=True) * a  # update the first position
        q = q.sum(1, keepdims=True) * b  # then the second
    assert np.allclose(gibbs.stationary(table, (0, 1)).law, q, atol=1e-12)
    report = gibbs.scan_orders(table)
    assert report.tv > 0.01
    assert gibbs.markovian_incompatibility(table) == pytest.approx(2 * report.tv)
    joint = PairTable.from_joint(rng.normal(size=(5, 4)))
    assert gibbs.scan_orders(joint).tv <= 1e-12
    assert 0 <= gibbs.stationary(joint, (1, 0)).second_eigenvalue < 1


def test_gibbs_of_three_positions(rng):
    cube = random_cube(rng, (3, 4, 2))
    kernels = [np.exp(c) for c in cube.conditionals]
    for law in gibbs.scan_orders(cube).laws:
        q = law.law
        for axis in law.order:
            q = q.sum(axis=axis, keepdims=True) * kernels[axis]
        assert np.allclose(q, law.law, atol=1e-12)
    assert gibbs.scan_orders(CubeTable.from_joint(rng.normal(size=(3, 4, 2)))).tv <= 1e-12


def test_order_gaps_are_sums_of_adjacent_swaps(rng):
    k = 5
    log_p = {
        frozenset(s): rng.normal(size=k)
        for n in range(k + 1)
        for s in itertools.combinations(range(k), n)
    }
    totals = metrics.order_gaps(log_p, k)
    orders = list(totals)
    for first, second in zip(orders[::7], orders[::-5]):
        found = metrics.order_gap_by_swaps(log_p, first, second)
        assert found == pytest.approx(totals[first] - totals[second], abs=1e-10)
    seen = frozenset({0})
    assert metrics.swap_gap(log_p, seen, 1, 2) == -metrics.swap_gap(log_p, seen, 2, 1)


def test_path_is_antisymmetric_and_levels_vanish_on_a_joint(rng):
    table = random_table(rng, 3, 4)
    turned = PairTable(
        table.log_b_given_a.T, table.log_a_given_b.T, table.log_m_j, table.log_m_i, gold=(0, 0)
    )
    assert np.allclose(metrics.path_gaps(table), -metrics.path_gaps(turned).T)
    exact = PairTable.from_joint(rng.normal(size=(4, 4)), gold=(1, 2))
    found = metrics.pair_metrics(exact)
    for name in ("u_gamma_gold", "u_gamma_max", "u_gibbs_tv", "p_path_gold", "m_tv_i", "m_tv_j",
                 "u_ag_objective"):  # fmt: skip
        assert abs(found[name]) <= 1e-10, name
    assert not found["p_disagreement"]
    # U without P: unary conditionals of a joint, both-masked marginals of another model
    other = PairTable(
        exact.log_a_given_b, exact.log_b_given_a, *(random_table(rng, 4, 4).need_margins()),
        gold=(1, 2),
    )  # fmt: skip
    mixed = metrics.pair_metrics(other)
    assert abs(mixed["u_gamma_gold"]) < 1e-10
    assert abs(mixed["p_path_gold"]) > 1e-3
    assert mixed["m_tv_i"] > 1e-3


def test_relative_difference_is_the_papers(rng):
    j1, j2 = rng.random(50), rng.random(50)
    expected = np.abs(j1 - j2) / ((j1 + j2) / 2)
    assert np.allclose(metrics.relative_difference(np.log(j1 / j2)), expected)
