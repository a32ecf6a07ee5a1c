"""Replace the attention of a model by sparse attention, reversibly."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from vitcod.adapters import (
    attention_modules,
    dropout_of,
    finish,
    num_heads,
    project,
    score_bias,
)
from vitcod.autoencoder import AEConfig, AutoEncoder
from vitcod.errors import InputError
from vitcod.ops import sparse_attention
from vitcod.plan import SparsityPlan


def _sparse_forward(
    self: Any, hidden_states: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
) -> Any:
    """Attention of a patched layer."""
    mask = attn_mask if attn_mask is not None else kwargs.get("attention_mask")
    if mask is not None:
        raise InputError("attn_mask is not allowed in a patched model: its masks are fixed")
    q, k, v, scale = project(self, hidden_states)
    codec = getattr(self, "vitcod_autoencoder", None)
    if codec is not None and getattr(self, "_vitcod_folded", None) is None:
        q, k = codec(q, k)
    plan, bias = self._vitcod_plan, score_bias(self, q.device)
    if bias is not None:
        bias = bias[None].to(q.dtype)
    if plan is None:
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    else:
        out = sparse_attention(q, k, v, plan, scale=scale, bias=bias)
    return finish(self, hidden_states, out)


def patch(
    model: nn.Module,
    plan: SparsityPlan | None,
    autoencoder: AEConfig | None = None,
) -> nn.Module:
    """Let the attention layers of a model compute the planned scores only.

    Parameters
    ----------
    model : own, timm or transformers ViT; changed in place
    plan : one layer plan per attention layer; None keeps dense attention (for the auto-encoder)
    autoencoder : compress Q and K over heads

    Returns
    -------
    the model

    Raises
    ------
    InputError
        Plan and model differ in layers or heads, the model is patched already, or its attention
        has dropout.

    Examples
    --------
    >>> import torch, vitcod
    >>> model = vitcod.VisionTransformer(image=8, patch=2, channels=1, dim=32, depth=2, heads=2)
    >>> x = torch.rand(4, 1, 8, 8)
    >>> plan = vitcod.prune(vitcod.collect_attention(model, [x]), sparsity=0.5)
    >>> vitcod.patch(model, plan)(x).shape
    torch.Size([4, 10])
    >>> model = vitcod.unpatch(model)
    """
    modules = attention_modules(model)
    if plan is None and autoencoder is None:
        raise InputError("plan=None is allowed only with an autoencoder")
    if plan is not None and len(plan) != len(modules):
        raise InputError(
            f"plan has {len(plan)} layers and the model {len(modules)}: make a plan of this model"
        )
    for i, (name, module) in enumerate(modules):
        if plan is not None and plan.layer(i).heads != num_heads(module):
            raise InputError(
                f"plan has {plan.layer(i).heads} heads in layer {i} and {name!r}"
                f" {num_heads(module)}: make a plan of this model"
            )
        if hasattr(module, "_vitcod_plan"):
            raise InputError("model is patched already: call vitcod.unpatch(model) first")
        if dropout_of(module):
            raise InputError(f"{name!r} has attention dropout {dropout_of(module)}: set it to 0")
    for i, (_, module) in enumerate(modules):
        layer: Any = module
        layer._vitcod_plan = None if plan is None else plan.layer(i)
        if autoencoder is not None:
            layer.vitcod_autoencoder = _codec(layer, autoencoder, i)
        layer.forward = types.MethodType(_sparse_forward, layer)
    return model


def _codec(layer: Any, config: AEConfig, index: int) -> AutoEncoder:
    heads = num_heads(layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + index)
        codec = AutoEncoder(heads, config.compressed(heads))
    if config.init == "pca":
        assert config.stats is not None
        moments = config.stats.q_moments, config.stats.k_moments
        if len(moments[0]) <= index or moments[0][index].shape != (heads, heads):
            raise InputError(f"stats has no head moments for layer {index}: collect them again")
        codec.lost = (codec.q.initialise(moments[0][index]), codec.k.initialise(moments[1][index]))
    return codec.to(next(layer.parameters()).device)


def unpatch(model: nn.Module) -> nn.Module:
    """Give a patched model its own attention back, including projections that were folded.

    Raises
    ------
    InputError
        The model is not patched.
    """
    patched = [m for _, m in attention_modules(model) if hasattr(m, "_vitcod_plan")]
    if not patched:
        raise InputError("model is not patched: nothing to undo")
    for module in patched:
        layer: Any = module
        folded = getattr(layer, "_vitcod_folded", None)
        if folded is not None:
            layer.qkv = folded.original
            del layer._vitcod_folded
        if hasattr(layer, "vitcod_autoencoder"):
            del layer.vitcod_autoencoder
        del layer._vitcod_plan
        del layer.forward
    return model


def autoencoder_loss(model: nn.Module, per_element: bool = False) -> Tensor:
    """Sum of the layers' reconstruction losses of the last pass in training (section 1.4)."""
    codecs = [m for m in model.modules() if isinstance(m, AutoEncoder)]
    if not codecs:
        return torch.zeros(())
    return torch.stack([c.mean_loss if per_element else c.loss for c in codecs]).sum()
