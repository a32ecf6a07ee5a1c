"""Gradients that UEs upload, vectorised over UEs that hold different (stale) weights.

Per-FedAvg (Fallah, Mokhtari, Ozdaglar, 2020, arXiv 2002.07948) minimises the mean of
F_i(w) = f_i(w - alpha grad f_i(w)) with the stochastic gradient
g_i(w) = (I - alpha H_i(w; D_h)) grad f_i(w - alpha grad f_i(w; D_in); D_o)
from three independent batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from .errors import InputError, require

ESTIMATORS = ("exact", "fo", "hf")
Batch = tuple[Tensor, Tensor]


class FlatModel:
    """A module as a function of one flat weight vector.

    Parameters
    ----------
    module : nn.Module
        Model without buffers (batch-norm statistics have no meaning when weights are averaged).
    loss : callable, optional
        ``loss(output, target) -> Tensor`` of shape (batch,); cross entropy by default.

    Examples
    --------
    >>> import torch
    >>> model = FlatModel(torch.nn.Linear(3, 2))
    >>> model.size
    8
    """

    def __init__(
        self, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:
            raise InputError(
                f"model has the buffer {buffers[0]!r}: allowed are models without buffers; "
                "use GroupNorm or LayerNorm instead of BatchNorm"
            )
        self.module = module
        self.names = [name for name, _ in module.named_parameters()]
        self.shapes = [p.shape for _, p in module.named_parameters()]
        self.sizes = [p.numel() for _, p in module.named_parameters()]
        self.size = sum(self.sizes)
        self.per_sample = loss or cross_entropy

    def initial(self) -> Float[Tensor, " P"]:
        """Return the current weights of the module as one vector."""
        parts = [p.detach().reshape(-1) for _, p in self.module.named_parameters()]
        return torch.cat(parts).clone()

    def unflatten(self, w: Float[Tensor, " P"]) -> dict[str, Tensor]:
        """Weights by name, as views of the vector."""
        parts = torch.split(w, self.sizes)
        return {n: p.reshape(s) for n, p, s in zip(self.names, parts, self.shapes)}

    def outputs(self, w: Float[Tensor, " P"], x: Tensor) -> Tensor:
        """Model outputs for a batch."""
        result: Tensor = functional_call(self.module, self.unflatten(w), (x,))
        return result

    def loss(self, w: Float[Tensor, " P"], batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        x, y = batch
        return self.per_sample(self.outputs(w, x), y).mean()

    def masked_loss(self, w: Tensor, batch: Batch, mask: Tensor) -> Float[Tensor, ""]:
        """Mean loss over the samples whose mask is 1 (padded batches)."""
        x, y = batch
        return (self.per_sample(self.outputs(w, x), y) * mask).sum() / mask.sum()


def cross_entropy(output: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
    """Cross entropy per sample, written out so that it vectorises over UEs."""
    logp = torch.log_softmax(output, dim=-1)
    return -logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class MetaGradient:
    """Stochastic gradient of the Per-FedAvg objective.

    Attributes
    ----------
    model : FlatModel
        Loss as a function of flat weights.
    alpha : float
        Step of the personal adaptation; 0 gives the ordinary gradient of the outer batch.
    estimator : {"exact", "fo", "hf"}
        ``exact``: Hessian-vector product by forward-over-reverse differentiation. ``fo``: without
        the Hessian (first-order MAML). ``hf``: Hessian-free central difference.
    difference : float
        Half-width of the ``hf`` difference, relative to the norm of the vector.
    """

    model: FlatModel
    alpha: float
    estimator: str = "exact"
    difference: float = 1e-3

    def __post_init__(self) -> None:
        require(self.estimator in ESTIMATORS, "estimator", self.estimator, " | ".join(ESTIMATORS))
        require(self.alpha >= 0, "alpha", self.alpha, "0 or more")

    def single(
        self, w: Float[Tensor, " P"], inner: Batch, outer: Batch, hessian: Batch
    ) -> Float[Tensor, " P"]:
        """Gradient of one UE."""
        f = self.model.loss
        if self.alpha == 0.0:
            plain: Tensor = grad(f)(w, outer)
            return plain
        adapted = w - self.alpha * grad(f)(w, inner)
        v: Tensor = grad(f)(adapted, outer)
        if self.estimator == "fo":
            return v
        if self.estimator == "exact":
            hv: Tensor = jvp(lambda u: grad(f)(u, hessian), (w,), (v,))[1]
            return v - self.alpha * hv
        delta = self.difference / torch.clamp(torch.linalg.vector_norm(v), min=1e-30)
        up: Tensor = grad(f)(w + delta * v, hessian)
        down: Tensor = grad(f)(w - delta * v, hessian)
        return v - self.alpha * (up - down) / (2 * delta)

    def __call__(
        self,
        weights: Float[Tensor, "ues P"],
        inner: Batch,
        outer: Batch,
        hessian: Batch,
        chunk: int = 64,
    ) -> Float[Tensor, "ues P"]:
        """Gradients of several UEs, each at its own weights.

        Parameters
        ----------
        weights : Tensor of shape (n, P)
            Stale weights, one row per UE.
        inner, outer, hessian : pairs of tensors of shape (n, batch, ...)
            Batches D_in, D_o, D_h.
        chunk : int
            UEs per vectorised call (memory); the result does not depend on it.
        """
        return in_chunks(self._stacked, chunk, weights, inner, outer, hessian)

    def _stacked(self, weights: Tensor, inner: Batch, outer: Batch, hessian: Batch) -> Tensor:
        """Differentiate the sum over UEs: only the forward pass is vectorised by `vmap`.

        The loss of a UE depends on its own row alone, so the gradient of the sum holds every UE's
        gradient. This leaves differentiation to the ordinary engine, without one more layer.
        """
        with torch.enable_grad():
            w = weights.detach().requires_grad_(True)
            if self.alpha == 0.0:
                return self._gradients(w, outer)
            moved = w.detach() - self.alpha * self._gradients(w, inner)
            v = self._gradients(moved.requires_grad_(True), outer)
            if self.estimator == "fo":
                return v
            if self.estimator == "exact":
                total = vmap(self.model.loss)(w, hessian).sum()
                (g,) = torch.autograd.grad(total, w, create_graph=True)
                (hv,) = torch.autograd.grad(g, w, v)
                return v - self.alpha * hv
            norm = torch.linalg.vector_norm(v, dim=1, keepdim=True)
            delta = self.difference / torch.clamp(norm, min=1e-30)
            up = self._gradients((w.detach() + delta * v).requires_grad_(True), hessian)
            down = self._gradients((w.detach() - delta * v).requires_grad_(True), hessian)
            return v - self.alpha * (up - down) / (2 * delta)

    def _gradients(self, w: Tensor, batch: Batch) -> Tensor:
        found: Tensor = torch.autograd.grad(vmap(self.model.loss)(w, batch).sum(), w)[0]
        return found


def in_chunks(function: Callable[..., Tensor], chunk: int, *columns: Tensor | Batch) -> Tensor:
    """Apply a vectorised function to blocks of rows and join the results.

    A block of one row is computed as two equal rows: a batch of one takes another route through
    the matrix library and would round differently.
    """
    first = columns[0]
    assert isinstance(first, Tensor)
    n = len(first)
    parts = []
    for start in range(0, n, chunk):
        rows = slice(start, min(start + chunk, n))
        block = [_rows(column, rows) for column in columns]
        if rows.stop - rows.start == 1:
            block = [_twice(column) for column in block]
            parts.append(function(*block)[:1])
        else:
            parts.append(function(*block))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(column: Tensor | Batch, rows: slice) -> Tensor | Batch:
    if isinstance(column, Tensor):
        return column[rows]
    return column[0][rows], column[1][rows]


def _twice(column: Tensor | Batch) -> Tensor | Batch:
    if isinstance(column, Tensor):
        return column.expand(2, *column.shape[1:]).contiguous()
    return _twice(column[0]), _twice(column[1])  # type: ignore[return-value]
