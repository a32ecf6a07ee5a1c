"""How the time of a batch depends on the partition: two resources and a fixed part.

    t(b, p) = (t0^k + ((c b + d) / (g_p / G))^k + ((w b + e) / (m_p / M))^k)^(1/k)

``g_p`` and ``m_p`` are the compute and memory slices of partition p, ``G`` and ``M`` those of the
GPU. The first term is what no partition shortens (launches, host), the second what multiprocessors
shorten, the third what memory bandwidth shortens; ``k`` says how sharply the largest term wins.
The form is this package's own choice, not the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """

    t0: float
    c: float
    d: float
    w: float
    e: float
    k: float
    board: Board

    def __repr__(self) -> str:
        terms = ", ".join(f"{n}={getattr(self, n):.4g}" for n in (*_NAMES, "k"))
        return f"LatencyModel({terms})"

    def latency_ms(self, profile: str, batch: float) -> float:
        """Predict the time of a batch in milliseconds."""
        row = self.board.profile(profile)
        g = row.compute_slices / self.board.compute_slices
        m = row.size / self.board.memory_slices
        theta = np.log([max(getattr(self, n), 1e-12) for n in _NAMES] + [self.k - 1 + 1e-12])
        return float(
            np.exp(_log_time(theta, np.array([float(batch)]), np.array([g]), np.array([m]))[0])
        )

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


def fit_latency(rows: Sequence[Measurement], board: Board | str = "a100-80gb") -> LatencyModel:
    """Fit the model to measured points by least squares on log time, from several starts.

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
    best = None
    for share in (0.9, 0.5, 0.1):
        for sharpness in (1.0, 4.0):
            start = np.log(
                [floor * 0.8, slope * share, floor * 0.05, slope * (1 - share), floor * 0.05,
                 sharpness]
            )  # fmt: skip
            found = least_squares(
                lambda theta: _log_time(theta, batch, g, m) - time, start, method="trf",
                loss="linear", max_nfev=400,
            )  # fmt: skip
            if best is None or found.cost < best.cost:
                best = found
    assert best is not None
    values = np.exp(np.clip(best.x, -40.0, 20.0))
    t0, c, d, w, e, extra = (float(v) for v in values)
    return LatencyModel(t0, c, d, w, e, 1.0 + extra, target)


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
