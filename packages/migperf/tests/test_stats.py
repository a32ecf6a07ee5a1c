"""Statistics against closed forms and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from migperf import InputError
from migperf.interference import antt, interference_matrix, stp
from migperf.stats import (
    bootstrap_mean,
    isolation_index,
    jain_fairness,
    percentile,
    warmup_length,
)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = bootstrap_mean(generator.normal(10.0, 1.0, size=20), resamples=1000, seed=trial)
        hits += interval.low <= 10.0 <= interval.high
    assert 0.88 <= hits / 300 <= 0.98  # nominal 0.95; the bootstrap is a little narrow at n = 20


def test_bootstrap_is_near_the_normal_interval() -> None:
    data = np.random.default_rng(1).normal(50.0, 5.0, size=200)
    interval = bootstrap_mean(data)
    half = 1.96 * data.std(ddof=1) / math.sqrt(200)
    assert interval.high - interval.mean == pytest.approx(half, rel=0.1)
    assert bootstrap_mean([3.0]).half_width == math.inf


def test_percentiles_need_samples() -> None:
    data = np.random.default_rng(2).exponential(size=1000)
    assert percentile(data, 0.99) == np.quantile(data, 0.99)
    assert math.isnan(percentile(data[:999], 0.99))
    assert math.isnan(percentile(data, 0.999))
    with pytest.raises(InputError):
        percentile(data, 1.0)


def test_warmup_is_found() -> None:
    generator = np.random.default_rng(3)
    steady = generator.normal(10.0, 0.5, size=400)
    cold = np.concatenate([20.0 * np.exp(-np.arange(60) / 15) + 10.0, steady])
    assert 25 <= warmup_length(cold) <= 120
    assert warmup_length(steady) <= 100
    assert warmup_length(steady[:10]) == 0


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_jain_is_between_one_over_n_and_one(values: list[float]) -> None:
    assert 1 / len(values) - 1e-9 <= jain_fairness(values) <= 1 + 1e-9


def test_indices() -> None:
    assert isolation_index(10.0, 20.0) == 0.5
    assert stp([50.0, 60.0], [100.0, 100.0]) == pytest.approx(1.1)
    assert antt([50.0, 100.0], [100.0, 100.0]) == pytest.approx(1.5)
    matrix = interference_matrix([10.0, 20.0], np.array([[11.0, 15.0], [20.0, 30.0]]))
    np.testing.assert_allclose(matrix, [[0.1, 0.5], [0.0, 0.5]])
    with pytest.raises(InputError):
        isolation_index(0.0, 1.0)
