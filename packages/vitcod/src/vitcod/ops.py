"""Sparse attention as a torch operator: checks, dispatch, autograd, fake tensors.

The operator takes the plan as a number, because operators take tensors and numbers; plans are kept
in a weak table as long as somebody holds them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcod import native
from vitcod.errors import InputError
from vitcod.plan import PLANS, LayerPlan

if TYPE_CHECKING:
    from jaxtyping import Float

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _keep(plan: LayerPlan, device: torch.device) -> Tensor:
    key = ("keep", device)
    if key not in plan._cache:
        plan._cache[key] = torch.from_numpy(plan.keep.copy()).to(device)
    found: Tensor = plan._cache[key]
    return found


def _reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: LayerPlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Masked attention in plain torch: float64, other devices, and no compiled part."""
    scores = (q @ k.transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~_keep(plan, q.device), -math.inf)
    lse = torch.logsumexp(scores, -1)
    base = torch.where(lse == -math.inf, 0, lse)  # rows that the bias masks completely
    return torch.exp(scores - base[..., None]) @ v, lse


def _runs_native(x: Tensor) -> bool:
    return (
        x.device.type == "cpu" and x.dtype != torch.float64 and native.instruction_set() != "torch"
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("vitcod::sparse_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: int, scale: float
) -> tuple[Tensor, Tensor]:
    layer = PLANS[plan]
    kind = _compute_dtype(q)
    q32, k32, v32 = q.to(kind), k.to(kind), v.to(kind)
    b32 = None if bias is None else bias.to(kind)
    if _runs_native(q):
        out, lse = native.forward(layer.native_layout(), q32, k32, v32, b32, scale, True)
        assert lse is not None
    else:
        out, lse = _reference(q32, k32, v32, b32, layer, scale)
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
    return out.to(q.dtype), lse


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: int, scale: float
) -> tuple[Tensor, Tensor]:
    b, h, n, _ = q.shape
    out = q.new_empty((b, n, h, v.shape[-1])).transpose(1, 2)
    return out, q.new_empty((b, h, n), dtype=_compute_dtype(q))


