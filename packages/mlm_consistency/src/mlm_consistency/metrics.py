"""Numbers of one pair table, kept apart by level.

U (unary): conditionals with one mask only. P (path): two orders of filling both masks.
M (marginalisation): a both-masked marginal against the sum over its partner. Levels P and M use the
both-masked pattern, which a model meets rarely in training, so they are never mixed with U.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from . import compat, gibbs, joints
from .errors import InputError
from .hodge import decompose
from .tables import CubeTable, PairTable, normalise

JOINT_METHODS = ("ag", "hodge", "hcb", "mrf_local", "mrf", "naive", "chain_ij", "chain_ji")


def best_alternatives(table: PairTable) -> tuple[int, int]:
    """Most probable other candidates given the gold partner: (a', b')."""
    a, b = _gold(table)
    column = table.log_a_given_b[:, b].copy()
    row = table.log_b_given_a[a].copy()
    column[a] = row[b] = -np.inf
    return int(np.argmax(column)), int(np.argmax(row))


def _gold(table: PairTable) -> tuple[int, int]:
    if table.gold is None:
        raise InputError("table has no gold cell: allowed is a table made from a sentence")
    return table.gold


def path_gaps(table: PairTable) -> Float[np.ndarray, "A B"]:
    """``log J1 - log J2`` of every cell: fill i first against fill j first, nats.

    ``J1 = m_i(a) p(b|a)`` and ``J2 = m_j(b) p(a|b)``; antisymmetric under exchange of positions.
    """
    m_i, m_j = table.need_margins()
    return np.asarray((m_i[:, None] + table.log_b_given_a) - (m_j + table.log_a_given_b))


def relative_difference(log_ratio: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """``|J1 - J2| / ((J1 + J2) / 2)`` from ``log J1 / J2``."""
    return np.asarray(2 * np.abs(np.tanh(np.asarray(log_ratio) / 2)))


def marginal_tv(table: PairTable) -> tuple[float, float]:
    """Total variation of ``m_i`` and ``sum_b m_j(b) p(.|b)``, and the same for j.

    On the candidate sets, all distributions renormalised over them.
    """
    table = table.renormalised()
    m_i, m_j = table.need_margins()
    mixed_i = np.exp(logsumexp(table.log_a_given_b + m_j, axis=1))
    mixed_j = np.exp(logsumexp(table.log_b_given_a + m_i[:, None], axis=0))
    return (
        gibbs.total_variation(np.exp(m_i), mixed_i),
        gibbs.total_variation(np.exp(m_j), mixed_j),
    )


def kl(log_p: np.ndarray, log_q: np.ndarray, axis: int = 0) -> np.ndarray:
    """Kullback-Leibler divergence along an axis, nats."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return np.asarray(terms.sum(axis=axis))


