"""How much of the conditionals is the gradient of a potential, and how much is curl.

The conditionals give an edge flow on the Hamming graph: changing position i from x to x' has the
flow ``log p(x'_i | rest) - log p(x_i | rest)``. A joint exists exactly when the flow is a gradient.
The least-squares potential has a closed form for any number of positions: along each line of the
grid the graph is complete, so the normal equations ``sum_i V_i P_i (phi - L_i) = 0`` hold with
commuting projectors ``P_i`` (subtract the mean along axis i), and an analysis of variance
diagonalises them. No linear system is solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from .errors import SupportError
from .tables import Table, axis_conditionals


@dataclass(frozen=True)
class HodgeParts:
    """Hodge decomposition of the edge flow of a table.

    Parameters
    ----------
    potential : float [V_1, ..., V_k]
        Least-squares ``log q``, mean zero.
    flow_energy, curl_energy : float
        Sums of squares over all edges (nats squared): of the flow, and of what no potential
        explains.
    edges : int
    curl_rms : float
        Root mean square of the unexplained flow per edge, nats.
    """

    potential: Float[np.ndarray, ...]
    flow_energy: float
    curl_energy: float
    edges: int

    @property
    def curl_rms(self) -> float:
        """Root mean square of the curl part per edge, in nats."""
        return float(np.sqrt(self.curl_energy / self.edges)) if self.edges else 0.0

    @property
    def curl_share(self) -> float:
        """Share of the flow's energy that is curl, 0 to 1."""
        return self.curl_energy / self.flow_energy if self.flow_energy else 0.0

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.potential.shape))
        return (
            f"HodgeParts({shape}, {self.edges} edges, curl share {self.curl_share:.3g}, "
            f"{self.curl_rms:.3g} nats per edge)"
        )


def anova(array: Float[np.ndarray, ...]) -> dict[tuple[int, ...], Float[np.ndarray, ...]]:
    """Orthogonal components of an array, one per set of axes (size 1 along the other axes).

    Examples
    --------
    >>> parts = anova(np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> parts[()].item(), parts[(0,)].ravel().tolist(), parts[(0, 1)].ravel().tolist()
    (2.5, [-1.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    """
    axes = range(array.ndim)
    found = {}
    for subset in chain.from_iterable(combinations(axes, r) for r in range(array.ndim + 1)):
        part = array
        for axis in axes:
            mean = part.mean(axis=axis, keepdims=True)
            part = part - mean if axis in subset else mean
        found[subset] = part
    return found


def decompose(table: Table) -> HodgeParts:
    """Split the edge flow of a table into gradient and curl.

    Parameters
    ----------
    table : PairTable or CubeTable with positive support

    Raises
    ------
    SupportError
        A conditional is minus infinity somewhere.

    Examples
    --------
    >>> from mlm_consistency import PairTable
    >>> parts = decompose(PairTable.from_joint(np.log([[0.1, 0.2], [0.3, 0.4]])))
    >>> parts.edges, round(parts.curl_share, 12)
    (4, 0.0)
    """
    arrays = axis_conditionals(table)
    for i, array in enumerate(arrays):
        if np.isneginf(array).any():
            cell = tuple(int(v) for v in np.argwhere(np.isneginf(array))[0])
            raise SupportError(
                f"conditional {i} of cell {cell} is -inf: allowed is positive support; restrict the"
                " candidates or use compat.test"
            )
    shape = arrays[0].shape
    components = [anova(array) for array in arrays]
    potential = np.zeros(shape)
    for subset in components[0]:
        if subset:
            total = sum(shape[i] for i in subset)
            potential = potential + sum(shape[i] * components[i][subset] for i in subset) / total
    flow = curl = 0.0
    edges = 0
    cells = int(np.prod(shape))
    for axis, array in enumerate(arrays):
        rest = array - potential
        centred = array - array.mean(axis=axis, keepdims=True)
        left = rest - rest.mean(axis=axis, keepdims=True)
        flow += shape[axis] * float((centred**2).sum())
        curl += shape[axis] * float((left**2).sum())
        edges += cells * (shape[axis] - 1) // 2
    return HodgeParts(potential, flow, curl, edges)


def edge_flow(table: Table) -> tuple[Any, Float[np.ndarray, " edges"]]:
    """Sparse incidence matrix and flow, edge by edge (for checks and for other solvers).

    Returns
    -------
    scipy sparse matrix [edges, cells], float [edges]
    """
    from scipy import sparse

    arrays = axis_conditionals(table)
    shape = arrays[0].shape
    index = np.arange(int(np.prod(shape))).reshape(shape)
    tails, heads, flows = [], [], []
    for axis, array in enumerate(arrays):
        lines = np.moveaxis(index, axis, -1).reshape(-1, shape[axis])
        values = np.moveaxis(array, axis, -1).reshape(-1, shape[axis])
        first, second = np.triu_indices(shape[axis], 1)
        tails.append(lines[:, first].ravel())
        heads.append(lines[:, second].ravel())
        flows.append((values[:, second] - values[:, first]).ravel())
    tail, head, flow = map(np.concatenate, (tails, heads, flows))
    n = len(flow)
    rows = np.concatenate([np.arange(n), np.arange(n)])
    matrix = sparse.csr_array(
        (np.concatenate([-np.ones(n), np.ones(n)]), (rows, np.concatenate([tail, head]))),
        shape=(n, index.size),
    )
    return matrix, flow


__all__ = ["HodgeParts", "anova", "decompose", "edge_flow"]
