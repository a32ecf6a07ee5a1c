"""Compiled kernel: the common finishing time of one round.

`common_finish` is a safeguarded Newton iteration that inverts every UE's rate anew in each pass.
`warm_finish` carries the roots from pass to pass, which is several times faster, and gives up where
it would leave its safe range; `solve` tries it first.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from ._rate_inverse import LN2, demand_many, demand_one, finish_one


@nb.njit(cache=True, nogil=True)
def common_finish(offset_s, snr_density, bits, bandwidth_hz, out):  # type: ignore[no-untyped-def]
    """Root T of sum_i b_i(T) = B by safeguarded Newton on 1 / sum_i b_i(T).

    The reciprocal is close to linear both near the lower limit, where b ~ 1/(T - T_min), and far
    from it, where b ~ 1/T. Fills `out` with the bandwidths; returns T and d(sum b)/dT.
    """
    n = out.shape[0]
    low = 0.0
    high = 0.0
    limit = -np.inf  # no band can beat this time
    for i in range(n):
        limit = max(limit, offset_s[i] + bits[i] * LN2 / snr_density[i])
        low = max(low, finish_one(bandwidth_hz, offset_s[i], snr_density[i], bits[i]))
        high = max(high, finish_one(bandwidth_hz / n, offset_s[i], snr_density[i], bits[i]))
    if not high < np.inf:
        return np.inf, 0.0
    t = low if n == 1 else 0.5 * (low + high)
    slope = -np.inf
    for _ in range(200):
        total, slope = demand_many(t, offset_s, snr_density, bits, out)
        if total > bandwidth_hz:
            low = max(low, t)
        else:
            high = min(high, t)
        if total == np.inf:
            new = 0.5 * (t + high)
        else:
            new = t - total * (total - bandwidth_hz) / (bandwidth_hz * slope)
            if not (low <= new <= high):
                new = 0.5 * (low + high)
        step = abs(new - t)
        t = new
        # quadratic convergence on the scale of t - limit: what is left is below one ulp
        if step <= 1e-9 * (t - limit) or step <= 2e-16 * t:
            break
    total, slope = demand_many(t, offset_s, snr_density, bits, out)
    return t, slope


@nb.njit(cache=True, nogil=True, error_model="numpy")
def first_unusable(offset_s, snr_density, bits):  # type: ignore[no-untyped-def]
    """Column (0 offset, 1 SNR density, 2 bits) and row of the first unusable value, or (-1, -1)."""
    for i in range(offset_s.shape[0]):
        if not (0.0 <= offset_s[i] < np.inf):
            return 0, i
        if not (0.0 <= snr_density[i] < np.inf):
            return 1, i
        if not (1e-300 <= bits[i] < np.inf):
            return 2, i
    return -1, -1


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _start(offset_s, load_s, snr_density, bits, bandwidth_hz, x):  # type: ignore[no-untyped-def]
    """Finishing time and roots x = s / b at spectral efficiencies of the equal split.

    With fixed efficiencies c_i the shares are Z_i / (c_i (T - a_i)), and their sum is a rational
    function of T: a few Newton steps without a logarithm.
    """
    n = x.shape[0]
    limit = -np.inf
    late = -np.inf
    for i in range(n):
        limit = max(limit, offset_s[i] + load_s[i])
        late = max(late, offset_s[i])
    need = np.empty(n)
    whole = 0.0
    for i in range(n):
        need[i] = bits[i] * LN2 / math.log(1.0 + snr_density[i] * n / bandwidth_hz)
        whole += need[i]
    t = late + whole / bandwidth_hz  # nobody can need more than this
    for _ in range(4):
        total = 0.0
        slope = 0.0
        for i in range(n):
            q = 1.0 / (t - offset_s[i])
            total += need[i] * q
            slope += need[i] * q * q
        # Newton on 1 / total, which is close to linear in t
        new = t + total * (total - bandwidth_hz) / (bandwidth_hz * slope)
        t = max(new, late + 1e-3 * (t - late))
    t = max(t, limit + 1e-3 * (t - late))
    for i in range(n):
        x[i] = snr_density[i] * (t - offset_s[i]) / need[i]
    return t, limit


@nb.njit(cache=True, nogil=True, error_model="numpy")
def warm_finish(offset_s, snr_density, bits, bandwidth_hz, out):  # type: ignore[no-untyped-def]
    """Like `common_finish`, with each UE's root carried from pass to pass.

    A pass takes one Halley step per UE from its root at the last T, moved along its derivative, and
    one Newton step of T. Returns T = inf where the iteration leaves its safe range.
    """
    n = out.shape[0]
    load = np.empty(n)
    x = np.empty(n)
    relative = np.zeros(n)  # d ln(b) / dT
    for i in range(n):
        load[i] = bits[i] * LN2 / snr_density[i]
    t, limit = _start(offset_s, load, snr_density, bits, bandwidth_hz, x)
    step_t = 0.0
    for _ in range(12):
        total = 0.0
        slope = 0.0
        moved = False
        for i in range(n):
            on_air = t - offset_s[i]
            inverse = 1.0 / on_air
            rho = load[i] * inverse
            if rho < 0.75:
                # The root lies right of 2 / rho - 2, twice the place of the maximum of
                # ln(1 + x) - rho x; from there on that function falls and is concave.
                low = 2.0 / rho - 2.0
                start = max(x[i] * (1.0 - relative[i] * step_t), low)
                q = 1.0 / (1.0 + start)
                d = rho - q
                f = rho * start - math.log(1.0 + start)
                v = max(start - f * d / (d * d - 0.5 * f * q * q), low)
                # cubic convergence: what is left after a step below 1e-5 is below one ulp
                moved = moved or abs(v - start) > 1e-5 * v
                x[i] = v
                w = 1.0 / (v * (1.0 + v))
                b = snr_density[i] * (1.0 + v) * w
                relative[i] = -rho * inverse / (rho - v * w)
                out[i] = b
                total += b
                slope += b * relative[i]
            else:
                out[i], db = demand_one(t, offset_s[i], snr_density[i], bits[i])
                relative[i] = db / out[i]
                x[i] = snr_density[i] / out[i]
                total += out[i]
                slope += db
        if not total < np.inf:
            return np.inf, 0.0
        step_t = -total * (total - bandwidth_hz) / (bandwidth_hz * slope)
        step_t = max(step_t, -0.9 * (t - limit))
        t += step_t
        if abs(step_t) <= 1e-8 * (t - limit) and not moved:
            for i in range(n):  # the step is so small that its first order is exact
                out[i] += out[i] * relative[i] * step_t
            return t, slope
    return np.inf, 0.0


@nb.njit(cache=True, nogil=True, error_model="numpy")
def solve(offset_s, snr_density, bits, bandwidth_hz):  # type: ignore[no-untyped-def]
    """Find the common finishing time, d(sum of bandwidths)/dT and the bandwidths; inf if none.

    Time is counted from the last offset, so that seconds on air are exact.
    """
    n = offset_s.shape[0]
    out = np.empty(n)
    last = 0.0
    for i in range(n):
        last = max(last, offset_s[i])
        if not snr_density[i] > 0.0:
            return np.inf, 0.0, out
    shifted = offset_s - last
    t, slope = warm_finish(shifted, snr_density, bits, bandwidth_hz, out)
    if t == np.inf:
        t, slope = common_finish(shifted, snr_density, bits, bandwidth_hz, out)
    total = 0.0
    most = 0
    for i in range(n):
        total += out[i]
        if out[i] > out[most]:
            most = i
    # Rounding shifts the sum where a UE works at its capacity limit (rho -> 1). That UE has nearly
    # the whole band and its time hardly depends on its share.
    out[most] += bandwidth_hz - total
    return last + t, slope, out
