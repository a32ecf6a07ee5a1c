"""Bandwidth against mpmath, SciPy and the closed form's own identities."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfeds2 import (
    InfeasibleError,
    InputError,
    allocate,
    demand,
    equal_split,
    finishing_times,
    lower_limit_s,
    proportional_split,
    rate_bit_per_s,
    snr_for_load,
)
from perfeds2._finish import common_finish, warm_finish
from perfeds2.verify import GOLDEN_FINISH_S, GOLDEN_SNR
from scipy.optimize import brentq, minimize

mpmath.mp.dps = 60
LN2 = mpmath.log(2)


def exact_snr(rho: float) -> mpmath.mpf:
    """-W_{-1}(-rho e^-rho) / rho - 1 with 60 digits."""
    r = mpmath.mpf(rho)
    return -mpmath.lambertw(-r * mpmath.exp(-r), -1) / r - 1


def test_golden_values_of_the_inverse_rate():
    for (rho, rest), x in GOLDEN_SNR.items():
        assert float(snr_for_load(np.array(rho), np.array(rest))) == pytest.approx(x, rel=1e-14)


def test_inverse_rate_within_1e13_of_mpmath_over_the_whole_range():
    g = np.random.default_rng(0)
    rho = np.concatenate(
        [
            10.0 ** g.uniform(-12, 0, 250),
            1.0 - 10.0 ** g.uniform(-12, 0, 250),
            g.uniform(0, 1, 200),
            [1e-12, 1 - 1e-12, 0.75, 0.7500001, 0.12, 0.1200001, 0.25],
        ]
    )
    rho = rho[(rho >= 1e-12) & (rho <= 1 - 1e-12)]
    found = snr_for_load(rho)
    worst = max(float(abs(mpmath.mpf(float(x)) / exact_snr(r) - 1)) for x, r in zip(found, rho))
    assert worst < 1e-13


def test_lambertw_of_scipy_fails_where_ours_does_not():
    """The pitfall: the library function next to the branch point."""
    from scipy.special import lambertw

    rho = 1 - 1e-6
    theirs = -lambertw(-rho * math.exp(-rho), -1).real / rho - 1
    exact = float(exact_snr(rho))
    assert not abs(theirs / exact - 1) < 1e-3
    assert float(snr_for_load(np.array(rho))) == pytest.approx(exact, rel=1e-13)


def test_outside_the_open_interval_is_nan():
    assert np.isnan(snr_for_load(np.array([0.0, 1.0, -0.1, 1.1, np.nan]))).all()


def test_golden_allocation():
    found = allocate([1, 2, 3], [1e8, 5e7, 2e7], 640_000, 1e6)
    assert found.finish_s == pytest.approx(GOLDEN_FINISH_S, rel=1e-15)
    golden = [24800.29790053327, 56637.69325918313, 918562.0088402836]
    np.testing.assert_allclose(found.bandwidth_hz, golden, rtol=1e-12)


def mp_allocation(a, s, z, band) -> mpmath.mpf:
    """Find the common finishing time with 60 digits as the root of sum b - B."""

    def total(t):
        out = mpmath.mpf(0)
        for ai, si, zi in zip(a, s, z):
            rho = zi * LN2 / ((t - ai) * si)
            x = -mpmath.lambertw(-rho * mpmath.exp(-rho), -1) / rho - 1
            out += si / x
        return out - band

    low = max(ai + zi * LN2 / si for ai, si, zi in zip(a, s, z))
    t = mpmath.mpf(allocate(a, s, z, float(band)).finish_s)
    width = (t - low) * mpmath.mpf("1e-9")
    return mpmath.findroot(total, (t - width, t + width), solver="anderson", tol=1e-60)


def test_finishing_time_within_1e12_of_mpmath():
    g = np.random.default_rng(1)
    worst = 0.0
    for _ in range(40):
        n = int(g.integers(1, 8))
        a = g.uniform(0, 5, n)
        s = 10 ** g.uniform(4, 9, n)
        z = 10 ** g.uniform(3, 7, n)
        band = 10 ** g.uniform(4, 7)
        found = allocate(a, s, z, band)
        exact = mp_allocation(list(map(mpmath.mpf, a)), list(map(mpmath.mpf, s)),
                              list(map(mpmath.mpf, z)), mpmath.mpf(band))  # fmt: skip
        worst = max(worst, float(abs(mpmath.mpf(found.finish_s) / exact - 1)))
    assert worst < 1e-12


def test_warm_iteration_equals_the_safeguarded_one():
    """Two iterations for one root: roots carried along, and every rate inverted anew."""
    g = np.random.default_rng(4)
    gave_up = 0
    for k in range(3000):
        n = int(g.integers(1, 4 if k % 2 else 40))
        a = g.uniform(0, 5, n) * (k % 3 > 0)
        a -= a.max()
        s, z, band = 10 ** g.uniform(3, 10, n), 10 ** g.uniform(1, 8, n), 10 ** g.uniform(3, 8)
        slow, fast = np.empty(n), np.empty(n)
        t, slope = common_finish(a, s, z, band, slow)
        found, found_slope = warm_finish(a, s, z, band, fast)
        if found == np.inf:
            gave_up += 1
            continue
        assert found == pytest.approx(t, rel=1e-13)
        np.testing.assert_allclose(fast / band, slow / band, atol=1e-9)
        assert found_slope == pytest.approx(slope, rel=1e-5)
    assert gave_up < 30


def test_against_brentq_on_the_rates():
    """SciPy inverts the rate numerically; no Lambert function is involved."""
    g = np.random.default_rng(2)
    a, s, z, band = g.uniform(0, 3, 6), g.uniform(1e6, 1e8, 6), g.uniform(1e5, 1e6, 6), 1e6

    def need(t):
        total = 0.0
        for ai, si, zi in zip(a, s, z):
            total += brentq(
                lambda b, a=ai, s=si, z=zi: rate_bit_per_s(b, s) * (t - a) - z,
                1e-3,
                1e12,
                xtol=1e-9,
            )
        return total

    low = lower_limit_s(a, s, z)
    t = brentq(lambda t: need(t) - band, low * 1.02, 100, xtol=1e-13)
    assert allocate(a, s, z, band).finish_s == pytest.approx(t, rel=1e-10)


def test_no_other_split_is_better_slsqp():
    g = np.random.default_rng(3)
    n, band = 5, 1e6
    a, s, z = g.uniform(0, 3, n), g.uniform(1e7, 1e8, n), g.uniform(1e5, 1e6, n)

    def late(v):
        t, share = v[0], v[1:] * band
        return t - a - z / rate_bit_per_s(np.maximum(share, 1.0), s)

    start = np.r_[equal_split(a, s, z, band).finish_s, np.full(n, 1 / n)]
    found = minimize(
        lambda v: v[0],
        start,
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": late},
            {"type": "ineq", "fun": lambda v: 1 - v[1:].sum()},
        ],
        bounds=[(0, None)] + [(1e-6, 1)] * n,
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert allocate(a, s, z, band).finish_s == pytest.approx(found.fun, rel=1e-7)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e3), st.floats(1e3, 1e10), st.floats(1.0, 1e9)),
        min_size=1,
        max_size=12,
    ),
    st.floats(1e2, 1e9),
)
def test_all_finish_together_and_use_the_band(rows, band):
    a, s, z = (np.array(c) for c in zip(*rows))
    found = allocate(a, s, z, band)
    assert found.bandwidth_hz.sum() == pytest.approx(band, rel=1e-6)
    finish = finishing_times(found.bandwidth_hz, a, s, z)
    np.testing.assert_allclose(finish, found.finish_s, rtol=1e-6)
    assert found.finish_s >= lower_limit_s(a, s, z)
    assert found.finish_s <= equal_split(a, s, z, band).finish_s * (1 + 1e-12)
    assert found.finish_s <= proportional_split(a, s, z, band).finish_s * (1 + 1e-12)


def test_dual_is_the_derivative():
    args = ([0.5, 1.0, 2.0], [3e7, 5e7, 1e7], 640_000)
    h = 1.0
    up, down = (allocate(*args, 1e6 + d).finish_s for d in (h, -h))
    assert allocate(*args, 1e6).dual == pytest.approx((down - up) / (2 * h), rel=1e-6)


def test_more_band_never_hurts_and_demand_falls_with_time():
    args = ([0.5, 1.0, 2.0], [3e7, 5e7, 1e7], 640_000)
    times = [allocate(*args, b).finish_s for b in (1e5, 1e6, 1e7)]
    assert times == sorted(times, reverse=True)
    assert (demand(5.0, *args) < demand(4.0, *args)).all()
    assert np.isinf(demand(0.4, *args)).all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (([], [], 1.0, 1e6), "offset_s"),
        (([1.0], [1.0, 2.0], 1.0, 1e6), "snr_density_hz"),
        (([1.0], [1e6], 0.0, 1e6), "bits"),
        (([-1.0], [1e6], 1.0, 1e6), "offset_s"),
        (([1.0], [1e6], 1.0, 0.0), "bandwidth_hz"),
        (([1.0], [1e6], 1.0, float("nan")), "bandwidth_hz"),
        (([np.nan], [1e6], 1.0, 1e6), "offset_s"),
    ],
)
def test_bad_input_names_the_argument(arguments, word):
    with pytest.raises(InputError, match=word):
        allocate(*arguments)


def test_deep_fade_is_infeasible_and_names_the_ue():
    with pytest.raises(InfeasibleError, match=r"snr_density_hz\[1\]"):
        allocate([1.0, 1.0], [1e6, 0.0], 1e5, 1e6)
