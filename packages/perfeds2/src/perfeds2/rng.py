"""Counter-based random numbers: every draw is a pure function of (seed, UE, purpose, counter).

Philox4x32-10 (Salmon et al., SC 2011). A draw depends neither on the order of events nor on how
UEs are batched, which is what makes runs equal for any chunk size and resumable without state.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from jaxtyping import Float, Int

FADING, COMPUTE, FAILURE, INNER, OUTER, HESSIAN, PLACEMENT, SPEED, SPLIT, SHADOW = range(10)

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@nb.njit(cache=True, nogil=True)
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Ten rounds of Philox4x32 on four counter words and two key words (uint64 holding 32 bits)."""
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ k0,
            p1 & _MASK,
            (p0 >> _32) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@nb.njit(cache=True, nogil=True)
def uniform(seed, ue, purpose, counter, attempt):  # type: ignore[no-untyped-def]
    """One float64 in (0, 1): 53 random bits, shifted by half a step away from 0."""
    s = np.uint64(seed)
    c = np.uint64(counter)
    a, b, _, _ = philox(
        np.uint64(ue) & _MASK,
        (np.uint64(purpose) << np.uint64(24)) | np.uint64(attempt),
        c & _MASK,
        c >> _32,
        s & _MASK,
        s >> _32,
    )
    bits = ((a << _32) | b) >> np.uint64(11)
    return (np.float64(bits) + 0.5) * (1.0 / 9007199254740992.0)


@nb.njit(cache=True, nogil=True)
def _fill_uniform(seed, ues, purpose, counters, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = uniform(seed, ues[i], purpose, counters[i], j)


def uniforms(
    seed: int,
    ues: Int[np.ndarray, " m"],
    purpose: int,
    counters: Int[np.ndarray, " m"] | int = 0,
    draws: int = 1,
) -> Float[np.ndarray, "m draws"]:
    """Uniform draws in (0, 1) for several UEs.

    Parameters
    ----------
    seed : int
        Key of the generator, 0 <= seed < 2**63.
    ues, counters : int arrays of shape (m,)
        UE ids and their counters (job number); a scalar counter holds for all.
    purpose : int
        One of the stream constants of this module.
    draws : int
        Draws per UE, at most 2**24.

    Examples
    --------
    >>> import numpy as np
    >>> a = uniforms(7, np.arange(4), FADING, 0, 2)
    >>> b = uniforms(7, np.array([2]), FADING, 0, 2)
    >>> bool((a[2] == b[0]).all())
    True
    """
    ues = np.ascontiguousarray(ues, dtype=np.int64)
    counters = np.ascontiguousarray(np.broadcast_to(counters, ues.shape), dtype=np.int64)
    out = np.empty((len(ues), draws))
    _fill_uniform(seed, ues, purpose, counters, out)
    return out


def choices(
    seed: int,
    ues: Int[np.ndarray, " m"],
    purpose: int,
    counters: Int[np.ndarray, " m"],
    sizes: Int[np.ndarray, " m"],
    draws: int,
) -> Int[np.ndarray, "m draws"]:
    """Draw indices 0..size-1 with replacement, independent between UEs, purposes and counters."""
    u = uniforms(seed, ues, purpose, counters, draws)
    sizes = np.asarray(sizes, dtype=np.int64)[:, None]
    return np.minimum((u * sizes).astype(np.int64), sizes - 1)
