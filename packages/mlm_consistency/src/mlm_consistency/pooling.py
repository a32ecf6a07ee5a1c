"""Pools of several estimates of one conditional.

All take scores [patterns, completions] (log-probabilities, possibly per token) and return one score
per completion; the prediction is the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from .errors import require


def _weights(m: int, weights: Sequence[float] | None) -> np.ndarray:
    if weights is None:
        return np.full(m, 1.0 / m)
    array = np.asarray(weights, np.float64)
    require(array.shape == (m,), "weights", array.shape, f"one weight for each of {m} patterns")
    require(bool((array >= 0).all() and array.sum() > 0), "weights", array.tolist(),
            "non-negative, not all zero")  # fmt: skip
    return np.asarray(array / array.sum())


def maximum(
    scores: Float[np.ndarray, "m c"], weights: Sequence[float] | None = None
) -> Float[np.ndarray, " c"]:
    """Largest score over the patterns: the paper's ensemble (weights play no part)."""
    return np.asarray(np.max(scores, axis=0))


def average(
    scores: Float[np.ndarray, "m c"], weights: Sequence[float] | None = None
) -> Float[np.ndarray, " c"]:
    """Mean score over the patterns: the second pool of the paper's second version."""
    return np.asarray(_weights(len(scores), weights) @ np.asarray(scores))


def geometric(
    scores: Float[np.ndarray, "m c"], weights: Sequence[float] | None = None
) -> Float[np.ndarray, " c"]:
    """Log of the normalised geometric mean of the patterns' distributions over the completions.

    Its order of the completions is that of `average`: normalising moves all of them alike.
    """
    pooled = _weights(len(scores), weights) @ log_softmax(scores, axis=1)
    return np.asarray(log_softmax(pooled))


def arithmetic(
    scores: Float[np.ndarray, "m c"], weights: Sequence[float] | None = None
) -> Float[np.ndarray, " c"]:
    """Log of the mean of the patterns' distributions over the completions."""
    w = _weights(len(scores), weights)
    return np.asarray(logsumexp(log_softmax(scores, axis=1), axis=0, b=w[:, None]))


def arnold_gokhale(
    scores: Float[np.ndarray, "m c"], weights: Sequence[float] | None = None
) -> Float[np.ndarray, " c"]:
    """Distribution nearest to the patterns' in the Arnold-Gokhale sense.

    ``argmin_q sum_m w_m KL(p_m || q)``. All patterns estimate the conditional of one context, where
    the minimiser is their arithmetic mean; with several contexts (BERT-style models) it is the
    joint of `joints.ag`.
    """
    return arithmetic(scores, weights)


def linear(
    scores: Float[np.ndarray, "m c"], weights: Sequence[float] | None = None
) -> Float[np.ndarray, " c"]:
    """Weighted sum of the patterns' scores, weights of any sign (`fit_weights`).

    A negative weight sets a pattern against the others: one that hardly sees the prompt's end tells
    what is frequent anyway. Without weights it is `average`. Ours, not the paper's.
    """
    if weights is None:
        return average(scores)
    w = np.asarray(weights, np.float64)
    require(w.shape == (len(scores),), "weights", w.shape, f"one weight for each of {len(scores)}"
            " patterns")  # fmt: skip
    return np.asarray(w @ np.asarray(scores))


POOLS: dict[str, Callable[..., Float[np.ndarray, " c"]]] = {
    "max": maximum,
    "avg": average,
    "geo": geometric,
    "arith": arithmetic,
    "ag": arnold_gokhale,
    "linear": linear,
}
FITTED = {"fitted": False, "signed": True}  # pools with fitted weights: whether of any sign


def fit_weights(
    scores: Float[np.ndarray, "n m c"],
    answers: Int[np.ndarray, " n"],
    ridge: float = 1.0,
    signed: bool = False,
) -> Float[np.ndarray, " m"]:
    """Weights of a log-linear pool, by maximum likelihood of the answers.

    Conditional logistic regression:
    ``P(y) ~ exp(sum_m w_m s_m(y))``.
    The coefficients are not normalised: their sum is an inverse temperature.

    Parameters
    ----------
    scores : float [n, m, c]
    answers : int [n]
    ridge : float
        Strength of a pull towards equal coefficients.
    signed : bool
        Allow negative coefficients.
    """
    scores = np.asarray(scores, np.float64)
    n, m, _ = scores.shape
    require(len(answers) == n and n >= 1, "answers", len(answers), f"{n} answers")
    rows = np.arange(n)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(np.einsum("m,nmc->nc", w, scores), axis=1)
        residual = np.exp(log_p)
        residual[rows, answers] -= 1.0
        centred = w - w.mean()
        value = -log_p[rows, answers].sum() + ridge * (centred @ centred)
        gradient = np.einsum("nc,nmc->m", residual, scores) + 2 * ridge * centred
        return value / n, gradient / n

    start = np.full(m, 1.0 / m)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=None if signed else [(0, None)] * m
    )
    return np.asarray(found.x)


def cross_fitted(
    scores: Float[np.ndarray, "n m c"],
    answers: Int[np.ndarray, " n"],
    folds: int = 5,
    seed: int = 0,
    signed: bool = False,
) -> Float[np.ndarray, "n c"]:
    """Scores of the log-linear pool, each item with weights fitted on the other folds."""
    n = len(scores)
    require(2 <= folds <= n, "folds", folds, f"2 to {n}")
    fold = np.random.default_rng(seed).permutation(n) % folds
    out = np.empty((n, scores.shape[2]))
    for f in range(folds):
        w = fit_weights(scores[fold != f], answers[fold != f], signed=signed)
        out[fold == f] = np.einsum("m,nmc->nc", w, scores[fold == f])
    return out


__all__ = [
    "FITTED",
    "POOLS",
    "arithmetic",
    "arnold_gokhale",
    "average",
    "cross_fitted",
    "fit_weights",
    "geometric",
    "linear",
    "maximum",
]
