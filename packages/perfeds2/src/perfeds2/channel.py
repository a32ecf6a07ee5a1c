"""Wireless uplink: path loss, Rayleigh fading, rate. SI units; the unit is in the name.

The paper's body was not reachable: this model (FDMA uplink, log-distance path loss, Rayleigh block
fading) is the usual one of this family of papers and is our choice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from .errors import require

LN2 = math.log(2.0)
NOISE_DENSITY_DBM_PER_HZ = -174.0


def watt_from_dbm(power_dbm: Any) -> Any:
    """Power in W from dBm.

    Examples
    --------
    >>> round(float(watt_from_dbm(10.0)), 12)
    0.01
    """
    return 10.0 ** ((np.asarray(power_dbm, dtype=float) - 30.0) / 10.0)


def check_power_w(power_w: Any, name: str = "power_w") -> None:
    """Refuse a transmit power that looks like dBm (a phone sends at most a few watts)."""
    require(
        bool(np.all(np.isfinite(power_w)) and np.all(np.asarray(power_w) > 0)),
        name,
        power_w,
        "a finite positive power in watts",
        "convert dBm with watt_from_dbm",
    )
    require(
        bool(np.all(np.asarray(power_w) <= 5.0)),
        name,
        power_w,
        "0 < power <= 5 W",
        "this looks like dBm: 10 dBm are 0.01 W, see watt_from_dbm",
    )


def path_gain(
    distance_m: Float[np.ndarray, " ues"], model: str = "3gpp", exponent: float = 3.8
) -> Float[np.ndarray, " ues"]:
    """Linear power gain over a distance in metres.

    Parameters
    ----------
    distance_m : float array
        Distances in metres, positive.
    model : {"3gpp", "power"}
        ``3gpp``: loss 128.1 + 37.6 log10(d / km) dB. ``power``: d ** -exponent, d in metres.
    exponent : float
        Path-loss exponent of ``power``.

    Examples
    --------
    >>> import numpy as np
    >>> bool(np.isclose(path_gain(np.array([1000.0]))[0], 10 ** -12.81))
    True
    """
    d = np.asarray(distance_m, dtype=float)
    require(bool(np.all(d > 0)), "distance_m", float(np.min(d)), "positive metres")
    if model == "3gpp":
        return 10.0 ** (-(128.1 + 37.6 * np.log10(d / 1000.0)) / 10.0)
    require(model == "power", "path_loss", model, "'3gpp' or 'power'")
    return d**-exponent


def snr_density_hz(
    power_w: float | Float[np.ndarray, " ues"],
    gain: Float[np.ndarray, " ues"],
    noise_dbm_per_hz: float = NOISE_DENSITY_DBM_PER_HZ,
) -> Float[np.ndarray, " ues"]:
    """Received power over noise density, p h PL / N_0, in Hz.

    The signal-to-noise ratio over a band of b Hz is ``snr_density_hz / b``.
    """
    require(
        -300.0 < noise_dbm_per_hz < 0.0,
        "noise_dbm_per_hz",
        noise_dbm_per_hz,
        "-300 to 0 dBm per Hz",
        "thermal noise is -174",
    )
    return np.asarray(np.asarray(power_w) * gain / watt_from_dbm(noise_dbm_per_hz))


def rate_bit_per_s(bandwidth_hz: Any, snr_density: Any) -> Any:
    """Shannon rate b log2(1 + s / b) in bit/s; increasing and concave in b, limit s / ln 2.

    Examples
    --------
    >>> float(rate_bit_per_s(1e6, 1e6))
    1000000.0
    >>> round(float(rate_bit_per_s(1e20, 1e6)) * LN2)
    1000000
    """
    b = np.asarray(bandwidth_hz, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = b * np.log1p(np.asarray(snr_density, dtype=float) / b) / LN2
    return np.where(b > 0, r, 0.0)