@torch.library.custom_op("vitcod::sparse_attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    plan: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer = PLANS[plan]
    kind = _compute_dtype(q)
    q32, k32, v32, o32, g32 = (x.to(kind) for x in (q, k, v, out, grad_out))
    b32 = None if bias is None else bias.to(kind)
    if _runs_native(q):
        layout = layer.native_layout()
        dq, dk, dv, entries = native.backward(layout, q32, k32, v32, b32, o32, lse, g32, scale)
        if bias is None:
            ds = q.new_empty((0,), dtype=kind)
        else:
            # Entries come in the order of the walk: heads, then ordered rows.
            ds = torch.zeros((q.shape[0], *layer.keep.shape), dtype=kind)
            head, row, key = _walk(layer)
            ds[:, head, row, key] = entries
    else:
        scores = (q32 @ k32.transpose(-1, -2)) * scale
        if b32 is not None:
            scores = scores + b32
        scores = scores.masked_fill(~_keep(layer, q.device), -math.inf)
        p = torch.exp(scores - torch.where(lse == -math.inf, 0, lse)[..., None])
        dv = p.transpose(-1, -2) @ g32
        dp = g32 @ v32.transpose(-1, -2)
        ds = p * (dp - (g32 * o32).sum(-1, keepdim=True))
        dq, dk = (ds @ k32) * scale, (ds.transpose(-1, -2) @ q32) * scale
        if bias is None:
            ds = q.new_empty((0,), dtype=kind)
    return (
        dq.to(q.dtype).contiguous(),
        dk.to(q.dtype).contiguous(),
        dv.to(q.dtype).contiguous(),
        ds,
    )


def _walk(plan: LayerPlan) -> tuple[Tensor, Tensor, Tensor]:
    """Head, row and key of each entry in the order in which the kernels store them."""
    if "walk" not in plan._cache:
        heads = torch.arange(plan.heads)[:, None].expand(-1, plan.queries)
        rows = torch.from_numpy(plan.order.astype("int64"))
        ordered = _keep(plan, torch.device("cpu"))[heads, rows]
        head, at, key = ordered.nonzero(as_tuple=True)
        plan._cache["walk"] = head, rows[head, at], key
    found: tuple[Tensor, Tensor, Tensor] = plan._cache["walk"]
    return found


@_attention_backward.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    plan: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (0,) if bias is None else (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    ds = q.new_empty(shape, dtype=_compute_dtype(q))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), ds


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, plan, scale = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, bias, out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.plan, ctx.scale = plan, scale
    ctx.keep_alive = PLANS.get(plan)


def _backward(
    ctx: Any, grad_out: Tensor, _grad_lse: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None, None]:
    q, k, v, bias, out, lse = ctx.saved_tensors
    dq, dk, dv, ds = _attention_backward(grad_out, q, k, v, bias, out, lse, ctx.plan, ctx.scale)
    dbias = None
    if bias is not None and ctx.needs_input_grad[3]:
        dbias = ds.sum_to_size(bias.shape).to(bias.dtype)
    return dq, dk, dv, dbias, None, None


_attention.register_autograd(_backward, setup_context=_setup)


def _check(q: Tensor, k: Tensor, v: Tensor, plan: LayerPlan, bias: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise InputError(
                f"{name} has shape {tuple(x.shape)}: (batch, heads, tokens, channels) is needed"
            )
        if x.dtype not in _DTYPES or x.dtype != q.dtype or x.device != q.device:
            raise InputError(
                f"{name} is {x.dtype} on {x.device}: q, k and v must agree and be float32,"
                " float64, float16 or bfloat16"
            )
    heads, queries, keys = plan.shape
    if q.shape[1] != heads or k.shape[1] != heads or v.shape[1] != heads:
        raise InputError(
            f"q has {q.shape[1]}, k {k.shape[1]} and v {v.shape[1]} heads, the plan {heads}:"
            " use the plan of this layer"
        )
    if q.shape[2] != queries or k.shape[2] != keys or v.shape[2] != keys:
        raise InputError(
            f"plan made for {queries} queries and {keys} keys, got {q.shape[2]} and"
            f" {k.shape[2]} (v {v.shape[2]}): use plan.resize(rows, columns)"
        )
    if k.shape[0] != q.shape[0] or v.shape[0] != q.shape[0]:
        raise InputError(
            f"batches differ: q {q.shape[0]}, k {k.shape[0]}, v {v.shape[0]}: they must agree"
        )
    if q.shape[3] != k.shape[3]:
        raise InputError(f"q has {q.shape[3]} channels and k {k.shape[3]}: they must agree")
    for name, size in (("q", q.shape[3]), ("v", v.shape[3])):
        if not 1 <= size <= native.MAX_HEAD_DIM:
            raise InputError(
                f"{name} has head dimension {size}: 1 to {native.MAX_HEAD_DIM} is supported"
            )
    if bias is not None:
        full = (q.shape[0], heads, queries, keys)
        ok = bias.dim() == 4 and all(s in (1, n) for s, n in zip(bias.shape, full))
        if not ok or bias.device != q.device or not bias.is_floating_point():
            raise InputError(
                f"bias is {bias.dtype} of shape {tuple(bias.shape)} on {bias.device}: floating"
                f" point, broadcastable to {full}, on {q.device}"
            )


def sparse_attention(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    plan: LayerPlan,
    scale: float | None = None,
    bias: Float[Tensor, "#batch #heads #queries #keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Attention over the kept keys alone: ``softmax(scale q k^T + bias, kept keys) v``.

    Only kept scores are computed on the CPU (csrc/attention_rows.hpp); the paper's SDDMM and SpMM
    (section IV) in one pass. float64 and devices without a kernel run masked torch; half precision
    computes in float32. Views of a fused qkv projection are read in place.

    Parameters
    ----------
    q, k, v : float, (batch, heads, queries or keys, channels); any strides
    plan : which keys each query keeps
    scale : factor of the scores; default 1 / sqrt(dim)
    bias : added to the scores before the softmax, broadcastable; differentiable

    Returns
    -------
    float, (batch, heads, queries, value channels); in memory the heads of a token are neighbours,
    so ``out.transpose(1, 2).flatten(2)`` copies nothing

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit each other or the plan.

    Examples
    --------
    >>> import numpy as np, torch, vitcod
    >>> plan = vitcod.LayerPlan.from_mask(np.eye(5, dtype=bool))
    >>> x = torch.randn(2, 1, 5, 8)
    >>> bool((vitcod.sparse_attention(x, x, x, plan) == x).all())  # one key: its value exactly
    True
    """
    _check(q, k, v, plan, bias)
    if scale is None:
        scale = q.shape[3] ** -0.5
    if plan.is_dense and bias is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    needs_grad = torch.is_grad_enabled() and (
        q.requires_grad
        or k.requires_grad
        or v.requires_grad
        or (bias is not None and bias.requires_grad)
    )
    plain = q.dtype is torch.float32 and type(q) is Tensor and type(k) is Tensor
    if plain and not needs_grad and not torch.compiler.is_compiling() and _runs_native(q):
        b32 = None if bias is None else bias.float()
        return native.forward(plan.native_layout(), q, k, v, b32, scale, False)[0]
    if q.device.type == "cuda" and not needs_grad and bias is None:
        from vitcod.cuda_ops import cuda_attention, cuda_available

        if cuda_available(q, v):
            return cuda_attention(q, k, v, plan, scale)
    out: Tensor = _attention(q, k, v, bias, plan.number, scale)[0]
    return out
