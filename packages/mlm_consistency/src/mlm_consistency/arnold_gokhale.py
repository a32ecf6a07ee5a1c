"""The joint whose conditionals are nearest to the given ones, with a certificate of optimality.

Arnold and Gokhale's joint minimises ``F(q) = sum_i sum_c w_i(c) KL(p_i(.|c) || q(.|c))`` over the
contexts c of every position. In ``theta = log q`` this is ``-<N, theta> + sum w LSE(theta)`` plus a
constant with ``N = sum_i w_i p_i``: convex, so a stationary point is the optimum.

Plain iteration (MM, the fixed point ``q <- N / sum_i w_i / q(c)``) never increases F but is slow.
Here: Newton steps from the Hodge potential. The Hessian is ``diag(d) - U U^T`` with one column of U
per context, so a step costs one solve of the size of the contexts (A + B instead of A x B).

The gap is certified by duality: ``F(q) >= sum w (H(r) - H(p))`` for every set of conditionals r
with ``sum_i w_i r_i = N``. The conditionals of q violate that by the gradient; an analysis of
variance spreads the violation so that r becomes feasible, and the bound is rigorous up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.special import entr, logsumexp, xlogy

from .errors import InputError, SupportError
from .hodge import anova

DENSE_CONTEXTS = 4000


@dataclass(frozen=True)
class Solution:
    """Optimum found for one table: ``log_q`` (sums to one), objective, bound gap, iterations."""

    log_q: Float[np.ndarray, ...]
    objective: float
    gap: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class _Problem:
    """Numerators and context weights of one table; arrays broadcast over the cells."""

    conditionals: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    target: np.ndarray
    constant: float

    @classmethod
    def make(cls, logs: tuple[np.ndarray, ...], weights: tuple[np.ndarray, ...] | None) -> _Problem:
        shape = logs[0].shape
        conditionals = tuple(np.exp(log) for log in logs)
        if weights is None:
            full = tuple(
                np.ones([1 if a == i else s for a, s in enumerate(shape)]) for i in range(len(logs))
            )
        else:
            full = []  # type: ignore[assignment]
            for i, w in enumerate(weights):
                context = tuple(s for a, s in enumerate(shape) if a != i)
                array = np.asarray(w, np.float64)
                if array.shape != context or not (array >= 0).all() or not array.sum() > 0:
                    raise InputError(
                        f"weights[{i}] has shape {array.shape}: allowed is {context} with"
                        " non-negative entries that are not all zero"
                    )
                full.append(np.expand_dims(array, i))  # type: ignore[attr-defined]
        target = sum(w * c for w, c in zip(full, conditionals))
        constant = float(sum((w * xlogy(c, c)).sum() for w, c in zip(full, conditionals)))
        return cls(conditionals, tuple(full), np.asarray(target), constant)

    def normalisers(self, theta: np.ndarray) -> list[np.ndarray]:
        return [logsumexp(theta, axis=i, keepdims=True) for i in range(theta.ndim)]

    def objective(self, theta: np.ndarray, normalisers: list[np.ndarray]) -> float:
        alive = self.target > 0
        inner = self.target[alive] @ theta[alive]
        total = sum((w * z).sum() for w, z in zip(self.weights, normalisers))
        return self.constant - float(inner) + float(total)

    def bound_gap(self, r: list[np.ndarray], objective: float) -> float:
        """Objective minus a dual lower bound; infinite where no feasible point was found."""
        violation = sum(w * x for w, x in zip(self.weights, r)) - self.target
        shifts = [np.zeros(violation.shape) for _ in r]
        for subset, part in anova(np.asarray(violation)).items():
            for axis in subset:
                shifts[axis] = shifts[axis] - part / len(subset)
        feasible, mixing = [], 0.0
        for x, w, shift, given in zip(r, self.weights, shifts, self.conditionals):
            with np.errstate(divide="ignore", invalid="ignore"):
                moved = x + np.where(w > 0, shift / w, 0.0)
                need = np.where(moved < 0, -moved / (given - moved), 0.0)
            mixing = max(mixing, float(need.max()))
            feasible.append(moved)
        if not mixing < 1:
            return float("inf")
        # the given conditionals are feasible, so every mixture with them is
        bound = self.constant
        for x, w, given in zip(feasible, self.weights, self.conditionals):
            mixed = np.maximum((1 - mixing) * x + mixing * given, 0.0)
            bound += float((w * entr(mixed)).sum())
        return max(objective - bound, 0.0)


def minorise(log_q: np.ndarray, problem: _Problem) -> np.ndarray:
    """One plain iteration ``q <- N / sum_i w_i / q(context i)`` in the log domain."""
    terms = [
        np.log(np.where(w > 0, w, 1.0)) + np.where(w > 0, 0.0, -np.inf)
        - logsumexp(log_q, axis=i, keepdims=True)
        for i, w in enumerate(problem.weights)
    ]  # fmt: skip
    stacked = logsumexp(np.stack(np.broadcast_arrays(*terms)), axis=0)
    with np.errstate(divide="ignore"):
        new = np.log(problem.target) - stacked
    return np.asarray(new - logsumexp(new))


def _newton_direction(
    gradient: np.ndarray, r: list[np.ndarray], weights: tuple[np.ndarray, ...], alive: np.ndarray
) -> np.ndarray:
    """Solve ``(diag(d) - U U^T) x = gradient`` through the Schur complement of the contexts."""
    d = np.asarray(sum(w * x for w, x in zip(weights, r)))
    inverse = np.where(alive & (d > 0), 1.0 / np.where(d > 0, d, 1.0), 0.0)
    u = [np.sqrt(w) * x for w, x in zip(weights, r)]
    if gradient.ndim == 2:  # contexts of axis 0 are the columns, of axis 1 the rows
        u0, u1 = u
        cross = (u0 * u1 * inverse).T
        schur = np.block(
            [
                [np.diag(1 - (u0**2 * inverse).sum(0)), -cross],
                [-cross.T, np.diag(1 - (u1**2 * inverse).sum(1))],
            ]
        )
        right = np.concatenate([(u0 * inverse * gradient).sum(0), (u1 * inverse * gradient).sum(1)])
        null = np.concatenate([np.sqrt(weights[0]).ravel(), np.sqrt(weights[1]).ravel()])
        z = _solve(schur, right, null)
        columns = gradient.shape[1]
        back = u0 * z[:columns] + u1 * z[columns:, None]
    else:
        matrix, null = _context_matrix(u, weights)
        schur = np.eye(matrix.shape[1]) - (matrix.T @ (matrix.multiply(inverse.reshape(-1, 1)))
                                           .tocsr()).toarray()  # fmt: skip
        z = _solve(schur, matrix.T @ (inverse * gradient).ravel(), null)
        back = (matrix @ z).reshape(gradient.shape)
    return np.asarray(inverse * (gradient + back))


def _solve(schur: np.ndarray, right: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Solve with the constant direction taken out; least squares where that is not enough."""
    pinned = schur + np.outer(null, null) / (null @ null)
    try:
        z = np.linalg.solve(pinned, right)
        if np.isfinite(z).all() and np.abs(schur @ z - right).max() <= 1e-6 * (
            1e-300 + np.abs(right).max()
        ):
            return z
    except np.linalg.LinAlgError:
        pass  # several blocks: the null space is larger than the constants
    return np.asarray(np.linalg.lstsq(schur, right, rcond=1e-13)[0])


