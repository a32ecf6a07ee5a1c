"""How the time of a batch depends on the partition: two resources and a fixed part.

    t(b, p) = (t0^k + ((c b + d) / (g_p / G))^k + ((w b + e) / (m_p / M))^k)^(1/k)

``g_p`` and ``m_p`` are the compute and memory slices of partition p, ``G`` and ``M`` those of the
GPU. The first term is what no partition shortens (launches, host), the second what multiprocessors
shorten, the third what memory bandwidth shortens; ``k`` says how sharply the largest term wins.
The form is this package's own choice, not the paper's.

Where the activity of the GPU (GRACT) was measured, the time in which it works is known apart from
the time in which it waits, and the model says both:

    busy(b, p) = (((c b + d) / (g_p / G))^k + ((w b + e) / (m_p / M))^k)^(1/k)
    t(b, p)    = (t0^4 + busy^4)^(1/4) + s b

with the host's time ``s`` per sample (loading, copying) that nothing overlaps. Both are fitted
together, each weighted by how well the points of a first fit follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from .boards import Board, load_board
from .errors import Infeasible, InputError
from .measurements import Measurement, MeasurementTable

__all__ = ["LatencyModel", "fit_latency", "leave_one_profile_out", "memory_line"]

_NAMES = ("t0", "c", "d", "w", "e")


@dataclass(frozen=True)
class LatencyModel:
    """A fitted model of one workload.

    Parameters
    ----------
    t0, c, d, w, e : float
        Milliseconds; see the module's formula.
    k : float
        Sharpness of the maximum, at least 1.
    board : Board
        Geometry that the slices are taken from.
    s : float or None
        Milliseconds per sample; None where the model was fitted without activities.
    """

    t0: float
    c: float
    d: float
    w: float
    e: float
    k: float
    board: Board
    s: float | None = None

    def __repr__(self) -> str:
        names = (*_NAMES, "k") if self.s is None else (*_NAMES, "k", "s")
        terms = ", ".join(f"{n}={getattr(self, n):.4g}" for n in names)
        return f"LatencyModel({terms})"

    def latency_ms(self, profile: str, batch: float) -> float:
        """Predict the time of a batch in milliseconds."""
        row = self.board.profile(profile)
        g = row.compute_slices / self.board.compute_slices
        m = row.size / self.board.memory_slices
        values = [*(getattr(self, n) for n in _NAMES), self.k - 1]
        points = np.array([[float(batch)], [g], [m]])
        if self.s is None:
            return float(np.exp(_log_time(_logs(values), *points)[0]))
        return float(np.exp(_log_times(_logs([*values, self.s]), *points)[0][0]))

    def predict(self, workload: str, mode: str, profile: str, batches: Sequence[int]) -> list[
        Measurement
    ]:  # fmt: skip
        """Predicted points, in the form of measured ones."""
        return [
            Measurement(workload, mode, profile, b, self.latency_ms(profile, b)) for b in batches
        ]


def _log_time(
    theta: NDArray[np.float64],
    batch: NDArray[np.float64],
    g: NDArray[np.float64],
    m: NDArray[np.float64],
) -> NDArray[np.float64]:
    t0, c, d, w, e, extra = np.exp(np.clip(theta, -40.0, 20.0))
    k = 1.0 + extra
    # In logarithms, so that large k does not overflow.
    terms = np.stack(
        [
            np.full_like(batch, math.log(t0)),
            np.log((c * batch + d) / g),
            np.log((w * batch + e) / m),
        ]
    )
    top = terms.max(axis=0)
    total: NDArray[np.float64] = top + np.log(np.exp(k * (terms - top)).sum(axis=0)) / k
    return total


def _logs(values: Sequence[float]) -> NDArray[np.float64]:
    """Parameters as the fits see them: logarithms, so that all stay positive."""
    return np.asarray(np.log(np.maximum(values, 1e-12)))


def _smooth_max(
    one: NDArray[np.float64], two: NDArray[np.float64], k: float
) -> NDArray[np.float64]:
    high, low = np.maximum(one, two), np.minimum(one, two)
    return np.asarray(high * (1 + (low / high) ** k) ** (1 / k))


def _log_times(
    theta: NDArray[np.float64],
    batch: NDArray[np.float64],
    g: NDArray[np.float64],
    m: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the time of a batch, and of the time in which the GPU works on it."""
    t0, c, d, w, e, extra, s = np.exp(np.clip(theta, -30.0, 12.0))
    busy = _smooth_max((c * batch + d) / g, (w * batch + e) / m, 1.0 + min(extra, 15.0))
    time = _smooth_max(np.full_like(batch, t0), busy, 4.0) + s * batch
    return np.log(time), np.log(busy)


