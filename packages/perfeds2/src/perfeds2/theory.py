"""Convergence bound of semi-synchronous aggregation, term by term.

The paper proves an upper bound on the convergence rate; its theorem was not reachable. The theorem
here is ours (proof in `docs/theory.md`): with every grad F_i L-Lipschitz,
||grad F_i - grad F||^2 <= gamma^2, independent noise of variance sigma^2, staleness at most S, at
least A updates per round and a step beta <= 1 / (L (1 + 2S)),

    mean_k E||grad F(w_k)||^2 <= 2 (F(w_0) - F*) / (beta K) + 2 gamma^2
                                 + (beta L + 2 beta^2 L^2 S^2) sigma^2 / A.

With a bias b of the updates, 2 gamma^2 becomes 3 gamma^2 + 3 b^2 and the factor 2 of the last
bracket becomes 3.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from .engine import Simulation
from .errors import InfeasibleError, require


@dataclass(frozen=True)
class Bound:
    """Right-hand side of the theorem and its terms (squared gradient norms).

    Attributes
    ----------
    optimisation : float
        2 (F(w_0) - F*) / (beta K): falls with the number of rounds.
    heterogeneity : float
        2 gamma^2 (or 3 gamma^2 + 3 b^2): the floor under arbitrary participation.
    noise : float
        Sampling noise, falls with the participants.
    """

    optimisation: float
    heterogeneity: float
    noise: float

    @property
    def total(self) -> float:
        """Sum of the terms."""
        return self.optimisation + self.heterogeneity + self.noise

    @property
    def binding(self) -> str:
        """Name of the largest term."""
        return max(asdict(self), key=lambda name: float(getattr(self, name)))

    def to_json(self) -> dict[str, float | str]:
        """Terms, total and the binding one."""
        return {**asdict(self), "total": self.total, "binding": self.binding}


def largest_step(smoothness: float, staleness: float) -> float:
    """Largest step of the theorem, 1 / (L (1 + 2S)).

    Examples
    --------
    >>> largest_step(2.0, 2)
    0.1
    """
    return 1.0 / (smoothness * (1 + 2 * staleness))


def bound(
    initial_gap: float,
    step: float,
    smoothness: float,
    rounds: int,
    participants: int,
    staleness: int,
    noise_variance: float,
    heterogeneity: float,
    bias: float = 0.0,
) -> Bound:
    """Bound on the mean squared gradient norm over K rounds.

    Parameters
    ----------
    initial_gap : float
        F(w_0) - F*, or an upper estimate (F(w_0) where losses are not negative).
    step : float
        beta.
    smoothness : float
        L, Lipschitz constant of every grad F_i.
    rounds, participants, staleness : int
        K, A and S.
    noise_variance : float
        sigma^2 of one update.
    heterogeneity : float
        gamma^2, largest squared distance of a UE's gradient from the mean.
    bias : float
        b, largest norm of the bias of an update.

    Raises
    ------
    InputError
        For values out of range, a step above 1 / (L (1 + 2S)) among them.

    Examples
    --------
    >>> b = bound(1.0, 0.1, 1.0, 100, 5, 2, noise_variance=1.0, heterogeneity=0.01)
    >>> round(b.optimisation, 6), round(b.heterogeneity, 6), round(b.noise, 6), b.binding
    (0.2, 0.02, 0.036, 'optimisation')
    """
    require(initial_gap >= 0, "initial_gap", initial_gap, "0 or more")
    require(smoothness > 0, "smoothness", smoothness, "positive")
    require(staleness >= 0, "staleness", staleness, "0 or more", "run the clock to measure it")
    require(rounds >= 1, "rounds", rounds, "at least 1")
    require(participants >= 1, "participants", participants, "at least 1")
    for name, value in (
        ("noise_variance", noise_variance),
        ("heterogeneity", heterogeneity),
        ("bias", bias),
    ):
        require(value >= 0, name, value, "0 or more")
    limit = largest_step(smoothness, staleness)
    require(
        0 < step <= limit * (1 + 1e-12),
        "step",
        step,
        f"0 < step <= 1 / (L (1 + 2S)) = {limit:.6g}",
        "the theorem says nothing about larger steps",
    )
    factor = 3.0 if bias else 2.0
    drift = factor * (step * smoothness * staleness) ** 2
    return Bound(
        2 * initial_gap / (step * rounds),
        factor * heterogeneity + (3.0 * bias**2),
        (step * smoothness + drift) * noise_variance / participants,
    )


def rounds_needed(
    epsilon: float,
    initial_gap: float,
    smoothness: float,
    participants: int,
    staleness: float,
    noise_variance: float,
    heterogeneity: float,
) -> tuple[float, float]:
    """Find the rounds after which the bound is below `epsilon`, at the best step, and that step.

    Raises
    ------
    InfeasibleError
        When epsilon is not above the floor 2 gamma^2.

    Examples
    --------
    >>> k, step = rounds_needed(0.5, 1.0, 1.0, 4, 0, noise_variance=0.0, heterogeneity=0.0)
    >>> round(k, 9), step
    (4.0, 1.0)
    """
    room = epsilon - 2 * heterogeneity
    if room <= 0:
        raise InfeasibleError(
            f"epsilon = {epsilon:.6g}: allowed is more than the floor 2 gamma^2 = "
            f"{2 * heterogeneity:.6g}; no number of rounds reaches it under this bound"
        )
    limit = largest_step(smoothness, staleness)

    def needed(beta: Float[np.ndarray, " grid"]) -> Float[np.ndarray, " grid"]:
        noise = (beta * smoothness + 2 * (beta * smoothness * staleness) ** 2) * (
            noise_variance / participants
        )
        left = room - noise
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(left > 0, 2 * initial_gap / (beta * left), np.inf)

    low, high = limit * 1e-9, limit
    for _ in range(6):  # needed() has one minimum in log(beta)
        grid = np.geomspace(low, high, 65)
        grid[-1] = high
        at = int(np.argmin(needed(grid)))
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, 64)]
    beta = np.array([high if needed(np.array([high]))[0] <= needed(np.array([low]))[0] else low])
    return float(needed(beta)[0]), float(beta[0])


@dataclass(frozen=True)
class Constants:
    """Estimated constants of the theorem at some weights; local estimates, not certificates.

    Attributes
    ----------
    smoothness : float
        Largest curvature of any F_i seen (power iteration on Hessian-vector products).
    noise_variance : float
        Mean squared distance of an update from the UE's mean update.
    heterogeneity : float
        Largest squared distance of a UE's gradient from the mean gradient.
    bias : float
        Largest distance of a UE's mean update from its full-batch gradient.
    objective : float
        F(w).
    gradient_norm_sq : float
        ||grad F(w)||^2.
    """

    smoothness: float
    noise_variance: float
    heterogeneity: float
    bias: float
    objective: float
    gradient_norm_sq: float

    def to_json(self) -> dict[str, float]:
        """Values by name."""
        return asdict(self)


class Objective:
    """Full-batch F_i and its gradient for all UEs of a simulation."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.alpha = sim.config.method.alpha if sim.config.method.name == "perfedavg" else 0.0
        self.batch = sim.data.train.padded(np.arange(sim.config.ues))

    def value(self, w: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """F_i(w) = f_i(w - alpha grad f_i(w)) of one UE."""
        f = self.sim.model.masked_loss
        if self.alpha:
            w = w - self.alpha * grad(f)(w, (x, y), mask)
        return f(w, (x, y), mask)

    def values(self, w: Float[Tensor, " P"]) -> Float[Tensor, " ues"]:
        """F_i(w) of all UEs."""
        return vmap(self.value, in_dims=(None, 0, 0, 0))(w, *self.batch)

    def gradients(self, w: Float[Tensor, " P"]) -> Float[Tensor, "ues P"]:
        """Gradients of F_i at w of all UEs."""
        found: Tensor = vmap(grad(self.value), in_dims=(None, 0, 0, 0))(w, *self.batch)
        return found

    def gradient_norm_sq(self, w: Float[Tensor, " P"]) -> float:
        """||grad F(w)||^2."""
        return float((self.gradients(w).mean(0) ** 2).sum())

    def curvature(self, w: Float[Tensor, " P"], iterations: int = 30) -> float:
        """Largest absolute eigenvalue of any UE's Hessian of F_i, by power iteration."""
        g = torch.Generator().manual_seed(0)
        ues = len(self.batch[1])
        v = torch.randn(ues, len(w), generator=g, dtype=w.dtype)

        def product(u: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = jvp(lambda z: grad(self.value)(z, x, y, mask), (w,), (u,))[1]
            return out

        norm = torch.ones(ues, dtype=w.dtype)
        for _ in range(iterations):
            v = v / torch.clamp(torch.linalg.vector_norm(v, dim=1, keepdim=True), min=1e-30)
            v = vmap(product)(v, *self.batch)
            norm = torch.linalg.vector_norm(v, dim=1)
        return float(norm.max())


def estimate_constants(
    sim: Simulation, weights: Float[Tensor, " P"] | None = None, draws: int = 16
) -> Constants:
    """Estimate L, sigma^2, gamma^2 and b of an experiment at some weights.

    Parameters
    ----------
    sim : Simulation
        Experiment.
    weights : Tensor of shape (P,), optional
        Where; the simulation's current weights by default.
    draws : int
        Independent updates per UE for the variance and the bias.
    """
    require(draws >= 2, "draws", draws, "at least 2")
    w = sim.weights if weights is None else weights
    objective = Objective(sim)
    exact = objective.gradients(w)
    mean = exact.mean(0)
    ues = np.arange(sim.config.ues)
    rows = w.expand(len(ues), -1)
    samples = torch.stack(
        [
            # job numbers no training run reaches
            sim.client_updates(ues, np.full(len(ues), (1 << 40) + d), rows, sim.state)[0]
            for d in range(draws)
        ]
    )
    centre = samples.mean(0)
    variance = ((samples - centre) ** 2).sum(-1).sum(0) / (draws - 1)
    # the mean of the draws is itself off by variance / draws
    bias_sq = ((centre - exact) ** 2).sum(-1) - variance / draws
    return Constants(
        smoothness=objective.curvature(w),
        noise_variance=float(variance.max()),
        heterogeneity=float(((exact - mean) ** 2).sum(-1).max()),
        bias=float(torch.clamp(bias_sq, min=0).max().sqrt()),
        objective=float(objective.values(w).mean()),
        gradient_norm_sq=float((mean**2).sum()),
    )
