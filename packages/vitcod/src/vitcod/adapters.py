"""Where the attention of a model is, and how its queries, keys and values are made.

Known are the package's own `Attention`, timm's plain `Attention`, the attention and the subsampling
attention of timm's LeViT (biases, fewer queries than keys), and the `ViTAttention` and
`DeiTAttention` of transformers 5. Rotary embeddings and other variants are refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitcod.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

_FUSED = ("Attention",)
_SEPARATE = ("ViTAttention", "DeiTAttention")


def _is_levit(module: Any) -> bool:
    needed = ("get_attention_biases", "key_dim", "val_dim", "num_heads", "proj")
    linear = getattr(module, "use_conv", None) is False
    return linear and all(hasattr(module, a) for a in needed)


def _known(module: nn.Module) -> bool:
    if _is_levit(module):
        return True
    name = type(module).__name__
    if name in _FUSED:
        return all(hasattr(module, a) for a in ("qkv", "num_heads", "proj"))
    return name in _SEPARATE and hasattr(module, "q_proj")


def attention_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the attention layers that can be patched, in the order of the model.

    Raises
    ------
    InputError
        There are none; the message lists what looks like attention.
    """
    found = [(name, m) for name, m in model.named_modules() if _known(m)]
    if not found:
        seen = {
            type(m).__name__ for m in model.modules() if "attention" in type(m).__name__.lower()
        }
        raise InputError(
            f"model={type(model).__name__} has no attention layer that vitcod knows"
            f" (found {', '.join(sorted(seen)) or 'none'}): timm Attention or LeViT, transformers"
            " ViTAttention or DeiTAttention, or vitcod.VisionTransformer"
        )
    return found


def num_heads(module: Any) -> int:
    """Heads of an attention layer."""
    return int(getattr(module, "num_heads", None) or module.num_attention_heads)


def special_tokens(model: nn.Module) -> int:
    """Tokens before the patches: class, distillation, registers."""
    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is not None:
        return int(prefix)
    if any(_is_levit(module) for module in model.modules()):
        return 0
    config = getattr(model, "config", None)
    return 2 if getattr(config, "model_type", "") == "deit" else 1


def project(
    module: Any, x: Float[Tensor, "batch tokens embed"]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return q, k, v of shape (batch, heads, tokens, channels) and the scale of the scores."""
    batch, tokens, _ = x.shape
    heads = num_heads(module)
    if _is_levit(module):
        parts = [module.key_dim, module.key_dim, module.val_dim]
        if hasattr(module, "qkv"):
            q, k, v = module.qkv(x).view(batch, tokens, heads, -1).split(parts, -1)
        else:  # subsampling: one query for four keys
            k, v = module.kv(x).view(batch, tokens, heads, -1).split(parts[1:], -1)
            q = module.q(x).view(batch, -1, heads, module.key_dim)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return q, k, v, float(module.scale)
    if type(module).__name__ in _SEPARATE:
        shape = (batch, tokens, heads, -1)
        q, k, v = (
            layer(x).view(shape).transpose(1, 2)
            for layer in (module.q_proj, module.k_proj, module.v_proj)
        )
        return q, k, v, float(module.scaling)
    qkv = module.qkv(x)
    folded = getattr(module, "_vitcod_folded", None)
    if folded is not None:
        return (*folded.split(qkv), float(module.scale))
    q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    return q, k, v, float(module.scale)


def score_bias(module: Any, device: torch.device) -> Float[Tensor, "heads queries keys"] | None:
    """Return what the layer adds to its scores, None for nothing (LeViT: per relative place)."""
    if not _is_levit(module):
        return None
    bias: Tensor = module.get_attention_biases(device)
    return bias


def finish(module: Any, x: Tensor, out: Float[Tensor, "batch heads tokens dim"]) -> Any:
    """Join the heads and project, as the layer itself does after its attention."""
    joined = out.transpose(1, 2).flatten(2)
    if type(module).__name__ in _SEPARATE:
        return module.o_proj(joined), None
    if _is_levit(module):
        return module.proj(joined)
    if hasattr(module, "norm"):
        joined = module.norm(joined)
    if getattr(module, "gate", None) is not None:
        joined = joined * module.gate(x).sigmoid()
    joined = module.proj(joined)
    return module.proj_drop(joined) if hasattr(module, "proj_drop") else joined


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Run a model and return its logits, whatever form they come in."""
    result: Any = model(images)
    found: Tensor = result.logits if hasattr(result, "logits") else result
    return found


def dropout_of(module: Any) -> float:
    """Dropout on attention probabilities, which sparse attention does not have."""
    if type(module).__name__ in _SEPARATE:
        return float(module.attention_dropout)
    drop = getattr(module, "attn_drop", None)
    return float(drop.p) if isinstance(drop, torch.nn.Dropout) else 0.0
