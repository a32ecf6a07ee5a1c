"""Compute time and energy of a UE."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from .errors import require


def compute_time_s(
    cycles_per_sample: Float[np.ndarray, " ues"] | float,
    samples: Float[np.ndarray, " ues"] | float,
    frequency_hz: Float[np.ndarray, " ues"],
) -> Float[np.ndarray, " ues"]:
    """Seconds to touch the samples of one update: cycles x samples / frequency.

    Examples
    --------
    >>> import numpy as np
    >>> compute_time_s(2e7, 48, np.array([0.96e9])).tolist()
    [1.0]
    """
    f = np.asarray(frequency_hz, dtype=float)
    require(bool(np.all(f > 0)), "frequency_hz", float(np.min(f)), "positive Hz")
    require(
        bool(np.all(f >= 1e4)),
        "frequency_hz",
        float(np.min(f)),
        "at least 1e4 Hz",
        "0.5 GHz is 5e8",
    )
    return np.asarray(np.asarray(cycles_per_sample) * np.asarray(samples) / f)


def compute_energy_j(
    cycles_per_sample: Float[np.ndarray, " ues"] | float,
    samples: Float[np.ndarray, " ues"] | float,
    frequency_hz: Float[np.ndarray, " ues"],
    capacitance: float = 1e-28,
) -> Float[np.ndarray, " ues"]:
    """Dynamic CMOS energy of one update in joules: kappa f^2 c m.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(compute_energy_j(1e7, 100, np.array([1e9]))[0]), 12)
    0.1
    """
    f = np.asarray(frequency_hz, dtype=float)
    return np.asarray(capacitance * f**2 * np.asarray(cycles_per_sample) * np.asarray(samples))


def upload_energy_j(
    power_w: Float[np.ndarray, " uploads"] | float, upload_s: Float[np.ndarray, " uploads"]
) -> Float[np.ndarray, " uploads"]:
    """Radio energy of uploads in joules: transmit power x time on air."""
    return np.asarray(np.asarray(power_w) * np.asarray(upload_s))
