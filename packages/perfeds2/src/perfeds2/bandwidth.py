"""Bandwidth allocation of one round: the shares that make the last finishing time smallest.

The paper states that the allocation has an analytical solution; its form was not reachable. This
derivation is ours: rates are increasing and concave, so at the optimum all UEs finish together and
the band is used up; the bandwidth to finish by T has a closed form (Lambert W, branch -1), and the
common finishing time is the root of one decreasing function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from . import _finish
from . import _rate_inverse as kernel
from .channel import LN2, rate_bit_per_s
from .errors import InfeasibleError, require

POLICIES = ("equal", "proportional", "optimal", "processor_sharing")


@dataclass(frozen=True)
class Allocation:
    """Result of `allocate`.

    Attributes
    ----------
    finish_s : float
        Common finishing time T* in seconds (largest finishing time for `equal_split`).
    bandwidth_hz : float array of shape (n,)
        Share of each UE in Hz.
    dual : float
        Seconds gained per additional Hz of the band, -dT*/dB >= 0 (nan where it does not apply).
    """

    finish_s: float
    bandwidth_hz: Float[np.ndarray, " ues"]
    dual: float

    def to_json(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "finish_s": self.finish_s,
            "bandwidth_hz": self.bandwidth_hz.tolist(),
            "dual_s_per_hz": self.dual,
        }


def snr_for_load(
    rho: Float[np.ndarray, " ..."], one_minus_rho: Float[np.ndarray, " ..."] | None = None
) -> Float[np.ndarray, " ..."]:
    """Root x > 0 of ln(1 + x) = rho x: the signal-to-noise ratio at which the load is carried.

    Parameters
    ----------
    rho : float array
        Load Z ln2 / (t s), in (0, 1).
    one_minus_rho : float array, optional
        1 - rho where it is known more accurately than by subtraction.

    Returns
    -------
    float array
        x = s / b, relative error below 1e-13 for rho in [1e-12, 1 - 1e-12]; nan outside (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> float(np.round(snr_for_load(np.array([0.5]))[0], 12))
    2.512862417252
    """
    rho = np.asarray(rho, dtype=float)
    delta = 1.0 - rho if one_minus_rho is None else np.asarray(one_minus_rho, dtype=float)
    flat = [kernel.snr_of_rho(r, d) for r, d in zip(rho.ravel(), np.ravel(delta))]
    return np.array(flat).reshape(rho.shape)


def demand(
    finish_s: float,
    offset_s: ArrayLike,
    snr_density_hz: ArrayLike,
    bits: ArrayLike,
) -> Float[np.ndarray, " ues"]:
    """Least bandwidth in Hz with which each UE finishes by `finish_s`; inf where none suffices.

    Examples
    --------
    >>> import numpy as np
    >>> b = demand(2.0, [0.0], [1e7], [1e6])
    >>> bool(np.isclose(rate_bit_per_s(b, 1e7) * 2.0, 1e6))
    True
    """
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    out = np.empty(len(a))
    kernel.demand_many(float(finish_s), a, s, z, out)
    return out


def allocate(
    offset_s: ArrayLike, snr_density_hz: ArrayLike, bits: ArrayLike, bandwidth_hz: float
) -> Allocation:
    """Shares of a band that minimise the time at which the last UE has uploaded.

    Parameters
    ----------
    offset_s : float array of shape (n,)
        Seconds until each UE may start to send (remaining compute time).
    snr_density_hz : float array of shape (n,)
        Received power over noise density in Hz, see `snr_density_hz`.
    bits : float or float array of shape (n,)
        Payload of each UE in bits.
    bandwidth_hz : float
        Band shared by all UEs in Hz.

    Returns
    -------
    Allocation
        Common finishing time, shares and the multiplier of the band.

    Raises
    ------
    InputError
        For an empty set, negative offsets, non-positive bits or band.
    InfeasibleError
        When a UE has no channel (SNR density 0), so that its upload never ends.

    Notes
    -----
    Our derivation (the paper's is not public). The time is accurate to about 1e-15 relative.

    Examples
    --------
    >>> a = allocate([1, 2, 3], [1e8, 5e7, 2e7], 640_000, 1e6)
    >>> round(a.finish_s, 12)
    3.154513329986
    >>> a.bandwidth_hz.round(3).tolist()
    [24800.298, 56637.693, 918562.009]
    """
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    band = _band(bandwidth_hz)
    finish, slope, shares = _finish.solve(a, s, z, band)
    if not finish < math.inf:
        _reachable(s)
        raise InfeasibleError(
            "allocate: no finite finishing time: some channel is too weak for its bits; "
            "raise the outage threshold or drop the UE"
        )
    return Allocation(finish, shares, -1.0 / slope)


def equal_split(
    offset_s: ArrayLike, snr_density_hz: ArrayLike, bits: ArrayLike, bandwidth_hz: float
) -> Allocation:
    """Give every UE the same share; `finish_s` is the last finishing time."""
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    shares = np.full(len(a), _band(bandwidth_hz) / len(a))
    return Allocation(float(np.max(finishing_times(shares, a, s, z))), shares, float("nan"))


def proportional_split(
    offset_s: ArrayLike, snr_density_hz: ArrayLike, bits: ArrayLike, bandwidth_hz: float
) -> Allocation:
    """Shares proportional to bits over spectral efficiency at the equal split.

    A UE with a weak channel or a large payload gets more; offsets are ignored.
    """
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    band = _band(bandwidth_hz)
    _reachable(s)
    need = z / np.log2(1.0 + s / (band / len(a)))
    shares = band * need / need.sum()
    return Allocation(float(np.max(finishing_times(shares, a, s, z))), shares, float("nan"))


def finishing_times(
    shares_hz: ArrayLike, offset_s: ArrayLike, snr_density_hz: ArrayLike, bits: ArrayLike
) -> Float[np.ndarray, " ues"]:
    """Seconds at which each UE has uploaded its bits over its own share."""
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    rate = rate_bit_per_s(np.asarray(shares_hz, dtype=float), s)
    with np.errstate(divide="ignore"):
        return np.asarray(a + z / rate)


def lower_limit_s(offset_s: ArrayLike, snr_density_hz: ArrayLike, bits: ArrayLike) -> float:
    """Time no band can beat: max_i of a_i + Z_i ln2 / s_i."""
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    _reachable(s)
    return float(np.max(a + z * LN2 / s))


def _band(bandwidth_hz: float) -> float:
    if not 0 < bandwidth_hz < math.inf:
        require(
            False, "bandwidth_hz", bandwidth_hz, "a finite positive number of Hz", "1 MHz is 1e6"
        )
    return float(bandwidth_hz)


def _reachable(s: Float[np.ndarray, " ues"]) -> None:
    dead = np.flatnonzero(s <= 0)
    if dead.size:
        raise InfeasibleError(
            f"snr_density_hz[{dead[0]}] = {s[dead[0]]}: the upload never ends (deep fade); "
            "leave the UE out of the round or set an outage rule"
        )


_COLUMNS = (
    ("offset_s", "finite seconds, 0 or more"),
    ("snr_density_hz", "finite Hz, 0 or more"),
    ("bits", "finite and positive"),
)


def _columns(
    offset_s: ArrayLike, snr_density_hz: ArrayLike, bits: ArrayLike
) -> tuple[Float[np.ndarray, " ues"], Float[np.ndarray, " ues"], Float[np.ndarray, " ues"]]:
    # ascontiguousarray makes a scalar a vector; the messages are built only where they are needed
    a = np.ascontiguousarray(offset_s, dtype=float)
    s = np.ascontiguousarray(snr_density_hz, dtype=float)
    z = np.asarray(bits, dtype=float)
    if z.ndim == 0:
        z = np.full(a.shape, z)
    if a.ndim != 1 or not a.size:
        require(False, "offset_s", a.shape, "a non-empty vector, one per UE")
    if s.shape != a.shape:
        require(False, "snr_density_hz", s.shape, f"shape {a.shape} as offset_s")
    if z.shape != a.shape:
        require(False, "bits", z.shape, f"one number or shape {a.shape}")
    z = np.ascontiguousarray(z)
    column, row = _finish.first_unusable(a, s, z)
    if column >= 0:
        name, text = _COLUMNS[column]
        require(False, f"{name}[{row}]", float((a, s, z)[column][row]), text)
    return a, s, z
