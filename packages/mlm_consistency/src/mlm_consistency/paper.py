"""The paper's tests from raw probabilities, exactly as its scripts compute them.

Everything works in log space: products of ten token probabilities reach 1e-76.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .errors import ProbeError, require
from .scorers.seq2seq import InfillRequest, InfillScorer


@dataclass(frozen=True)
class GapSummary:
    """Mean, median and sign disagreement of differences of log-ratios (nats)."""

    n: int
    mean: float
    median: float
    disagreement: float


def log_ratio_gaps(left: Float[np.ndarray, " n"], right: Float[np.ndarray, " n"]) -> GapSummary:
    """Summarise ``|left - right|`` and the share of opposite signs (Sections 1.1 and 1.2).

    Parameters
    ----------
    left, right : float [n]
        ``log p(x1, x2|c) - log p(x1', x2|c)`` and ``log p(x1|x2, c) - log p(x1'|x2, c)``.
    """
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    require(left.shape == right.shape and left.ndim == 1 and len(left) >= 1, "left", left.shape,
            "one value per pair, as many as right")  # fmt: skip
    gap = np.abs(left - right)
    return GapSummary(
        len(gap),
        float(gap.mean()),
        float(np.median(gap)),
        float((np.sign(left) != np.sign(right)).mean()),
    )


def t5_bigram_gap(
    joint: Sequence[float],
    joint_alternative: Sequence[float],
    single: float,
    single_alternative: float,
) -> float:
    """Difference of log-ratios of one pair from its token probabilities.

    Parameters
    ----------
    joint, joint_alternative : sequences of float
        Teacher-forced probabilities of the two tokens (and of the closing sentinel, if it is to
        count).
    single, single_alternative : float
        One-token span probabilities.

    Examples
    --------
    >>> round(t5_bigram_gap((0.32565, 0.91552), (0.04945, 0.91251), 0.56818, 0.05400), 2)
    -0.47
    """
    left = float(np.log(joint).sum() - np.log(joint_alternative).sum())
    return left - float(np.log(single) - np.log(single_alternative))


def quadruple_gap(
    p_w00_w10: float,
    p_w01_w10: float,
    p_w00_w11: float,
    p_w01_w11: float,
    p_w10_w00: float,
    p_w11_w00: float,
    p_w10_w01: float,
    p_w11_w01: float,
) -> float:
    """Gamma of the BERT-style quadruple test from its eight unary conditionals.

    ``p_x_y`` is the probability of x at its position when the other position holds y. Compatible
    conditionals satisfy ``[p(w10|w00)/p(w11|w00)] [p(w00|w11)/p(w01|w11)] =
    [p(w00|w10)/p(w01|w10)] [p(w10|w01)/p(w11|w01)]``; Gamma is log left minus log right.
    """
    log = np.log
    left = log(p_w10_w00) - log(p_w11_w00) + log(p_w00_w11) - log(p_w01_w11)
    right = log(p_w00_w10) - log(p_w01_w10) + log(p_w10_w01) - log(p_w11_w01)
    return float(left - right)


def solve_each(probabilities: Sequence[float]) -> list[float]:
    """Each of the eight solved from the other seven (the script's metric): distances of logs.

    All eight equal ``|Gamma|``: solving is no extra information, and a "solved probability" may
    exceed one.
    """
    require(len(probabilities) == 8, "probabilities", len(probabilities), "the eight conditionals")
    signs = np.asarray([-1, 1, 1, -1, 1, -1, -1, 1])
    logs = np.log(np.asarray(probabilities, np.float64))
    gaps = []
    for n in range(8):
        others = float((signs * logs).sum() - signs[n] * logs[n])
        solved = -others * signs[n]
        gaps.append(abs(solved - float(logs[n])))
    return gaps


@dataclass(frozen=True)
class OrderSummary:
    """Aggregates of the order test: relative difference and log-ratio of both orders."""

    n: int
    relative_mean: float
    relative_median: float
    log_mean: float
    log_median: float
    log_p90: float
    share_above_ln2: float


def order_test(
    m_i: Float[np.ndarray, " n"],
    m_j: Float[np.ndarray, " n"],
    p_j_given_i: Float[np.ndarray, " n"],
    p_i_given_j: Float[np.ndarray, " n"],
    log: bool = False,
) -> OrderSummary:
    """Order test of Section 1.4: ``J1 = m_i p(j|i)`` against ``J2 = m_j p(i|j)``.

    Parameters
    ----------
    m_i, m_j, p_j_given_i, p_i_given_j : float [n]
        Probabilities, or log-probabilities with ``log=True``.
    """
    logs = [np.asarray(v, np.float64) if log else np.log(v) for v in
            (m_i, m_j, p_j_given_i, p_i_given_j)]  # fmt: skip
    ratio = logs[0] + logs[2] - logs[1] - logs[3]
    relative = 2 * np.abs(np.tanh(ratio / 2))
    size = np.abs(ratio)
    return OrderSummary(
        len(size),
        float(relative.mean()),
        float(np.median(relative)),
        float(size.mean()),
        float(np.median(size)),
        float(np.quantile(size, 0.9)),
        float((size > np.log(2)).mean()),
    )


@dataclass(frozen=True)
class BigramTest:
    """Result of `t5_bigram_test`: without and with the closing sentinel, and the raw log-ratios."""

    tokens_only: GapSummary
    with_sentinel: GapSummary
    left: Float[np.ndarray, " n"]
    right: Float[np.ndarray, " n"]
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tokens_only": vars(self.tokens_only),
            "with_sentinel": vars(self.with_sentinel),
            "skipped": self.skipped,
        }


def t5_bigram_test(
    scorer: InfillScorer,
    sentences: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int, int]],
) -> BigramTest:
    """Bigram test of Section 1.1: a two-token span against one-token spans (level N).

    Parameters
    ----------
    scorer : InfillScorer of the sentinel form
    sentences : token ids without special tokens
    pairs : (sentence, position, alternative)
        The token at `position` is varied to `alternative`; its right neighbour stays fixed.

    Notes
    -----
    The joint is the product of the teacher-forced probabilities of both tokens. Whether the
    closing sentinel counts moves the median by some per cent; both versions are returned.
    """
    require(scorer.style == "sentinel", "scorer", scorer.style, "a model with sentinels")
    requests, skipped = [], 0
    kept = []
    for sentence, at, other in pairs:
        ids = list(sentences[sentence])
        if at + 1 >= len(ids) or ids[at] == other:
            skipped += 1
            continue
        changed = [*ids[:at], other, *ids[at + 1 :]]
        two = [scorer.pattern(x, [(at, at + 2)]) for x in (ids, changed)]
        one = [scorer.pattern(x, [(at, at + 1)]) for x in (ids, changed)]
        if two[0][0] != two[1][0] or one[0][0] != one[1][0]:
            raise ProbeError(f"pair ({sentence}, {at}): the encoder input must not change")
        requests.append(InfillRequest(two[0][0], tuple(t[:4] for _, t in two), 1))
        requests.append(InfillRequest(one[0][0], tuple(t[:3] for _, t in one), 1))
        kept.append((sentence, at, other))
    require(len(kept) >= 1, "pairs", len(pairs), "at least one usable pair")
    scores = scorer.score(requests)
    out = {}
    for closing in (0, 1):
        left, right = [], []
        for n in range(len(kept)):
            (joint, joint_other), (single, single_other) = scores[2 * n], scores[2 * n + 1]
            left.append(joint[: 2 + closing].sum() - joint_other[: 2 + closing].sum())
            right.append(single[: 1 + closing].sum() - single_other[: 1 + closing].sum())
        out[closing] = (np.asarray(left), np.asarray(right))
    return BigramTest(
        log_ratio_gaps(*out[0]),
        log_ratio_gaps(*out[1]),
        *out[0],
        {"no right neighbour or no alternative": skipped},
    )


def long_span_gap(
    scorer: InfillScorer,
    ids: Sequence[int],
    alternative: Sequence[int],
    inner: int = 5,
    outer: int = 10,
) -> float:
    """Nested-span gap of Section 1.2, sentinels left out: log-ratios of the last tokens.

    Parameters
    ----------
    ids, alternative : token ids
        Two sentences that differ in their last `inner` tokens only.
    inner, outer : int
        Masked: the last `inner` tokens, against the last `outer` with a common beginning.
    """
    require(0 < inner < outer < len(ids), "outer", outer, f"more than {inner}, below {len(ids)}")
    require(list(ids[:-inner]) == list(alternative[:-inner]) and len(ids) == len(alternative),
            "alternative", len(alternative), "equal but for the last tokens")  # fmt: skip
    values = []
    for masked in (inner, outer):
        patterns = [scorer.pattern(x, [(len(ids) - masked, len(ids))]) for x in (ids, alternative)]
        targets = tuple(t[: 1 + masked] for _, t in patterns)
        first, second = scorer.score([InfillRequest(patterns[0][0], targets, 1)])[0]
        values.append(float(first.sum() - second.sum()))
    return values[1] - values[0]


# Recomputed from result files in the history of the authors' repository; medians and means of
# the order test on 10,000 sentences, and of the bigram test.
AUTHORS_ORDER_TEST = {
    "bert-base": {"relative_mean": 0.7946, "relative_median": 0.6244, "log_mean": 1.228,
                  "log_median": 0.646, "log_p90": 3.18, "share_above_ln2": 0.481},
    "bert-large": {"relative_mean": 0.8570, "relative_median": 0.6992, "log_mean": 1.538,
                   "log_median": 0.730, "log_p90": 4.07, "share_above_ln2": 0.513},
}  # fmt: skip
AUTHORS_BIGRAM_TEST = {
    "t5-base": {"n": 2232, "mean": 1.065, "median": 0.579, "disagreement": 0.262},
    "t5-large": {"n": 2564, "mean": 0.914, "median": 0.492, "disagreement": 0.242},
    "t5-3b": {"n": 2910, "mean": 0.950, "median": 0.478, "disagreement": 0.239},
}
# Accuracy (%) and disagreement (%) by number of conditionals, UL2-20B on LAMBADA (v3).
AUTHORS_EOC_LAMBADA = [
    (71.42, 0.0), (72.64, 18.24), (72.96, 25.79), (73.16, 30.26), (73.34, 33.32),
    (73.51, 35.59), (73.66, 37.36), (73.80, 38.81), (73.92, 40.03), (74.04, 41.08),
]  # fmt: skip

__all__ = [
    "AUTHORS_BIGRAM_TEST",
    "AUTHORS_EOC_LAMBADA",
    "AUTHORS_ORDER_TEST",
    "BigramTest",
    "GapSummary",
    "OrderSummary",
    "log_ratio_gaps",
    "long_span_gap",
    "order_test",
    "quadruple_gap",
    "solve_each",
    "t5_bigram_gap",
    "t5_bigram_test",
]