def fit_latency(rows: Sequence[Measurement], board: Board | str = "a100-80gb") -> LatencyModel:
    """Fit the model to measured points by least squares on log time, from several starts.

    Activities are used where every point has one.

    Parameters
    ----------
    rows : sequence of Measurement
        Points of one workload; those that ran out of memory are left out.
    board : Board or str
        Geometry.

    Raises
    ------
    Infeasible
        Fewer than six points.
    """
    target = load_board(board) if isinstance(board, str) else board
    alive = [r for r in rows if r.status == "ok"]
    if len({(r.workload, r.mode) for r in alive}) > 1:
        raise InputError("rows: points of several workloads; fit one workload at a time")
    if len(alive) < 6:
        raise Infeasible(f"{len(alive)} points do not determine the six parameters; measure more")
    batch = np.array([float(r.batch) for r in alive])
    time = np.log([r.latency_ms for r in alive])
    profiles = [target.profile(r.profile) for r in alive]
    g = np.array([p.compute_slices for p in profiles]) / target.compute_slices
    m = np.array([p.size for p in profiles]) / target.memory_slices
    slope = float(np.exp(np.min(time - np.log(batch) + np.log(g))))
    floor = float(np.exp(time.min()))
    starts = [
        [floor * 0.8, slope * share, floor * 0.05, slope * (1 - share), floor * 0.05, sharpness]
        for share in (0.9, 0.5, 0.1) for sharpness in (1.0, 4.0)
    ]  # fmt: skip
    activity = np.array([r.activity for r in alive])
    if np.isnan(activity).any() or len(alive) < 8:
        theta = _best(lambda x: _log_time(x, batch, g, m) - time, starts)
        t0, c, d, w, e, extra = (float(v) for v in np.exp(np.clip(theta, -40.0, 20.0)))
        return LatencyModel(t0, c, d, w, e, 1.0 + extra, target)
    worked = time + np.log(np.maximum(activity, 1e-3))
    starts = [[*start, slope * 0.05] for start in starts]

    def residuals(theta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        total, busy = _log_times(theta, batch, g, m)
        return total - time, busy - worked

    weight = 1.0
    for _ in range(3):

        def weighted(x: NDArray[np.float64], share: float = weight) -> NDArray[np.float64]:
            total, busy = residuals(x)
            return np.concatenate([total, share * busy])

        theta = _best(weighted, starts)
        spread = [float(np.sqrt(np.mean(r**2))) for r in residuals(theta)]
        weight = float(np.clip(spread[0] / max(spread[1], 1e-9), 0.05, 1.0))
    t0, c, d, w, e, extra, s = (float(v) for v in np.exp(np.clip(theta, -30.0, 12.0)))
    return LatencyModel(t0, c, d, w, e, 1.0 + min(extra, 15.0), target, s)


def _best(
    residual: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    starts: Sequence[Sequence[float]],
) -> NDArray[np.float64]:
    """Parameters of the best of several least-squares fits."""
    found = [least_squares(residual, _logs(start), method="trf", max_nfev=400) for start in starts]
    return np.asarray(min(found, key=lambda f: f.cost).x)


def leave_one_profile_out(
    table: MeasurementTable, workload: str, mode: str, board: Board | str = "a100-80gb"
) -> dict[str, float]:
    """Mean absolute percentage error of each profile when predicted from the others.

    Parameters
    ----------
    table : MeasurementTable
        Measured points.
    workload, mode : str
        Which workload.
    board : Board or str
        Geometry.

    Returns
    -------
    dict of str to float
        Error in percent by profile left out.
    """
    rows = [r for r in table.select(workload, mode) if r.status == "ok"]
    errors = {}
    for profile in sorted({r.profile for r in rows}):
        rest = [r for r in rows if r.profile != profile]
        if len(rest) < 6:
            continue
        model = fit_latency(rest, board)
        errors[profile] = 100 * float(
            np.mean(
                [abs(model.latency_ms(r.profile, r.batch) / r.latency_ms - 1)
                 for r in rows if r.profile == profile]
            )
        )  # fmt: skip
    return errors


def memory_line(rows: Sequence[Measurement]) -> tuple[float, float]:
    """Footprint in MiB as a line over the batch size: (constant part, part per sample).

    Examples
    --------
    >>> rows = [Measurement("m", "infer", "p", b, 1.0, 1000.0 + 50 * b) for b in (1, 2, 8)]
    >>> tuple(round(v) for v in memory_line(rows))
    (1000, 50)
    """
    alive = [r for r in rows if r.status == "ok" and r.memory_mib == r.memory_mib]
    if len({r.batch for r in alive}) < 2:
        raise Infeasible("memory: two batch sizes with a measured footprint are needed")
    slope, constant = np.polyfit([r.batch for r in alive], [r.memory_mib for r in alive], 1)
    return float(constant), float(slope)
