"""What a UE computes: Per-FedAvg and the baselines, vectorised over UEs.

Each method turns received weights into an update g (the server applies w <- w - beta mean g), and
the final weights into one personal model per UE. Methods with personal state (Ditto, APFL, FedRep)
keep one row per UE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from .config import MethodConfig
from .objective import Batch, FlatModel, MetaGradient, in_chunks

BATCHES_PER_STEP = 3


@dataclass
class ClientMethod:
    """Computation of the UEs.

    Attributes
    ----------
    model : FlatModel
        Loss as a function of flat weights.
    config : MethodConfig
        Method and its steps.
    chunk : int
        UEs per vectorised call.
    """

    model: FlatModel
    config: MethodConfig
    chunk: int = 64

    def __post_init__(self) -> None:
        c = self.config
        self.meta = MetaGradient(self.model, c.alpha, c.estimator, c.difference)
        self.plain = MetaGradient(self.model, 0.0)
        names, sizes = self.model.names, self.model.sizes
        last = names[-1].rsplit(".", 1)[0]
        head = [n.rsplit(".", 1)[0] == last or len(names) <= 2 for n in names]
        self.head_mask = torch.cat([torch.full((s,), h) for s, h in zip(sizes, head)])

    @property
    def personal(self) -> bool:
        """Does the method keep state per UE."""
        return self.config.name in ("ditto", "apfl", "fedrep")

    def initial_state(self, w: Float[Tensor, " P"], ues: int) -> Float[Tensor, "ues P"]:
        """Personal rows at the start; no columns for methods without state."""
        return w.expand(ues, -1).clone() if self.personal else w.new_zeros(ues, 0)

    def batches_needed(self) -> int:
        """Batches of each purpose a UE draws for one update."""
        return self.config.local_steps

    def updates(
        self,
        weights: Float[Tensor, "m P"],
        state: Float[Tensor, "m P"],
        inner: Batch,
        outer: Batch,
        hessian: Batch,
    ) -> tuple[Float[Tensor, "m P"], Float[Tensor, "m P"]]:
        """Compute the updates of several UEs and their new personal rows.

        Parameters
        ----------
        weights, state : Tensors of shape (m, P)
            Received weights and personal rows.
        inner, outer, hessian : pairs of tensors of shape (m, local_steps, batch, ...)
            Independent batches.
        """
        if self.config.name in ("perfedavg", "fedavg", "fedprox") and self.config.local_steps == 1:
            one = [(x[:, 0], y[:, 0]) for x, y in (inner, outer, hessian)]
            gradient = self.meta if self.config.name == "perfedavg" else self.plain
            return gradient(weights, one[0], one[1], one[2], self.chunk), state
        function = _UPDATES[self.config.name]
        stacked = vmap(lambda *a: torch.cat(function(self, *a), -1))
        both = in_chunks(stacked, self.chunk, weights, state, inner, outer, hessian)
        size = self.model.size
        return both[:, :size], both[:, size:]

    def personalised(
        self,
        w: Float[Tensor, " P"],
        state: Float[Tensor, "m P"],
        train: tuple[Tensor, Tensor, Tensor],
    ) -> Float[Tensor, "m P"]:
        """Personal weights of some UEs from the global ones, with their (padded) training data."""
        c = self.config
        if c.name == "ditto":
            return state
        rows = w.expand(len(train[1]), -1)
        if c.name == "apfl":
            return c.mix * state + (1 - c.mix) * rows
        if c.name == "fedrep":
            return torch.where(self.head_mask, state, rows)

        def adapt(v: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            start = v
            for _ in range(c.adapt_steps):
                step = grad(self.model.masked_loss)(v, (x, y), mask)
                if c.name == "pfedme":
                    step = step + c.proximal * (v - start)
                v = v - c.alpha * step
            return v

        return vmap(adapt)(rows, *train)


def _at(batch: Batch, t: int) -> Batch:
    return batch[0][t], batch[1][t]


Pair = tuple[Tensor, Tensor]
Update = Callable[..., Pair]


def _perfedavg(m: ClientMethod, w: Tensor, s: Tensor, i: Batch, o: Batch, h: Batch) -> Pair:
    c = m.config
    v = w
    for t in range(c.local_steps):
        v = v - c.local_step * m.meta.single(v, _at(i, t), _at(o, t), _at(h, t))
    return (w - v) / c.local_step, s


def _sgd(m: ClientMethod, w: Tensor, batches: Batch, mu: float = 0.0) -> Tensor:
    """Accumulate the direction of the local steps, with an optional proximal term."""
    c, f = m.config, m.model.loss
    if c.local_steps == 1:
        single: Tensor = grad(f)(w, _at(batches, 0))
        return single
    v = w
    for t in range(c.local_steps):
        v = v - c.local_step * (grad(f)(v, _at(batches, t)) + mu * (v - w))
    return (w - v) / c.local_step


def _fedavg(m: ClientMethod, w: Tensor, s: Tensor, i: Batch, o: Batch, h: Batch) -> Pair:
    return _sgd(m, w, o), s


def _fedprox(m: ClientMethod, w: Tensor, s: Tensor, i: Batch, o: Batch, h: Batch) -> Pair:
    return _sgd(m, w, o, m.config.proximal), s


def _pfedme(m: ClientMethod, w: Tensor, s: Tensor, i: Batch, o: Batch, h: Batch) -> Pair:
    """Moreau envelope: approximately solve the proximal problem, upload lambda (w - theta)."""
    c, f = m.config, m.model.loss
    theta = w
    for t in range(c.local_steps):
        theta = theta - c.alpha * (grad(f)(theta, _at(i, t)) + c.proximal * (theta - w))
        theta = theta - c.alpha * (grad(f)(theta, _at(o, t)) + c.proximal * (theta - w))
    return c.proximal * (w - theta), s


def _ditto(m: ClientMethod, w: Tensor, s: Tensor, i: Batch, o: Batch, h: Batch) -> Pair:
    c, f = m.config, m.model.loss
    g = _sgd(m, w, o)
    for t in range(c.local_steps):
        s = s - c.local_step * (grad(f)(s, _at(i, t)) + c.proximal * (s - w))
    return g, s


def _apfl(m: ClientMethod, w: Tensor, s: Tensor, i: Batch, o: Batch, h: Batch) -> Pair:
    c, f = m.config, m.model.loss
    g = _sgd(m, w, o)
    for t in range(c.local_steps):
        mixed = c.mix * s + (1 - c.mix) * w
        s = s - c.local_step * c.mix * grad(f)(mixed, _at(i, t))
    return g, s


def _fedrep(m: ClientMethod, w: Tensor, s: Tensor, i: Batch, o: Batch, h: Batch) -> Pair:
    """Fit the personal head first, then one gradient of the shared body at that head."""
    c, f = m.config, m.model.loss
    head = m.head_mask
    for t in range(c.local_steps):
        g = grad(f)(torch.where(head, s, w), _at(i, t))
        s = torch.where(head, s - c.local_step * g, s)
    g = grad(f)(torch.where(head, s, w), _at(o, 0))
    return torch.where(head, torch.zeros_like(g), g), s


_UPDATES: dict[str, Update] = {
    "perfedavg": _perfedavg,
    "fedavg": _fedavg,
    "fedprox": _fedprox,
    "pfedme": _pfedme,
    "ditto": _ditto,
    "apfl": _apfl,
    "fedrep": _fedrep,
}
