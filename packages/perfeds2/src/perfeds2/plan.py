"""Plan over a horizon: which UEs take part in each of the next rounds.

Minimise the total time of K rounds of A participants under a staleness bound and bounds on each
UE's share of rounds. Ours: beam search over sets near the optimum of each round, and dynamic
programming over all sets as its oracle for small cells. Channels are taken at their mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from .bandwidth import _band, _columns, allocate
from .errors import InfeasibleError, require
from .schedule import exact_round


@dataclass(frozen=True)
class Plan:
    """Schedule of several rounds.

    Attributes
    ----------
    schedule : bool array of shape (K, n)
        Pi: who takes part in each round.
    close_s : float array of shape (K,)
        End of each round in seconds.
    """

    schedule: Bool[np.ndarray, "rounds ues"]
    close_s: Float[np.ndarray, " rounds"]

    @property
    def total_s(self) -> float:
        """Seconds of all rounds."""
        return float(self.close_s[-1])

    @property
    def frequency(self) -> Float[np.ndarray, " ues"]:
        """Share of the rounds in which each UE takes part."""
        return np.asarray(self.schedule.mean(0))


@dataclass(frozen=True)
class _Horizon:
    """The problem: costs and constraints."""

    compute_s: np.ndarray
    snr: np.ndarray
    bits: np.ndarray
    band: float
    rounds: int
    participants: int
    staleness: int
    low: int
    high: int

    def forced(self, k: int, version: tuple[int, ...], used: tuple[int, ...]) -> set[int] | None:
        """UEs that must take part in round k; None when the constraints can no longer be met."""
        left = self.rounds - k
        must = {i for i, v in enumerate(version) if 0 <= self.staleness <= k - v}
        must |= {i for i, u in enumerate(used) if self.low - u >= left}
        barred = {i for i, u in enumerate(used) if u >= self.high}
        short = sum(max(0, self.low - u) for u in used)
        if len(must) > self.participants or must & barred or short > left * self.participants:
            return None
        if any(self.low - u > left for u in used):
            return None
        return must

    def offsets(self, now: float, ready: tuple[float, ...]) -> np.ndarray:
        return np.maximum(np.array(ready) - now, 0.0)

    def step(
        self, chosen: tuple[int, ...], now: float, ready: tuple[float, ...]
    ) -> tuple[float, tuple[float, ...]]:
        """End of a round with the given set, and when everybody is ready again."""
        ids = np.array(chosen)
        offset = self.offsets(now, ready)
        end = now + allocate(offset[ids], self.snr[ids], self.bits[ids], self.band).finish_s
        after = list(ready)
        for i in chosen:
            after[i] = end + float(self.compute_s[i])
        return end, tuple(after)


_State = tuple[
    float, tuple[float, ...], tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]
]


def plan(
    compute_s: ArrayLike,
    snr_density_hz: ArrayLike,
    bits: ArrayLike,
    bandwidth_hz: float,
    rounds: int,
    participants: int,
    staleness: int = -1,
    frequency: tuple[float, float] = (0.0, 1.0),
    beam: int = 32,
    swaps: int = 3,
) -> Plan:
    """Plan the participants of several rounds by beam search.

    Parameters
    ----------
    compute_s, snr_density_hz, bits : float arrays of shape (n,)
        Compute time of an update, mean SNR density and payload.
    bandwidth_hz : float
        Band, split optimally in every round.
    rounds, participants : int
        K and A.
    staleness : int
        Bound S, -1 for none.
    frequency : (float, float)
        Least and largest share of the rounds for every UE.
    beam : int
        Partial plans kept per round.
    swaps : int
        Members and outsiders of a round's optimum that are exchanged to make alternatives.

    Raises
    ------
    InfeasibleError
        When no plan in the beam meets the constraints.

    Examples
    --------
    >>> p = plan([1.0, 1.0, 4.0], [1e7] * 3, 1e5, 1e6, rounds=4, participants=1, staleness=3)
    >>> p.schedule.sum(1).tolist()
    [1, 1, 1, 1]
    """
    problem = _problem(
        compute_s, snr_density_hz, bits, bandwidth_hz, rounds, participants, staleness, frequency
    )
    require(beam >= 1, "beam", beam, "at least 1")
    n = len(problem.compute_s)
    states: list[_State] = [(0.0, tuple(problem.compute_s.tolist()), (0,) * n, (0,) * n, ())]
    for k in range(rounds):
        grown: dict[tuple[object, ...], _State] = {}
        for state in states:
            for chosen in _alternatives(problem, k, state, swaps):
                new = _advance(problem, k, state, chosen)
                key = (new[2], new[3])
                if key not in grown or new[0] < grown[key][0]:
                    grown[key] = new
        states = sorted(grown.values(), key=lambda s: (s[0], s[4]))[:beam]
        if not states:
            raise InfeasibleError(
                f"plan: no schedule in the beam meets staleness and frequency in round {k}; "
                "raise beam, staleness or participants"
            )
    return _as_plan(problem, states[0])


def exhaustive_plan(
    compute_s: ArrayLike,
    snr_density_hz: ArrayLike,
    bits: ArrayLike,
    bandwidth_hz: float,
    rounds: int,
    participants: int,
    staleness: int = -1,
    frequency: tuple[float, float] = (0.0, 1.0),
) -> Plan:
    """Best of all schedules, for at most 6 UEs and 6 rounds; the oracle of `plan`.

    Branches are cut only where they already take longer than a finished schedule.
    """
    problem = _problem(
        compute_s, snr_density_hz, bits, bandwidth_hz, rounds, participants, staleness, frequency
    )
    n = len(problem.compute_s)
    require(n <= 6 and rounds <= 6, "rounds", (n, rounds), "at most 6 UEs and 6 rounds")
    best: list[_State] = []

    def search(k: int, state: _State) -> None:
        if best and state[0] >= best[0][0]:
            return
        if k == rounds:
            best[:] = [state]
            return
        must = problem.forced(k, state[2], state[3])
        if must is None:
            return
        for chosen in combinations(range(n), participants):
            if must <= set(chosen) and all(state[3][i] < problem.high for i in chosen):
                search(k + 1, _advance(problem, k, state, chosen))

    search(0, (0.0, tuple(problem.compute_s.tolist()), (0,) * n, (0,) * n, ()))
    if not best:
        raise InfeasibleError("plan: no schedule meets staleness and frequency")
    return _as_plan(problem, best[0])


def _problem(
    compute_s: ArrayLike,
    snr: ArrayLike,
    bits: ArrayLike,
    band: float,
    rounds: int,
    participants: int,
    staleness: int,
    frequency: tuple[float, float],
) -> _Horizon:
    a, s, z = _columns(compute_s, snr, bits)
    require(rounds >= 1, "rounds", rounds, "at least 1")
    require(1 <= participants <= len(a), "participants", participants, f"1 to {len(a)}")
    low, high = frequency
    require(0 <= low <= high <= 1, "frequency", frequency, "0 <= least <= largest <= 1")
    share = participants / len(a)
    require(low <= share <= high, "frequency", frequency, f"bounds around A / n = {share:.4g}")
    return _Horizon(
        a, s, z, _band(band), rounds, participants, staleness,
        math.ceil(low * rounds - 1e-9), math.floor(high * rounds + 1e-9),
    )  # fmt: skip


def _alternatives(problem: _Horizon, k: int, state: _State, swaps: int) -> list[tuple[int, ...]]:
    """Optimum of the round under its constraints, and its neighbours by one exchange."""
    now, ready, version, used, _ = state
    must = problem.forced(k, version, used)
    open_ids = np.array([i for i, u in enumerate(used) if u < problem.high])
    if must is None or len(open_ids) < problem.participants:
        return []
    offset = problem.offsets(now, ready)
    index = {int(ue): row for row, ue in enumerate(open_ids)}
    found = exact_round(
        offset[open_ids], problem.snr[open_ids], problem.bits[open_ids], problem.band,
        problem.participants, sorted(index[i] for i in must),
    )  # fmt: skip
    base = tuple(int(open_ids[r]) for r in found.participants)
    free = sorted((i for i in base if i not in must), key=lambda i: -offset[i])[:swaps]
    outside = sorted((int(i) for i in open_ids if i not in base), key=lambda i: offset[i])[:swaps]
    late = sorted((int(i) for i in open_ids if i not in base), key=lambda i: version[i])[:swaps]
    sets = {base}
    for leaves in free:
        for enters in {*outside, *late}:
            sets.add(tuple(sorted({*base, enters} - {leaves})))
    return sorted(sets)


def _advance(problem: _Horizon, k: int, state: _State, chosen: tuple[int, ...]) -> _State:
    now, ready, version, used, history = state
    end, after = problem.step(chosen, now, ready)
    members = set(chosen)
    return (
        end,
        after,
        tuple(k + 1 if i in members else v for i, v in enumerate(version)),
        tuple(u + (i in members) for i, u in enumerate(used)),
        (*history, chosen),
    )


def _as_plan(problem: _Horizon, state: _State) -> Plan:
    n = len(problem.compute_s)
    schedule = np.zeros((problem.rounds, n), dtype=bool)
    close = np.empty(problem.rounds)
    now, ready = 0.0, tuple(problem.compute_s.tolist())
    for k, chosen in enumerate(state[4]):
        schedule[k, list(chosen)] = True
        now, ready = problem.step(chosen, now, ready)
        close[k] = now
    return Plan(schedule, close)
