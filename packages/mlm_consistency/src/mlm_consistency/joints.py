"""Joint distributions made from the conditionals of a model.

Every function takes a table, renormalises it over its candidates and returns a `Joint`. For two
positions all of them apply; `ag`, `hodge`, `mrf_local` take any number of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from . import arnold_gokhale
from .errors import InputError, require
from .hodge import decompose
from .tables import PairTable, Table, axis_conditionals, normalise


@dataclass(frozen=True)
class Joint:
    """A joint distribution over the candidates of k positions.

    Parameters
    ----------
    log_q : float [V_1, ..., V_k]
        Sums to one, nats.
    method : str
    gap : float
        Certified distance of the objective to its optimum in nats; NaN for constructions that
        minimise nothing.
    objective : float
        Arnold-Gokhale objective (nats), where it was computed.
    iterations : int
    """

    log_q: Float[np.ndarray, ...]
    method: str
    gap: float = float("nan")
    objective: float = float("nan")
    iterations: int = 0
    labels: tuple[tuple[str, ...], ...] = field(default=(), compare=False)

    def conditional(self, axis: int) -> Float[np.ndarray, ...]:
        """``log q(x_axis | the others)`` in the layout of the cells."""
        return np.asarray(normalise(self.log_q, axis))

    def marginal(self, axis: int) -> Float[np.ndarray, " V"]:
        """``log q(x_axis)``."""
        others = tuple(a for a in range(self.log_q.ndim) if a != axis)
        return np.asarray(logsumexp(self.log_q, axis=others))

    def log_prob(self, cell: tuple[int, ...]) -> float:
        """Log-probability of one cell in nats."""
        return float(self.log_q[cell])

    def sample(self, n: int, seed: int | np.random.Generator = 0) -> Int[np.ndarray, "n k"]:
        """Draw cells."""
        rng = np.random.default_rng(seed)
        flat = np.exp(self.log_q).ravel()
        drawn = rng.choice(flat.size, size=n, p=flat / flat.sum())
        return np.stack(np.unravel_index(drawn, self.log_q.shape), axis=1)

    def to_frame(self) -> Any:
        """One row per cell with its probability, most probable first."""
        import pandas as pd

        index = np.indices(self.log_q.shape).reshape(self.log_q.ndim, -1)
        columns: dict[str, Any] = {}
        for axis, values in enumerate(index):
            names = self.labels[axis] if self.labels and self.labels[axis] else None
            columns[f"x{axis + 1}"] = [names[v] for v in values] if names else values
        frame = pd.DataFrame({**columns, "probability": np.exp(self.log_q).ravel()})
        return frame.sort_values("probability", ascending=False, ignore_index=True)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.log_q.shape))
        gap = "" if np.isnan(self.gap) else f", objective {self.objective:.6g}, gap {self.gap:.1e}"
        return f"Joint({self.method}, {shape}{gap})"


def _labels(table: Table) -> tuple[tuple[str, ...], ...]:
    return (table.labels_a, table.labels_b) if isinstance(table, PairTable) else table.labels


def _joint(table: Table, log_q: np.ndarray, method: str) -> Joint:
    return Joint(np.asarray(log_q - logsumexp(log_q)), method, labels=_labels(table))


def naive(table: PairTable) -> Joint:
    """Product of the both-masked marginals (the model's own reading, "MLM")."""
    table = table.renormalised()
    m_i, m_j = table.need_margins()
    return _joint(table, m_i[:, None] + m_j, "naive")


def mrf(table: PairTable) -> Joint:
    """Markov random field of the raw logits, ``softmax(l_i(a|b) + l_j(b|a))`` (Wang and Cho)."""
    if table.log_z_a is None or table.log_z_b is None:
        raise InputError(
            "table has no raw logits: allowed is a table with log_z_a and log_z_b; use mrf_local"
        )
    raw = table.log_a_given_b + table.log_z_a + table.log_b_given_a + table.log_z_b[:, None]
    return _joint(table, raw, "mrf")


def mrf_local(table: Table) -> Joint:
    """Markov random field of the log-probabilities, normalised over all cells (MRF_L)."""
    arrays = axis_conditionals(table.renormalised())
    return _joint(table, np.sum(arrays, axis=0), "mrf_local")


def hcb(table: PairTable, pivot: int | None = None) -> Joint:
    """Hammersley-Clifford-Besag: ``log q = log p(a|b) - log p(a*|b) + log p(b|a*)``.

    Parameters
    ----------
    pivot : int, optional
        Row a*; by default the most probable one with both positions masked.
    """
    table = table.renormalised()
    if pivot is None:
        pivot = int(np.argmax(table.need_margins()[0]))
    require(0 <= pivot < table.shape[0], "pivot", pivot, f"0 to {table.shape[0] - 1}")
    anchor = table.log_a_given_b[pivot]
    if np.isneginf(anchor).any():
        raise InputError(
            f"pivot = {pivot}: allowed is a row that is possible in every context; choose another"
        )
    return _joint(table, table.log_a_given_b - anchor + table.log_b_given_a[pivot], "hcb")


def chain(table: PairTable, first: int = 0) -> Joint:
    """Fill one position from its both-masked marginal, then the other one given it.

    Parameters
    ----------
    first : 0 or 1
        Position that is filled first: ``J1 = m_i(a) p(b|a)`` or ``J2 = m_j(b) p(a|b)``.
    """
    require(first in (0, 1), "first", first, "0 or 1")
    table = table.renormalised()
    m_i, m_j = table.need_margins()
    log_q = m_i[:, None] + table.log_b_given_a if first == 0 else m_j + table.log_a_given_b
    return _joint(table, log_q, f"chain_{'ij' if first == 0 else 'ji'}")


def ag(
    table: Table,
    weights: str | tuple[Float[np.ndarray, ...], ...] = "uniform",
    tol: float = 1e-11,
    max_iter: int = 200,
) -> Joint:
    """Arnold and Gokhale's joint: its conditionals are nearest to the given ones (sum of KL).

    Parameters
    ----------
    table : PairTable or CubeTable
    weights : "uniform", "marginal" or tuple of arrays
        Weight of each context: all equal, the both-masked probability of the context's token, or
        one array per axis with the shape of its contexts.
    tol : float
        Certified gap (nats) at which to stop.
    max_iter : int

    Returns
    -------
    Joint
        With ``objective``, certified ``gap`` and ``iterations``.

    References
    ----------
    Arnold and Gokhale (1994); Torroba Hennigen and Kim (2023) use 40 plain iterations of it.

    Examples
    --------
    >>> from mlm_consistency import PairTable
    >>> exact = np.log([[0.1, 0.2], [0.3, 0.4]])
    >>> found = ag(PairTable.from_joint(exact))
    >>> bool(np.allclose(found.log_q, exact)), found.gap <= 1e-10
    (True, True)
    """
    table = table.renormalised()
    arrays = axis_conditionals(table)
    if isinstance(weights, str):
        require(weights in ("uniform", "marginal"), "weights", weights, "'uniform', 'marginal'")
        if weights == "uniform":
            context = None
        else:
            if not isinstance(table, PairTable):
                raise InputError("weights = 'marginal': allowed for two positions; pass arrays")
            m_i, m_j = table.need_margins()
            context = (np.exp(m_j) * len(m_j), np.exp(m_i) * len(m_i))
    else:
        context = tuple(weights)  # type: ignore[assignment]
    found = arnold_gokhale.solve(arrays, context, tol, max_iter)
    return Joint(
        found.log_q, "ag", found.gap, found.objective, found.iterations, labels=_labels(table)
    )


def hodge(table: Table) -> Joint:
    """Softmax of the least-squares potential of the conditionals (`hodge.decompose`)."""
    return _joint(table, decompose(table.renormalised()).potential, "hodge")


def umr(table: PairTable) -> Joint:
    """Interaction of both conditionals (their mean), margins of the both-masked pattern.

    Both conditionals are scaled to uniform margins; the mean of their logarithms is the
    interaction, and iterative proportional fitting gives it the both-masked margins. Ours, not the
    literature's.
    """
    from .umr import scale, uniform_marginal_representation

    table = table.renormalised()
    m_i, m_j = table.need_margins()
    first, second = (uniform_marginal_representation(c).log_table for c in table.conditionals)
    return _joint(table, scale((first + second) / 2, m_i, m_j).log_table, "umr")


METHODS: dict[str, Callable[[PairTable], Joint]] = {
    "ag": ag,
    "hodge": hodge,
    "hcb": hcb,
    "mrf_local": mrf_local,
    "mrf": mrf,
    "naive": naive,
    "chain_ij": lambda table: chain(table, 0),
    "chain_ji": lambda table: chain(table, 1),
    "umr": umr,
}

__all__ = [
    "METHODS",
    "Joint",
    "ag",
    "chain",
    "hcb",
    "hodge",
    "mrf",
    "mrf_local",
    "naive",
    "umr",
]