def _context_matrix(
    u: list[np.ndarray], weights: tuple[np.ndarray, ...]
) -> tuple[sparse.csr_array, np.ndarray]:
    """Sparse U (cells by contexts) of any number of axes, and its null direction."""
    shape = u[0].shape
    index = np.indices(shape).reshape(len(shape), -1)
    columns, offset = [], 0
    for axis in range(len(shape)):
        others = tuple(s for a, s in enumerate(shape) if a != axis)
        columns.append(offset + np.ravel_multi_index(tuple(np.delete(index, axis, 0)), others))
        offset += int(np.prod(others))
    if offset > DENSE_CONTEXTS:
        raise InputError(
            f"table has {offset} contexts: allowed are up to {DENSE_CONTEXTS}; keep fewer"
            " candidates per position"
        )
    n = index.shape[1]
    values = np.concatenate([x.ravel() for x in u])
    matrix = sparse.csr_array(
        (values, (np.tile(np.arange(n), len(shape)), np.concatenate(columns))), shape=(n, offset)
    )
    null = np.concatenate([np.sqrt(w).ravel() for w in weights])
    return matrix, null


def solve(
    logs: tuple[Float[np.ndarray, ...], ...],
    weights: tuple[Float[np.ndarray, ...], ...] | None = None,
    tol: float = 1e-11,
    max_iter: int = 200,
    start: Float[np.ndarray, ...] | None = None,
) -> Solution:
    """Minimise F over all joints.

    Parameters
    ----------
    logs : tuple of k float arrays [V_1, ..., V_k]
        Conditionals normalised along their own axis, in nats.
    weights : tuple of k float arrays, optional
        Weight of every context (the shape without axis i); uniform by default.
    tol : float
        Certified gap at which to stop, in nats.
    max_iter : int
    start : float array, optional
        First ``log q``; by default the mean of the conditionals' logarithms, centred (Hodge).

    Raises
    ------
    SupportError
        A cell that one conditional needs is impossible under all weights.
    """
    problem = _Problem.make(logs, weights)
    alive = problem.target > 0
    for i in range(len(logs)):
        if not alive.any(axis=i).all():
            raise SupportError(f"conditional {i} has a context without support: enlarge the set")
    theta = _start(logs, alive) if start is None else np.where(alive, start, -np.inf)
    theta = theta - logsumexp(theta)
    normalisers = problem.normalisers(theta)
    value, gap, iteration = problem.objective(theta, normalisers), float("inf"), 0
    for iteration in range(max_iter + 1):
        r = [np.exp(theta - z) for z in normalisers]
        gap = problem.bound_gap(r, value)
        if gap <= tol or iteration == max_iter:
            break
        gradient = np.asarray(sum(w * x for w, x in zip(problem.weights, r))) - problem.target
        step = -_newton_direction(gradient, r, problem.weights, alive)
        slope = float((gradient * step)[alive].sum())
        moved = _line_search(problem, theta, step, slope, value, alive)
        if moved is None:
            if gap <= 10 * tol or value < 1e-13:
                break
            fresh = minorise(theta, problem)
            if problem.objective(fresh, problem.normalisers(fresh)) > value:
                break
            moved = fresh
        theta = moved - logsumexp(moved)
        normalisers = problem.normalisers(theta)
        value = problem.objective(theta, normalisers)
    return Solution(theta, max(value, 0.0), gap, iteration, gap <= max(tol, 1e-10))


