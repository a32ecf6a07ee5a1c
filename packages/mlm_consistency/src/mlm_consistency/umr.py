"""Uniform marginal representation: the part of a table that does not depend on its margins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from .errors import VerdictError, require
from .tables import as_log_table, check_support


@dataclass(frozen=True)
class Scaled:
    """A table scaled to given margins: logarithms, largest error of a margin, iterations."""

    log_table: Float[np.ndarray, "A B"]
    error: float
    iterations: int


def scale(
    log_table: Float[np.ndarray, "A B"],
    log_rows: Float[np.ndarray, " A"],
    log_columns: Float[np.ndarray, " B"],
    tol: float = 1e-12,
    max_iter: int = 20_000,
) -> Scaled:
    """Fit a table to margins by iterative proportional fitting (Sinkhorn), in the log domain.

    Parameters
    ----------
    log_table : float [A, B]
    log_rows, log_columns : float [A], [B]
        Margins wanted, each summing to one.
    tol : float
        Largest absolute error of a margin at which to stop.

    Raises
    ------
    VerdictError
        The margins were not reached (a zero pattern can make that impossible).
    """
    log_table = as_log_table("log_table", log_table, 2)
    check_support("log_table", log_table, 0)
    check_support("log_table", log_table, 1)
    rows = np.asarray(log_rows, np.float64)
    columns = np.asarray(log_columns, np.float64)
    require(rows.shape == log_table.shape[:1], "log_rows", rows.shape, f"{log_table.shape[:1]}")
    require(
        columns.shape == log_table.shape[1:], "log_columns", columns.shape, f"{log_table.shape[1:]}"
    )
    v = np.zeros(log_table.shape[1])
    error = float("inf")
    for iteration in range(1, max_iter + 1):
        u = rows - logsumexp(log_table + v, axis=1)
        scaled = log_table + v + u[:, None]
        error = float(np.abs(np.exp(logsumexp(scaled, axis=0)) - np.exp(columns)).max())
        if error <= tol:
            return Scaled(scaled, error, iteration)
        v = columns - logsumexp(log_table + u[:, None], axis=0)
    raise VerdictError(
        f"scaling to the margins did not converge in {max_iter} iterations (error {error:.2g});"
        " zeros in the table may make the margins impossible"
    )


def uniform_marginal_representation(log_table: Float[np.ndarray, "A B"]) -> Scaled:
    """Scale a table to uniform margins; equal for A and B exactly when they are compatible.

    Examples
    --------
    >>> joint = np.array([[0.1, 0.2], [0.3, 0.4]])
    >>> scaled = uniform_marginal_representation(np.log(joint))
    >>> np.exp(scaled.log_table).sum(axis=0).round(12).tolist()
    [0.5, 0.5]
    """
    log_table = as_log_table("log_table", log_table, 2)
    a, b = log_table.shape
    return scale(log_table, np.full(a, -np.log(a)), np.full(b, -np.log(b)))


__all__ = ["Scaled", "scale", "uniform_marginal_representation"]
