"""The paper's tests on records of the authors' files, and the arithmetic of the ensemble."""

import numpy as np
import pytest
from mlm_consistency import InputError, paper, pooling

# roberta-base, C4 url (538, 0, 3): p(w00|w10), p(w01|w10), p(w00|w11), p(w01|w11), p(w10|w00),
# p(w11|w00), p(w10|w01), p(w11|w01); the authors' average over the eight solved values
RECORD = (0.01125833, 0.98714513, 0.00319332, 0.99583912,
          1.678e-05, 0.99584925, 1.608e-05, 0.99666804)  # fmt: skip
AUTHORS_AVERAGE = 1.2254335146999162


def test_quadruple_record_of_roberta_base():
    gap = abs(paper.quadruple_gap(*RECORD))
    # the stored inputs have four to eight digits
    assert gap == pytest.approx(AUTHORS_AVERAGE, abs=1e-3)
    solved = paper.solve_each(RECORD)
    assert np.allclose(solved, gap, atol=1e-12)


def test_a_solved_probability_may_exceed_one_and_is_not_clipped():
    gap = paper.solve_each(RECORD)[1]
    assert np.exp(np.log(RECORD[1]) + gap) > 1


def test_bigram_record_of_t5_base():
    gap = paper.t5_bigram_gap((0.32565, 0.91552), (0.04945, 0.91251), 0.56818, 0.05400)
    assert gap == pytest.approx(1.888 - 2.353, abs=2e-3)


def test_gap_summary_by_hand():
    found = paper.log_ratio_gaps(np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.7]))
    assert (found.n, found.median) == (3, 1.0)
    assert found.mean == pytest.approx((1 + 3 + 0.2) / 3)
    assert found.disagreement == pytest.approx(2 / 3)


def test_order_test_by_hand(rng):
    m_i, m_j, p_ji, p_ij = rng.random((4, 200))
    j1, j2 = m_i * p_ji, m_j * p_ij
    found = paper.order_test(m_i, m_j, p_ji, p_ij)
    relative = np.abs(j1 - j2) / ((j1 + j2) / 2)
    assert found.relative_mean == pytest.approx(relative.mean())
    assert found.relative_median == pytest.approx(np.median(relative))
    assert found.log_p90 == pytest.approx(np.quantile(np.abs(np.log(j1 / j2)), 0.9))
    assert found.share_above_ln2 == pytest.approx((np.abs(np.log(j1 / j2)) > np.log(2)).mean())


def test_log_space_survives_ten_token_probabilities():
    tiny = [1e-40] * 10
    assert np.isfinite(paper.t5_bigram_gap(tiny, [2e-40] * 10, 1e-300, 2e-300))


def test_pools_bit_for_bit(rng):
    scores = rng.normal(size=(200, 5, 4))
    for s in scores:
        assert np.array_equal(pooling.maximum(s), np.max(s, axis=0))
        assert int(np.argmax(pooling.maximum(s))) == int(np.unravel_index(np.argmax(s), s.shape)[1])
        assert np.argmax(pooling.average(s)) == np.argmax(pooling.geometric(s))
        p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
        assert np.allclose(np.exp(pooling.arithmetic(s)), p.mean(0))
        assert np.exp(pooling.geometric(s)).sum() == pytest.approx(1)


def test_ag_pool_minimises_its_objective(rng):
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    s = rng.normal(size=(4, 3))
    w = np.array([0.1, 0.2, 0.3, 0.4])
    log_p = log_softmax(s, axis=1)

    def objective(theta):
        return float(w @ (np.exp(log_p) * (log_p - log_softmax(theta))).sum(1))

    best = minimize(objective, np.zeros(3), tol=1e-14)
    assert np.allclose(pooling.arnold_gokhale(s, w), log_softmax(best.x), atol=1e-5)


def test_fitted_weights_find_the_informative_pattern(rng):
    n, answers = 400, rng.integers(0, 3, 400)
    scores = rng.normal(size=(n, 3, 3))
    scores[np.arange(n), 1, answers] += 2.0
    w = pooling.fit_weights(scores, answers)
    assert w[1] > 5 * max(w[0], w[2])
    pooled = pooling.cross_fitted(scores, answers)
    assert (pooled.argmax(1) == answers).mean() > (scores.mean(1).argmax(1) == answers).mean()


def test_signed_weights_set_a_pattern_against_the_others(rng):
    """Answers follow the difference of two patterns: only weights of both signs can say so."""
    prior, answers = 2 * rng.normal(size=(500, 1, 3)), rng.integers(0, 3, 500)
    scores = np.concatenate([prior, prior], 1) + 0.1 * rng.normal(size=(500, 2, 3))
    scores[np.arange(500), 1, answers] += 1.0
    w = pooling.fit_weights(scores, answers, signed=True)
    assert w[0] < 0 < w[1]
    assert w[0] == pytest.approx(-w[1], rel=0.15)
    signed = pooling.cross_fitted(scores, answers, signed=True).argmax(1) == answers
    assert signed.mean() > (pooling.cross_fitted(scores, answers).argmax(1) == answers).mean() + 0.2
    one = pooling.POOLS["linear"](scores[0], w)
    assert np.allclose(one, w[0] * scores[0, 0] + w[1] * scores[0, 1])
    with pytest.raises(InputError, match="weights"):
        pooling.linear(scores[0], [1.0])


def test_cross_fitting_cannot_learn_from_its_own_answers(rng):
    scores, answers = rng.normal(size=(600, 8, 4)), rng.integers(0, 4, 600)
    assert abs((pooling.cross_fitted(scores, answers).argmax(1) == answers).mean() - 0.25) < 0.06