def _start(logs: tuple[np.ndarray, ...], alive: np.ndarray) -> np.ndarray:
    """Hodge potential where the support is full, mean of the arrays otherwise."""
    if all(np.isfinite(log).all() for log in logs):
        shape = logs[0].shape
        potential = np.zeros(shape)
        for parts in zip(*(anova(log).items() for log in logs)):
            subset = parts[0][0]
            if subset:
                total = sum(shape[i] for i in subset)
                potential = potential + sum(shape[i] * parts[i][1] for i in subset) / total
        return potential
    with np.errstate(divide="ignore"):
        return np.where(alive, np.log(sum(np.exp(log) for log in logs)), -np.inf)


def _line_search(
    problem: _Problem,
    theta: np.ndarray,
    step: np.ndarray,
    slope: float,
    value: float,
    alive: np.ndarray,
) -> np.ndarray | None:
    """Halve until the objective falls enough; None where rounding hides every decrease."""
    largest = float(np.abs(step[alive]).max())
    if not np.isfinite(largest) or largest == 0 or slope > 0:
        return None
    scale = min(1.0, 4.0 / largest)
    noise = 1e-15 * (1 + abs(value) + abs(problem.constant))
    for _ in range(40):
        moved = np.where(alive, theta + scale * step, -np.inf)
        new = problem.objective(moved, problem.normalisers(moved))
        if new <= value + 1e-4 * scale * slope + noise:
            return moved
        scale /= 2
    return None


def plain_iterations(
    logs: tuple[Float[np.ndarray, ...], ...], iterations: int, tol: float = 0.0
) -> Solution:
    """Run the fixed point that earlier code uses (from uniform); for comparisons."""
    problem = _Problem.make(logs, None)
    theta = np.where(problem.target > 0, 0.0, -np.inf)
    theta = theta - logsumexp(theta)
    gap, done = float("inf"), 0
    for done in range(1, iterations + 1):
        theta = minorise(theta, problem)
        if tol and done % 5 == 0:
            z = problem.normalisers(theta)
            gap = problem.bound_gap([np.exp(theta - x) for x in z], problem.objective(theta, z))
            if gap <= tol:
                break
    z = problem.normalisers(theta)
    value = problem.objective(theta, z)
    gap = problem.bound_gap([np.exp(theta - x) for x in z], value)
    return Solution(theta, value, gap, done, gap <= max(tol, 1e-10))


def objective(logs: tuple[Float[np.ndarray, ...], ...], log_q: Float[np.ndarray, ...]) -> float:
    """Objective F of any joint, nats, uniform context weights."""
    problem = _Problem.make(logs, None)
    return problem.objective(log_q, problem.normalisers(log_q))
