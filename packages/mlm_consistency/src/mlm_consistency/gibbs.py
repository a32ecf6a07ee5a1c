"""What a Gibbs sampler over the positions converges to, for every order of its scan.

With compatible conditionals all orders have one stationary law, the joint. Without, the law right
after the last update of a sweep depends on the order; how much is the Markovian incompatibility of
Arnold, Castillo and Sarabia. Laws are computed exactly, by a linear solve, not by sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from .errors import InputError, require
from .tables import Table, axis_conditionals

LARGEST_CHAIN = 4000


@dataclass(frozen=True)
class ScanLaw:
    """Stationary law of one scan order, right after the sweep's last update.

    Parameters
    ----------
    order : tuple of int
    law : float [V_1, ..., V_k]
        Probabilities.
    second_eigenvalue : float
        Modulus of the sweep's second eigenvalue; the distance to the law shrinks by it per sweep.
    """

    order: tuple[int, ...]
    law: Float[np.ndarray, ...]
    second_eigenvalue: float


@dataclass(frozen=True)
class GibbsReport:
    """Laws of all scan orders and the largest total variation between two of them."""

    laws: tuple[ScanLaw, ...]
    tv: float

    def __repr__(self) -> str:
        return f"GibbsReport({len(self.laws)} scan orders, total variation {self.tv:.3g})"


def total_variation(p: Float[np.ndarray, ...], q: Float[np.ndarray, ...]) -> float:
    """Half the sum of absolute differences."""
    return 0.5 * float(np.abs(np.asarray(p) - np.asarray(q)).sum())


def _sweep(
    laws: Float[np.ndarray, "n ..."], kernels: list[np.ndarray], order: tuple[int, ...]
) -> np.ndarray:
    for axis in order:
        laws = laws.sum(axis=axis + 1, keepdims=True) * kernels[axis]
    return laws


def stationary(table: Table, order: tuple[int, ...], mixing: bool = True) -> ScanLaw:
    """Exact stationary law right after the last update of one sweep in this order.

    After updating position i the law is ``s(x without i) p(x_i | rest)``: the chain lives on the
    contexts of the last position, so V^(k-1) states are solved for, not V^k.

    Parameters
    ----------
    table : PairTable or CubeTable
    order : permutation of the positions
    mixing : bool
        Also compute the second eigenvalue.

    Raises
    ------
    InputError
        Not a permutation, or a chain of more than 4000 contexts.
    """
    kernels = [np.exp(c) for c in axis_conditionals(table.renormalised())]
    shape = kernels[0].shape
    require(
        sorted(order) == list(range(len(shape))), "order", order, f"a permutation of {len(shape)}"
    )
    last = order[-1]
    context_shape = tuple(1 if a == last else s for a, s in enumerate(shape))
    n = int(np.prod(context_shape))
    if n > LARGEST_CHAIN:
        raise InputError(
            f"table has {n} contexts of position {last}: allowed are up to {LARGEST_CHAIN};"
            " keep fewer candidates"
        )
    matrix = np.empty((n, n))
    block = max(1, int(2e7 // np.prod(shape)))
    for start in range(0, n, block):
        stop = min(start + block, n)
        states = np.zeros((stop - start, n))
        states[np.arange(stop - start), np.arange(start, stop)] = 1.0
        laws = states.reshape(-1, *context_shape) * kernels[last]
        swept = _sweep(laws, kernels, order)
        matrix[start:stop] = swept.sum(axis=last + 1).reshape(stop - start, n)
    system = matrix.T - np.eye(n)
    right = np.zeros(n)
    # one redundant equation gives way to the sum
    system[0] = 1.0
    right[0] = 1.0
    try:
        state = np.linalg.solve(system, right)
    except np.linalg.LinAlgError:
        raise InputError(
            "table: the Gibbs chain has several stationary laws (its support is not connected);"
            " allowed is a connected support; restrict the candidates to one block"
        ) from None
    state = np.maximum(state, 0.0)
    state /= state.sum()
    law = state.reshape(context_shape) * kernels[last]
    second = float("nan")
    if mixing:
        values = np.sort(np.abs(np.linalg.eigvals(matrix)))
        second = float(values[-2]) if n > 1 else 0.0
    return ScanLaw(tuple(order), law, second)


def scan_orders(table: Table, mixing: bool = False) -> GibbsReport:
    """Stationary laws of every scan order and the largest total variation between them.

    Examples
    --------
    >>> from mlm_consistency import PairTable
    >>> report = scan_orders(PairTable.from_joint(np.log([[0.1, 0.2], [0.3, 0.4]])))
    >>> len(report.laws), round(report.tv, 12)
    (2, 0.0)
    """
    k = len(axis_conditionals(table))
    laws = tuple(stationary(table, order, mixing) for order in permutations(range(k)))
    worst = max(total_variation(p.law, q.law) for i, p in enumerate(laws) for q in laws[i:])
    return GibbsReport(laws, worst)


def markovian_incompatibility(table: Table) -> float:
    """Sum of ``|a_ij eta_j - b_ij pi_i|`` (Arnold, Castillo and Sarabia): twice the variation."""
    return 2 * scan_orders(table).tv


def log_law(law: ScanLaw) -> Float[np.ndarray, ...]:
    """Logarithm of a law, normalised."""
    with np.errstate(divide="ignore"):
        log = np.log(law.law)
    return np.asarray(log - logsumexp(log))


__all__ = [
    "GibbsReport",
    "ScanLaw",
    "log_law",
    "markovian_incompatibility",
    "scan_orders",
    "stationary",
    "total_variation",
]
