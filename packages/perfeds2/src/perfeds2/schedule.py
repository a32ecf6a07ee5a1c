"""Scheduling of one round: who sends. `greedy` and the joint optimum `exact_round`.

The paper schedules greedily (abstract); details were not reachable. Both rules here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from . import _rate_inverse as kernel
from . import _selection as selection
from .bandwidth import Allocation, _band, _columns, allocate
from .errors import InfeasibleError, require

SCHEDULERS = ("arrival", "greedy", "exact_round")


@dataclass(frozen=True)
class RoundSchedule:
    """Participants of one round and their bandwidth.

    Attributes
    ----------
    participants : int array of shape (A,)
        UE ids in ascending order.
    finish_s : float
        Seconds from the start of the round to its end.
    bandwidth_hz : float array of shape (A,)
        Share of each participant, in the order of `participants`.
    dual : float
        Seconds gained per additional Hz.
    iterations : int
        Sets that were tried before the optimum was certified.
    """

    participants: Int[np.ndarray, " A"]
    finish_s: float
    bandwidth_hz: Float[np.ndarray, " A"]
    dual: float
    iterations: int = 1

    def to_json(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "participants": self.participants.tolist(),
            "finish_s": self.finish_s,
            "bandwidth_hz": self.bandwidth_hz.tolist(),
            "dual_s_per_hz": self.dual,
            "iterations": self.iterations,
        }


def greedy(
    offset_s: ArrayLike,
    snr_density_hz: ArrayLike,
    bits: ArrayLike,
    bandwidth_hz: float,
    participants: int,
    forced: Sequence[int] = (),
) -> Int[np.ndarray, " A"]:
    """Pick the forced UEs, then those that would finish first over an equal share B / A.

    Returns
    -------
    int array of shape (A,)
        UE ids in ascending order.

    Examples
    --------
    >>> greedy([0.5, 1.0, 3.0], [2e7, 4e7, 9e7], 640_000, 1e6, 2, forced=[2]).tolist()
    [0, 2]
    """
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    forced_ids = _forced(forced, len(a), participants)
    return _greedy(a, s, z, _band(bandwidth_hz), participants, forced_ids)


def _greedy(
    a: np.ndarray, s: np.ndarray, z: np.ndarray, band: float, count: int, forced: np.ndarray
) -> np.ndarray:
    finish = np.empty(len(a))
    kernel.finish_many(band / count, a, s, z, finish)
    free = np.ones(len(a), dtype=bool)
    free[forced] = False
    ids = np.flatnonzero(free)
    rest = ids[selection.smallest(finish[ids], ids, count - len(forced))]
    return np.sort(np.concatenate([forced, rest]))


def exact_round(
    offset_s: ArrayLike,
    snr_density_hz: ArrayLike,
    bits: ArrayLike,
    bandwidth_hz: float,
    participants: int,
    forced: Sequence[int] = (),
) -> RoundSchedule:
    """Joint optimum of the set of participants and of their bandwidths.

    Parameters
    ----------
    offset_s, snr_density_hz : float arrays of shape (n,)
        Seconds until ready, and received power over noise density in Hz.
    bits : float or float array of shape (n,)
        Payloads.
    bandwidth_hz : float
        Band in Hz.
    participants : int
        Size A of the set, between max(1, len(forced)) and the number of UEs.
    forced : sequence of int
        UEs that must be in the set (staleness at its bound).

    Returns
    -------
    RoundSchedule
        The optimal set; among equal demands the lower id.

    Raises
    ------
    InputError
        For A out of range, unknown or repeated forced ids, unusable columns.
    InfeasibleError
        When fewer than A UEs have a channel, or a forced UE has none.

    Notes
    -----
    For a fixed T the cheapest feasible set is the forced UEs and the smallest demands b_i(T). From
    a set P with optimal time T_P, the cheapest set at T_P either is P, and then T_P is the optimum,
    or finishes earlier: the times decrease strictly, so the search ends. Ours.

    Examples
    --------
    >>> s = [2e7, 4e7, 6e7, 8e7, 1e8, 3e6]
    >>> r = exact_round([0.5, 1, 1.5, 2, 2.5, 3], s, 640_000, 1e6, 3)
    >>> r.participants.tolist(), round(r.finish_s, 10)
    ([0, 1, 2], 1.6270095536)
    """
    a, s, z = _columns(offset_s, snr_density_hz, bits)
    band = _band(bandwidth_hz)
    forced_ids = _forced(forced, len(a), participants)
    alive = int(np.count_nonzero(s > 0))
    if alive < participants:
        raise InfeasibleError(
            f"participants = {participants}: only {alive} UEs have a channel in this round; "
            "lower participants"
        )
    chosen = _greedy(a, s, z, band, participants, forced_ids)
    mask = np.zeros(len(a), dtype=bool)
    mask[forced_ids] = True
    index = np.empty(len(a), dtype=np.int64)
    need = np.empty(len(a))
    best = allocate(a[chosen], s[chosen], z[chosen], band)
    candidates = index[: selection.reachable(best.finish_s, band, a, s, z, mask, index)].copy()
    iterations = 1
    while participants > len(forced_ids):
        free = chosen[~mask[chosen]]
        shares = best.bandwidth_hz[~mask[chosen]]
        cut = float(shares.max())
        count = selection.challengers(best.finish_s, cut, a, s, z, candidates, index, need)
        ids = np.union1d(index[:count], free)
        values = np.empty(len(ids))
        kernel.demand_many(best.finish_s, a[ids], s[ids], z[ids], values)
        order = selection.smallest(values, ids, len(free))
        new = np.sort(np.concatenate([forced_ids, ids[order]]))
        if np.array_equal(new, chosen):
            break
        trial = allocate(a[new], s[new], z[new], band)
        if not trial.finish_s < best.finish_s:
            if trial.finish_s == best.finish_s and tuple(new) < tuple(chosen):
                chosen, best = new, trial
            break
        chosen, best = new, trial
        iterations += 1
    return RoundSchedule(chosen, best.finish_s, best.bandwidth_hz, best.dual, iterations)


def exhaustive_round(
    offset_s: ArrayLike,
    snr_density_hz: ArrayLike,
    bits: ArrayLike,
    bandwidth_hz: float,
    participants: int,
    forced: Sequence[int] = (),
) -> RoundSchedule:
    """Best of all sets of the given size, by enumeration; the oracle of `exact_round` (n <= 16)."""
    from itertools import combinations

    a, s, z = _columns(offset_s, snr_density_hz, bits)
    require(len(a) <= 16, "offset_s", len(a), "at most 16 UEs for enumeration")
    forced_ids = _forced(forced, len(a), participants)
    rest = [i for i in range(len(a)) if i not in set(forced_ids.tolist())]
    best: tuple[Allocation, np.ndarray] | None = None
    for extra in combinations(rest, participants - len(forced_ids)):
        ids = np.array(sorted([*forced_ids.tolist(), *extra]), dtype=np.int64)
        found = allocate(a[ids], s[ids], z[ids], bandwidth_hz)
        if best is None or found.finish_s < best[0].finish_s:
            best = (found, ids)
    assert best is not None
    return RoundSchedule(best[1], best[0].finish_s, best[0].bandwidth_hz, best[0].dual)


def _forced(forced: Sequence[int], n: int, participants: int) -> Int[np.ndarray, " forced"]:
    require(1 <= participants <= n, "participants", participants, f"1 to {n}, the number of UEs")
    ids = np.unique(np.asarray(list(forced), dtype=np.int64))
    require(len(ids) == len(list(forced)), "forced", list(forced), "distinct UE ids")
    require(
        ids.size == 0 or (ids[0] >= 0 and ids[-1] < n), "forced", list(forced), f"ids 0 to {n - 1}"
    )
    require(
        len(ids) <= participants,
        "forced",
        list(forced),
        f"at most participants = {participants} ids",
        "raise participants or the staleness bound",
    )
    return ids
