"""AdamW for ordinary parameters, with the same kernel that the chunks use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from elixir.optim.kernels import adamw_, adamw_reference_


class AdamW(torch.optim.Optimizer):
    """AdamW in one fused pass; a drop-in for ``torch.optim.AdamW`` (decoupled decay, no amsgrad).

    Parameters
    ----------
    params
        Parameters or groups; bfloat16 and float16 parameters get an fp32 master copy.
    lr, betas, eps, weight_decay, maximize
        As in torch.

    Raises
    ------
    ValueError
        For a value outside of its range.

    Examples
    --------
    >>> layer = torch.nn.Linear(4, 4)
    >>> optimizer = AdamW(layer.parameters(), lr=1e-3)
    >>> layer(torch.ones(2, 4)).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ) -> None:
        check_hyperparameters(lr, betas, eps, weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options: dict[str, Any] = {k: group[k] for k in ("lr", "betas", "eps", "weight_decay")}
            options["scale"] = -1.0 if group["maximize"] else 1.0
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
                    if p.dtype != torch.float32:
                        state["master"] = p.detach().float()
                state["step"] += 1
                options["step"] = int(state["step"])
                moments = state["exp_avg"], state["exp_avg_sq"]
                master = state.get("master", p)
                if p.device.type == "cpu" and dense(p) == p.stride():
                    gradient = p.grad
                    if gradient.stride() != p.stride():
                        gradient = torch.empty_strided(p.shape, p.stride(), dtype=p.grad.dtype)
                        gradient.copy_(p.grad)
                    line = (p.numel(),), (1,)
                    flat = [t.as_strided(*line) for t in (master, *moments, gradient)]
                    low = None if master is p else p.as_strided(*line)
                    adamw_(flat[0], flat[1], flat[2], flat[3], low, **options)
                else:
                    adamw_reference_(master, *moments, p.grad, **options)
                    if master is not p:
                        p.copy_(master)
        return loss


def check_hyperparameters(
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    """Raise ValueError for a value outside of its range."""
    if lr < 0:
        raise ValueError(f"lr={lr}: must not be negative")
    if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
        raise ValueError(f"betas={betas}: both must be in [0, 1)")
    if eps < 0 or weight_decay < 0:
        raise ValueError(f"eps={eps}, weight_decay={weight_decay}: must not be negative")


def dense(parameter: Tensor) -> tuple[int, ...]:
    """Return strides that keep a dense parameter's memory format; contiguous ones otherwise."""
    strides = parameter.stride()
    order = sorted(range(parameter.dim()), key=lambda i: (-strides[i], i))
    expected = 1
    for i in reversed(order):
        if parameter.size(i) != 1 and strides[i] != expected:
            return torch.empty(parameter.shape, device="meta").stride()
        expected *= parameter.size(i)
    return strides
