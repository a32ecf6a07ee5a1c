"""Quadratic UEs on which every constant of the bound is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .clock import TimingLog


@dataclass(frozen=True)
class QuadraticProblem:
    """f_i(w) = (w - c_i)' diag(h) (w - c_i) / 2 with a common curvature h.

    The Per-FedAvg objective is again quadratic: its curvature is (1 - alpha h)^2 h.

    Attributes
    ----------
    curvature : float array of shape (cases, d)
        h > 0.
    centres : float array of shape (cases, ues, d)
        c_i.
    alpha : float array of shape (cases,)
        Step of the adaptation.
    sigma : float array of shape (cases,)
        Standard deviation of the noise of an update (norm over all d coordinates).
    """

    curvature: Float[np.ndarray, "cases d"]
    centres: Float[np.ndarray, "cases ues d"]
    alpha: Float[np.ndarray, " cases"]
    sigma: Float[np.ndarray, " cases"]

    @classmethod
    def random(cls, cases: int, ues: int, d: int, g: np.random.Generator) -> QuadraticProblem:
        """Random curvatures in [0.05, 2], alpha in [0, 1/L], centres and noise levels."""
        h = g.uniform(0.05, 2.0, (cases, d))
        spread = g.uniform(0.0, 1.0, (cases, 1, 1))
        return cls(
            h,
            spread * g.normal(size=(cases, ues, d)),
            g.uniform(0, 1, cases) / h.max(1),
            g.uniform(0, 1, cases),
        )

    @property
    def meta_curvature(self) -> Float[np.ndarray, "cases d"]:
        """Curvature of every F_i."""
        return np.asarray((1 - self.alpha[:, None] * self.curvature) ** 2 * self.curvature)

    @property
    def smoothness(self) -> Float[np.ndarray, " cases"]:
        """L."""
        return np.asarray(self.meta_curvature.max(1))

    @property
    def heterogeneity(self) -> Float[np.ndarray, " cases"]:
        """gamma^2, exact: grad F_i - grad F does not depend on w."""
        away = self.centres - self.centres.mean(1, keepdims=True)
        return np.asarray(((self.meta_curvature[:, None] * away) ** 2).sum(-1).max(1))

    def gradient(self, w: Float[np.ndarray, "cases d"]) -> Float[np.ndarray, "cases d"]:
        """Gradient of F."""
        return np.asarray(self.meta_curvature * (w - self.centres.mean(1)))

    def gap(self, w: Float[np.ndarray, "cases d"]) -> Float[np.ndarray, " cases"]:
        """F(w) - F*."""
        return np.asarray(0.5 * (self.meta_curvature * (w - self.centres.mean(1)) ** 2).sum(1))

    def descend(
        self,
        log: TimingLog,
        start: Float[np.ndarray, "cases d"],
        step: Float[np.ndarray, " cases"],
        g: np.random.Generator,
    ) -> Float[np.ndarray, "rounds cases"]:
        """Squared gradient norms ||grad F(w_k)||^2 along a run with the log's stale versions."""
        rounds, d = len(log.counts), start.shape[1]
        w = np.empty((rounds + 1, *start.shape))
        w[0] = start
        norms = np.empty((rounds, len(start)))
        cut = np.concatenate([[0], np.cumsum(log.counts)])
        scale = (self.sigma / np.sqrt(d))[:, None]
        for k in range(rounds):
            norms[k] = (self.gradient(w[k]) ** 2).sum(1)
            rows = slice(cut[k], cut[k + 1])
            ues: Int[np.ndarray, " A"] = log.ues[rows]
            stale = w[log.versions[rows]]
            pull = self.meta_curvature * (stale - self.centres[:, ues].swapaxes(0, 1))
            noise = scale * g.normal(size=start.shape) / np.sqrt(len(ues))
            w[k + 1] = w[k] - step[:, None] * (pull.mean(0) + noise)
        return norms
