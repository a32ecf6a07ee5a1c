"""Compiled kernel of the exact scheduler: who could displace a member of the current set."""

from __future__ import annotations

import numba as nb
import numpy as np

from ._rate_inverse import demand_one, finish_one


@nb.njit(cache=True, nogil=True)
def challengers(  # type: ignore[no-untyped-def]
    finish_s, threshold_hz, offset_s, snr_density, bits, candidates, out_index, out_demand
):
    """Candidates that finish by `finish_s` with no more than `threshold_hz`, and their demands.

    The test costs one logarithm; the rate is inverted only for those that pass.
    """
    count = 0
    for i in candidates:
        on_air = finish_s - offset_s[i]
        if on_air > 0.0 and finish_one(threshold_hz, offset_s[i], snr_density[i], bits[i]) <= (
            finish_s * (1.0 + 1e-12)
        ):
            b, _ = demand_one(finish_s, offset_s[i], snr_density[i], bits[i])
            if b <= threshold_hz:
                out_index[count] = i
                out_demand[count] = b
                count += 1
    return count


@nb.njit(cache=True, nogil=True)
def reachable(finish_s, bandwidth_hz, offset_s, snr_density, bits, forced_mask, out):  # type: ignore[no-untyped-def]
    """Ids outside the forced set that could finish by `finish_s` with the whole band."""
    count = 0
    for i in range(offset_s.shape[0]):
        if (
            not forced_mask[i]
            and offset_s[i] < finish_s
            and finish_one(bandwidth_hz, offset_s[i], snr_density[i], bits[i]) <= finish_s
        ):
            out[count] = i
            count += 1
    return count


def smallest(values: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` smallest values, ties to the lower id, in O(n).

    Examples
    --------
    >>> smallest(np.array([2.0, 1.0, 1.0, 1.0]), np.array([0, 9, 4, 7]), 2).tolist()
    [2, 3]
    """
    if count >= len(values):
        return np.arange(len(values))
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    cut = np.partition(values, count - 1)[count - 1]
    below = np.flatnonzero(values < cut)
    tied = np.flatnonzero(values == cut)
    tied = tied[np.argsort(ids[tied], kind="stable")][: count - len(below)]
    return np.concatenate([below, tied])