def jensen_shannon(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two joints, nats."""
    middle = np.logaddexp(log_p, log_q) - np.log(2)
    return 0.5 * float(kl(log_p.ravel(), middle.ravel()) + kl(log_q.ravel(), middle.ravel()))


def joint_quality(table: PairTable, joint: joints.Joint) -> dict[str, float]:
    """How a joint predicts the gold tokens, and how far its conditionals are from the model's.

    Over the candidate sets, in nats per token: ``u_nll`` (each gold token given the other),
    ``p_nll`` (the pair), ``kl`` and ``kl_reverse`` of the conditionals in the gold contexts.
    """
    table = table.renormalised()
    a, b = _gold(table)
    on_a, on_b = joint.conditional(0), joint.conditional(1)
    p_a, p_b = table.log_a_given_b[:, b], table.log_b_given_a[a]
    return {
        "u_nll": -0.5 * float(on_a[a, b] + on_b[a, b]),
        "p_nll": -0.5 * float(joint.log_q[a, b]),
        "kl": 0.5 * float(kl(p_a, on_a[:, b]) + kl(p_b, on_b[a])),
        "kl_reverse": 0.5 * float(kl(on_a[:, b], p_a) + kl(on_b[a], p_b)),
    }


def pair_metrics(table: PairTable, quality: bool = True) -> dict[str, Any]:
    """All numbers of one probe, flat, with the level in front (``u_``, ``p_``, ``m_``).

    Parameters
    ----------
    table : PairTable with a gold cell
    quality : bool
        Also build the joints and score them (``joint_<method>_<metric>``).
    """
    a, b = _gold(table)
    out: dict[str, Any] = {}
    if min(table.shape) < 2:
        raise InputError("table has one candidate on a side: allowed are two or more")
    a2, b2 = best_alternatives(table)
    gaps = np.abs(compat.curl(*table.conditionals))
    worst = compat.worst_quadruple(table)
    parts = decompose(table)
    out["u_gamma_gold"] = compat.gap_at(table, a, a2, b, b2)
    out["u_gamma_median"] = float(np.median(gaps))
    out["u_gamma_max"] = abs(worst.gap)
    out["u_worst"] = worst.describe(table)
    out["u_curl_rms"] = parts.curl_rms
    out["u_curl_share"] = parts.curl_share
    out["u_gibbs_tv"] = gibbs.scan_orders(table).tv
    if table.log_m_i is not None:
        path = path_gaps(table)
        out["p_path_gold"] = float(path[a, b])
        out["p_path_median"] = float(np.median(np.abs(path)))
        out["p_relative_gold"] = float(relative_difference(path[a, b]))
        # order of (a, b) and (a', b) under J1 against the order under the one-mask conditional
        joint_order = (table.need_margins()[0][a] + table.log_b_given_a[a, b]) - (
            table.need_margins()[0][a2] + table.log_b_given_a[a2, b]
        )
        unary_order = table.log_a_given_b[a, b] - table.log_a_given_b[a2, b]
        out["p_disagreement"] = bool(joint_order * unary_order < 0)
        out["m_tv_i"], out["m_tv_j"] = marginal_tv(table)
    if quality:
        inner = table.renormalised()
        out["joint_mlm_u_nll"] = -0.5 * float(inner.log_a_given_b[a, b] + inner.log_b_given_a[a, b])
        methods = [
            m
            for m in JOINT_METHODS
            if (m != "mrf" or table.log_z_a is not None)
            and (m in ("ag", "hodge", "mrf_local", "mrf") or table.log_m_i is not None)
        ]
        for method in methods:
            joint = joints.METHODS[method](table)
            if method == "ag":
                out["u_ag_objective"] = joint.objective / sum(table.shape)
                out["u_ag_gap"] = joint.gap
            for name, value in joint_quality(table, joint).items():
                out[f"joint_{method}_{name}"] = value
    return out


def order_gaps(log_p: dict[frozenset[int], Float[np.ndarray, " k"]], k: int) -> dict[Any, float]:
    """Log-probability of one cell under every order of filling k positions.

    Parameters
    ----------
    log_p : dict
        ``log_p[visible][i]``: log-probability of the cell's value at i when the positions in
        `visible` show theirs and all others are masked.
    k : int

    Returns
    -------
    dict
        Order (tuple of positions) to the sum of its conditionals, nats.
    """
    from itertools import permutations

    out = {}
    for order in permutations(range(k)):
        total, seen = 0.0, frozenset[int]()
        for position in order:
            total += float(log_p[seen][position])
            seen = seen | {position}
        out[order] = total
    return out


def swap_gap(
    log_p: dict[frozenset[int], Float[np.ndarray, " k"]], seen: frozenset[int], i: int, j: int
) -> float:
    """Gap of one adjacent swap: i then j against j then i, after `seen` (local curl)."""
    return float(log_p[seen][i] + log_p[seen | {i}][j] - log_p[seen][j] - log_p[seen | {j}][i])


def order_gap_by_swaps(
    log_p: dict[frozenset[int], Float[np.ndarray, " k"]],
    first: tuple[int, ...],
    second: tuple[int, ...],
) -> float:
    """Gap between two orders as the sum of the adjacent swaps that lead from one to the other."""
    order, total = list(first), 0.0
    for target, position in enumerate(second):
        at = order.index(position)
        while at > target:
            seen = frozenset(order[: at - 1])
            total += swap_gap(log_p, seen, order[at - 1], order[at])
            order[at - 1], order[at] = order[at], order[at - 1]
            at -= 1
    return total


def cube_metrics(table: CubeTable) -> dict[str, Any]:
    """Curl, Hodge split, scan orders and nearest joint of k positions."""
    worst = compat.worst_quadruple(table)
    parts = decompose(table)
    joint = joints.ag(table)
    return {
        "u_gamma_max": abs(worst.gap),
        "u_worst": worst.describe(table),
        "u_curl_rms": parts.curl_rms,
        "u_curl_share": parts.curl_share,
        "u_gibbs_tv": gibbs.scan_orders(table).tv,
        "u_ag_objective": joint.objective / sum(c.size // s for c, s in _sizes(table)),
        "u_ag_gap": joint.gap,
    }


def _sizes(table: CubeTable) -> list[tuple[np.ndarray, int]]:
    return list(zip(table.conditionals, table.shape))


__all__ = [
    "best_alternatives",
    "cube_metrics",
    "jensen_shannon",
    "joint_quality",
    "marginal_tv",
    "normalise",
    "order_gap_by_swaps",
    "order_gaps",
    "pair_metrics",
    "path_gaps",
    "relative_difference",
    "swap_gap",
]
