"""AdamW as a ``torch.library`` operator, so that compiled graphs and FakeTensor see through it."""

from __future__ import annotations

import torch
from torch import Tensor

from elixir.optim.kernels import adamw_


@torch.library.custom_op("elixir::adamw_", mutates_args=("parameter", "exp_avg", "exp_avg_sq"))
def adamw_op(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    scale: float = 1.0,
) -> None:
    """Update in place; see :func:`elixir.optim.adamw_`. An optimizer step has no gradient."""
    adamw_(
        parameter,
        exp_avg,
        exp_avg_sq,
        gradient,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        scale=scale,
    )


@adamw_op.register_fake
def _(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    scale: float = 1.0,
) -> None:
    return None


@torch.library.custom_op("elixir::square_sum", mutates_args=())
def square_sum_op(gradient: Tensor) -> Tensor:
    """Return the sum of squares of a tensor as a float64 scalar, added in a fixed order."""
    from elixir.optim.kernels import square_sum

    flat = gradient.detach().contiguous().view(-1)
    return torch.tensor(square_sum(flat)[0], dtype=torch.float64)


@square_sum_op.register_fake
def _(gradient: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.float64)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])


def _backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    (gradient,) = ctx.saved_tensors
    result: Tensor = 2 * gradient * grad.to(gradient.dtype)
    return result


square_sum_op.register_autograd(_backward, setup_context=_keep)
