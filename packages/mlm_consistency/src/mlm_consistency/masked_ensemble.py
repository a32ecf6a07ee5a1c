"""Ensembles of conditionals for BERT-style models.

Here masking more tokens changes the target, so the paper's offsets are other conditionals. What
remains comparable: ``p(a|b)`` itself; Bayes' rule on the other conditional, ``m_i(a) p(b|a)``
(flip); and the conditional of a joint near to both (Arnold-Gokhale, Hodge). Ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from . import joints
from .errors import require
from .tables import PairTable, normalise

MEMBERS = ("mlm", "flip", "ag", "hodge")


def member(table: PairTable, axis: int, name: str) -> Float[np.ndarray, "A B"]:
    """One estimate of the conditional of a position given the other, all contexts at once."""
    require(axis in (0, 1), "axis", axis, "0 or 1")
    require(name in MEMBERS, "members", name, f"of {', '.join(MEMBERS)}")
    table = table.renormalised()
    if name == "mlm":
        return table.conditionals[axis]
    if name == "flip":
        return joints.chain(table, first=axis).conditional(axis)
    return joints.METHODS[name](table).conditional(axis)


def ensemble_conditional(
    table: PairTable,
    axis: int,
    members: Sequence[str] = ("mlm", "flip", "ag"),
    pool: str = "geo",
    weights: Sequence[float] | None = None,
) -> Float[np.ndarray, "A B"]:
    """Pool several estimates of ``log p(x_axis | other)``.

    Parameters
    ----------
    table : PairTable with both-masked probabilities
    axis : 0 or 1
    members : of "mlm", "flip", "ag", "hodge"
    pool : "geo" or "arith"
    weights : sequence of float, optional

    Returns
    -------
    float [A, B]
        Normalised along `axis`, in nats.
    """
    require(pool in ("geo", "arith"), "pool", pool, "'geo' or 'arith'")
    stack = np.stack([member(table, axis, name) for name in members])
    w = np.full(len(members), 1 / len(members)) if weights is None else np.asarray(weights, float)
    require(w.shape == (len(members),), "weights", w.shape, f"({len(members)},)")
    if pool == "geo":
        return np.asarray(normalise(np.tensordot(w, stack, 1), axis))
    return np.asarray(normalise(logsumexp(stack, axis=0, b=w[:, None, None]), axis))


def unary_nll(table: PairTable, conditionals: Sequence[Float[np.ndarray, "A B"]]) -> float:
    """Mean negative log-probability of both gold tokens, each given the other, nats."""
    assert table.gold is not None
    a, b = table.gold
    return -0.5 * float(conditionals[0][a, b] + conditionals[1][a, b])


__all__ = ["MEMBERS", "ensemble_conditional", "member", "unary_nll"]
