"""Is there a joint distribution? Decision, certificate and the size of every violation.

Arnold and Press (1989), Arnold and Gokhale (1994): two positive conditionals are compatible
exactly when all cross-product ratios agree. With zeros (Song, Li, Chen, Jiang and Kuo, 2010): the
supports must agree, and in every connected block the logarithm of the ratio of the conditionals
must be a row term plus a column term.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from .errors import InputError, require
from .tables import PairTable, Table, as_log_table, axis_conditionals


@dataclass(frozen=True)
class Certificate:
    """The place where two patterns contradict each other most.

    Parameters
    ----------
    kind : "quadruple", "cycle", "support" or "none"
    gap : float
        Nats around the quadruple or cycle; infinite where one conditional says "impossible" and
        another one does not.
    axes : (int, int)
        Positions of the quadruple.
    cells : tuple of cells
        Corners: (a, b), (a', b), (a', b'), (a, b') for a quadruple; the cycle otherwise.
    """

    kind: str
    gap: float
    axes: tuple[int, int] = (0, 1)
    cells: tuple[tuple[int, ...], ...] = ()

    def describe(self, table: Table) -> str:
        """Name the corners in words where the table has labels."""
        if isinstance(table, PairTable):
            names = (table.labels_a, table.labels_b)
        else:
            names = table.labels or tuple(() for _ in table.shape)  # type: ignore[assignment]
        words = [
            "(" + ", ".join(n[i] if n else str(i) for n, i in zip(names, cell)) + ")"
            for cell in self.cells
        ]
        return f"{self.kind} {' '.join(words)}: {self.gap:+.4g} nats"


@dataclass(frozen=True)
class Verdict:
    """Answer of `test`.

    Parameters
    ----------
    compatible : bool
    certificate : Certificate
        The worst violation, also when it is within the tolerance.
    tolerance : float
    unique : bool
        The joint, if there is one, is unique (the support is connected).
    blocks : int
        Connected blocks of the support.
    """

    compatible: bool
    certificate: Certificate
    tolerance: float
    unique: bool = True
    blocks: int = 1

    def __bool__(self) -> bool:
        return self.compatible

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        c = self.certificate
        return {
            "compatible": self.compatible,
            "gap": c.gap if np.isfinite(c.gap) else None,
            "kind": c.kind,
            "axes": list(c.axes),
            "cells": [list(cell) for cell in c.cells],
            "tolerance": self.tolerance,
            "unique": self.unique,
            "blocks": self.blocks,
        }


def difference(table: PairTable) -> Float[np.ndarray, "A B"]:
    """Return ``log p(a|b) - log p(b|a)``, whose double differences are the curl."""
    first, second = table.conditionals
    both = np.isneginf(first) & np.isneginf(second)
    with np.errstate(invalid="ignore"):
        return np.where(both, np.nan, first - second)


def curl(
    log_a_given_b: Float[np.ndarray, "A B"], log_b_given_a: Float[np.ndarray, "A B"]
) -> Float[np.ndarray, "pairs_a pairs_b"]:
    """Log odds-ratio gap of every quadruple (the paper's quadruple test, everywhere).

    ``Gamma(a, a'; b, b')`` is the log odds-ratio of ``p(a|b)`` minus that of ``p(b|a)``. All are
    zero exactly when the two conditionals belong to one joint distribution.

    Parameters
    ----------
    log_a_given_b, log_b_given_a : float [A, B]
        Log-probabilities in nats; need not be normalised over the candidates.

    Returns
    -------
    float [A (A - 1) / 2, B (B - 1) / 2]
        Gaps in nats, pairs ``a < a'`` and ``b < b'`` in lexicographic order (`quadruples`).

    Raises
    ------
    InputError
        Shapes differ, NaN, or an entry is minus infinity (use `test`, which decides with zeros).

    Examples
    --------
    The odds ratio of the first is 1/9, that of the second 1:

    >>> first = np.log([[0.25, 0.75], [0.75, 0.25]])
    >>> second = np.log([[0.5, 0.5], [0.5, 0.5]])
    >>> curl(first, second).round(5)
    array([[-2.19722]])
    """
    first = as_log_table("log_a_given_b", log_a_given_b, 2)
    second = as_log_table("log_b_given_a", log_b_given_a, 2)
    require(first.shape == second.shape, "log_b_given_a", second.shape, f"the shape {first.shape}")
    if np.isneginf(first).any() or np.isneginf(second).any():
        raise InputError(
            "log_a_given_b or log_b_given_a holds -inf: allowed is positive support; use"
            " compat.test, which decides with zeros"
        )
    d = first - second
    a, a2 = np.triu_indices(d.shape[0], 1)
    b, b2 = np.triu_indices(d.shape[1], 1)
    rows = d[a] - d[a2]
    return np.asarray(rows[:, b] - rows[:, b2])


def quadruples(a: int, b: int) -> np.ndarray:
    """Corners (a, a', b, b') of the entries of `curl`, int [pairs_a, pairs_b, 4]."""
    first, second = np.triu_indices(a, 1), np.triu_indices(b, 1)
    grid = np.empty((len(first[0]), len(second[0]), 4), np.int64)
    grid[..., 0], grid[..., 1] = first[0][:, None], first[1][:, None]
    grid[..., 2], grid[..., 3] = second[0], second[1]
    return grid


def gap_at(table: PairTable, a: int, a2: int, b: int, b2: int) -> float:
    """Curl of one quadruple in nats; changes sign under a <-> a' and under b <-> b'."""
    d = difference(table)
    return float(d[a, b] - d[a2, b] - d[a, b2] + d[a2, b2])


def _worst_two_axes(d: Float[np.ndarray, "rest A B"]) -> tuple[float, tuple[int, ...]]:
    """Largest |curl| of a stack of difference tables: gap and (rest, a, a', b, b')."""
    best: tuple[float, tuple[int, ...]] = (0.0, (0, 0, 0, 0, 0))
    for a in range(d.shape[1] - 1):
        rows = d[:, a, None] - d[:, a + 1 :]
        high, low = rows.max(axis=2), rows.min(axis=2)
        span = high - low
        at = np.unravel_index(int(np.argmax(span)), span.shape)
        if span[at] > abs(best[0]):
            r, other = int(at[0]), int(at[1])
            b, b2 = int(rows[r, other].argmax()), int(rows[r, other].argmin())
            sign = 1.0
            if b > b2:
                b, b2, sign = b2, b, -1.0
            best = (sign * float(span[at]), (r, a, a + 1 + other, b, b2))
    return best


def worst_quadruple(table: Table) -> Certificate:
    """Find the quadruple with the largest gap without listing all of them.

    For each pair of rows the extreme columns are the answer, so the cost is A^2 B, not A^2 B^2.
    For k positions every pair of axes and every value of the others is searched; these squares are
    complete: all of them vanish exactly when a joint exists.
    """
    arrays = axis_conditionals(table)
    shape = arrays[0].shape
    worst = Certificate("none", 0.0)
    for i, j in combinations(range(len(shape)), 2):
        with np.errstate(invalid="ignore"):
            d = arrays[i] - arrays[j]
        if not np.isfinite(d).all():
            continue
        moved = np.moveaxis(d, (i, j), (-2, -1))
        rest = moved.shape[:-2]
        gap, (r, a, a2, b, b2) = _worst_two_axes(moved.reshape(-1, *moved.shape[-2:]))
        if abs(gap) > abs(worst.gap):
            others = [int(v) for v in np.unravel_index(r, rest)] if rest else []

            def cell(x: int, y: int, others: list[int] = others, i: int = i, j: int = j) -> Any:
                full = list(others)
                full.insert(i, x)
                full.insert(j, y)
                return tuple(full)

            corners = (cell(a, b), cell(a2, b), cell(a2, b2), cell(a, b2))
            worst = Certificate("quadruple", gap, (i, j), corners)
    return worst


def test(table: Table, tol: float = 1e-9) -> Verdict:  # noqa: PT028
    """Decide whether a joint distribution with these conditionals exists.

    Parameters
    ----------
    table : PairTable or CubeTable
    tol : float
        Largest gap in nats that counts as rounding.

    Returns
    -------
    Verdict
        With the worst quadruple (or cycle, or contradictory zero) as certificate.

    References
    ----------
    Arnold, Castillo and Sarabia; Song et al., Statistica Sinica 20 (2010) 423-440.

    Examples
    --------
    >>> table = PairTable.from_joint(np.log([[0.1, 0.2], [0.3, 0.4]]))
    >>> test(table).compatible
    True
    """
    require(tol >= 0, "tol", tol, "zero or more nats")
    arrays = axis_conditionals(table)
    zeros = [np.isneginf(a) for a in arrays]
    if not any(z.any() for z in zeros):
        worst = worst_quadruple(table)
        return Verdict(abs(worst.gap) <= tol, worst, tol)
    for i in range(1, len(arrays)):
        differs = np.argwhere(zeros[i] != zeros[0])
        if len(differs):
            cell = tuple(int(v) for v in differs[0])
            return Verdict(False, Certificate("support", float("inf"), (0, i), (cell,)), tol)
    return _test_on_support(arrays, tol)


# pytest collects functions named test*; this one is the public name of the contract.
test.__test__ = False  # type: ignore[attr-defined]


def _test_on_support(arrays: tuple[np.ndarray, ...], tol: float) -> Verdict:
    """Potentials on the bipartite graph of cells and contexts, along a spanning forest.

    ``log q(x) - log q(x without i) = L_i(x)`` for every cell x of the support and every axis i: a
    joint exists exactly when these differences add up to zero around every cycle.
    """
    shape = arrays[0].shape
    cells = np.argwhere(~np.isneginf(arrays[0]))
    n = len(cells)
    rows, columns, weights = [], [], []
    offset = n
    for axis, array in enumerate(arrays):
        others = [s for a, s in enumerate(shape) if a != axis]
        kept = np.delete(cells, axis, axis=1)
        context = np.ravel_multi_index(tuple(kept.T), tuple(others)) if others else np.zeros(n, int)
        rows.append(np.arange(n))
        columns.append(offset + context)
        weights.append(array[tuple(cells.T)])
        offset += int(np.prod(others))
    row, column, weight = (np.concatenate(v) for v in (rows, columns, weights))
    graph = sparse.csr_array((np.ones(len(row)), (row, column)), shape=(offset, offset))
    _, label = connected_components(graph, directed=False)
    used = np.unique(label[:n])
    potential = np.zeros(offset)
    parent = np.full(offset, -1)
    edge = {(int(r), int(c)): float(w) for r, c, w in zip(row, column, weight)}
    for block in used:
        root = int(np.argmax(label == block))
        order, predecessors = breadth_first_order(graph, root, directed=False)
        for node in order[1:]:
            previous = int(predecessors[node])
            parent[node] = previous
            if node >= n:  # a context: one step down from the cell
                potential[node] = potential[previous] - edge[previous, int(node)]
            else:
                potential[node] = potential[previous] + edge[int(node), previous]
    residual = weight - (potential[row] - potential[column])
    at = int(np.argmax(np.abs(residual)))
    cycle = _cycle(parent, int(row[at]), int(column[at]), n)
    corners = tuple(tuple(int(v) for v in cells[node]) for node in cycle)
    gap = float(residual[at])
    certificate = Certificate("cycle" if gap else "none", gap, (0, 1), corners if gap else ())
    return Verdict(abs(gap) <= tol, certificate, tol, len(used) == 1, len(used))


def _cycle(parent: np.ndarray, first: int, second: int, cells: int) -> list[int]:
    """Cells on the cycle that an edge closes in the spanning forest."""
    left, right = [first], [second]
    while parent[left[-1]] >= 0:
        left.append(int(parent[left[-1]]))
    while parent[right[-1]] >= 0:
        right.append(int(parent[right[-1]]))
    while len(left) > 1 and len(right) > 1 and left[-2] == right[-2]:
        left.pop()
        right.pop()
    return [node for node in left + right[:-1][::-1] if node < cells]


def ratio_rank_one(table: PairTable) -> float:
    """Largest deviation of ``log C = log A/B`` from a row plus a column term (Arnold-Press)."""
    d = difference(table)
    if not np.isfinite(d).all():
        raise InputError("table holds -inf: allowed is positive support; use compat.test")
    centred = d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean()
    return float(np.abs(centred).max())


def lfm_score(table: PairTable) -> float:
    """Compatibility score of Torroba Hennigen and Kim (2023): zero when compatible.

    Mean over the cells of ``(log C + LSE(C) - LSE_b(C)_a - LSE_a(C)_b)^2``.
    """
    from scipy.special import logsumexp

    d = difference(table)
    if not np.isfinite(d).all():
        raise InputError("table holds -inf: allowed is positive support; use compat.test")
    residual = (
        d + logsumexp(d) - logsumexp(d, axis=1, keepdims=True) - logsumexp(d, axis=0, keepdims=True)
    )
    return float(np.mean(residual**2))


def enough_constraints(values: int, positions: int) -> tuple[int, int]:
    """Rank of all quadruple tests, and how many constraints a joint imposes: they are equal.

    ``k V^(k-1) (V-1) - (V^k - 1)`` constraints on positive conditionals of k positions.
    """
    require(positions >= 2 and values >= 2, "positions", positions, "2 or more, values too")
    shape = (values,) * positions
    n = values**positions
    index = np.arange(n).reshape(shape)
    rows = []
    for i, j in combinations(range(positions), 2):
        moved = np.moveaxis(index, (i, j), (-2, -1)).reshape(-1, values, values)
        for square in moved:
            for a in range(values - 1):
                for b in range(values - 1):
                    row = np.zeros(positions * n)
                    for sign, cell in (
                        (1, square[a, b]),
                        (-1, square[a + 1, b]),
                        (-1, square[a, b + 1]),
                        (1, square[a + 1, b + 1]),
                    ):
                        row[i * n + cell] += sign
                        row[j * n + cell] -= sign
                    rows.append(row)
    rank = int(np.linalg.matrix_rank(np.asarray(rows)))
    return rank, positions * values ** (positions - 1) * (values - 1) - (n - 1)


__all__ = [
    "Certificate",
    "Verdict",
    "curl",
    "difference",
    "enough_constraints",
    "gap_at",
    "lfm_score",
    "quadruples",
    "ratio_rank_one",
    "test",
    "worst_quadruple",
]
