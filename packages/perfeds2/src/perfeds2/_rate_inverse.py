"""Compiled kernel: the bandwidth a UE needs to finish by a time.

With s the SNR density, Z the bits and t the seconds on air, the least bandwidth b solves
b log2(1 + s/b) t = Z. With x = s/b and rho = Z ln2 / (t s) this is ln(1 + x) = rho x, whose
non-trivial root is x = -W_{-1}(-rho exp(-rho)) / rho - 1. The Lambert-W route loses every digit
where rho -> 1 (branch point), hence this direct evaluation.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

LN2 = math.log(2.0)


@nb.njit(cache=True, nogil=True, inline="always")
def _one_minus_log1p_over_x(x):  # type: ignore[no-untyped-def]
    """1 - ln(1 + x) / x without cancellation."""
    if x > 0.1:
        return (x - math.log1p(x)) / x
    total = 0.0
    for k in range(16, 0, -1):
        total = x * (1.0 / (k + 1.0) - total)
    return total


@nb.njit(cache=True, nogil=True)
def snr_of_rho(rho, delta):  # type: ignore[no-untyped-def]
    """Root x > 0 of ln(1 + x) = rho x, with delta = 1 - rho given separately.

    Error below 1e-13 relative for rho in [1e-12, 1 - 1e-12]; nan outside (0, 1).
    """
    if not (rho > 0.0 and delta > 0.0):
        return np.nan
    if delta < 0.25:
        # delta = x/2 - x^2/3 + x^3/4 - ...: reverted series as a start, Newton on the series
        d = 2.0 * delta
        x = d * (1.0 + d * (2.0 / 3.0 + d * (7.0 / 18.0 + d * 0.21)))
        for _ in range(6):
            h = _one_minus_log1p_over_x(x)
            slope = (1.0 / (1.0 + x) - (1.0 - h)) / -x
            step = (h - delta) / slope if x > 1e-3 else (h - delta) / (0.5 - x * (2.0 / 3.0))
            x -= step
            if abs(step) <= 1e-9 * x:  # quadratic convergence: what is left is below one ulp
                break
        return x
    if rho > 0.12:
        p = -math.sqrt(2.0 * (1.0 - rho * math.exp(delta)))
        w = -1.0 + p * (1.0 + p * (-1.0 / 3.0 + p * (11.0 / 72.0 + p * (-43.0 / 540.0))))
    else:
        l1 = math.log(rho) - rho
        l2 = math.log(-l1)
        w = l1 - l2 + l2 / l1 + l2 * (l2 - 2.0) / (2.0 * l1 * l1)
    x = -w / rho - 1.0
    low = delta / rho  # f' changes sign there: the root lies to the right
    if x <= low:
        x = low * 1.5
    for _ in range(8):
        f = math.log1p(x) - rho * x
        q = 1.0 / (1.0 + x)
        slope = q - rho
        step = f / slope
        step = step / (1.0 + 0.5 * step * q * q / slope)  # Halley, f'' = -q^2
        new = x - step
        if new <= low:
            new = 0.5 * (x + low)
        step = x - new
        x = new
        if abs(step) <= 1e-6 * x:  # cubic convergence: what is left is below one ulp
            break
    return x


@nb.njit(cache=True, nogil=True)
def demand_one(finish_s, offset_s, snr_density, bits):  # type: ignore[no-untyped-def]
    """Least bandwidth in Hz and its derivative in Hz/s; (inf, -inf) where no bandwidth suffices."""
    on_air = finish_s - offset_s
    if not (on_air > 0.0 and snr_density > 0.0):
        return np.inf, -np.inf
    work = bits * LN2
    capacity = on_air * snr_density
    rho = work / capacity
    delta = (capacity - work) / capacity
    if not delta > 0.0:
        return np.inf, -np.inf
    if rho < 1e-300:
        return 0.0, 0.0
    x = snr_of_rho(rho, delta)
    b = snr_density / x
    d = x / (1.0 + x) - delta if delta < 0.25 else rho - 1.0 / (1.0 + x)
    return b, -b * rho / (d * on_air)


@nb.njit(cache=True, nogil=True)
def demand_many(finish_s, offset_s, snr_density, bits, out):  # type: ignore[no-untyped-def]
    """Fill `out` with demands; return their sum and the sum of derivatives."""
    total = 0.0
    slope = 0.0
    for i in range(out.shape[0]):
        b, db = demand_one(finish_s, offset_s[i], snr_density[i], bits[i])
        out[i] = b
        total += b
        slope += db
    return total, slope


@nb.njit(cache=True, nogil=True, inline="always")
def finish_one(bandwidth_hz, offset_s, snr_density, bits):  # type: ignore[no-untyped-def]
    """Finishing time with a given bandwidth."""
    rate = bandwidth_hz * math.log1p(snr_density / bandwidth_hz) / LN2
    if rate <= 0.0:
        return np.inf
    return offset_s + bits / rate


@nb.njit(cache=True, nogil=True)
def finish_many(bandwidth_hz, offset_s, snr_density, bits, out):  # type: ignore[no-untyped-def]
    """Finishing times of all UEs when each of them has the same bandwidth."""
    for i in range(out.shape[0]):
        out[i] = finish_one(bandwidth_hz, offset_s[i], snr_density[i], bits[i])
