"""Conditional DETR's decoder; parameter names are those of transformers' implementation."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, cin: int, hidden: int, cout: int, depth: int) -> None:
        super().__init__()
        sizes = [cin, *[hidden] * (depth - 1), cout]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        for layer in self.layers[:-1]:
            x = nn.functional.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def sine_embedding(points: Float[Tensor, "... 2"], width: int) -> Float[Tensor, "... width"]:
    """Return sines and cosines of y, then of x; ``points`` are (x, y) in 0..1.

    Temperature 10000, scale 2 pi (Conditional DETR).
    """
    half = width // 2
    index = torch.arange(half, device=points.device, dtype=torch.float32)
    frequency = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    parts = []
    for coordinate in (points[..., 1], points[..., 0]):
        angle = coordinate[..., None] * (2 * math.pi) / frequency
        parts.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2))
    return torch.cat(parts, -1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return logit(x), with x and 1 - x kept above ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(-2, -3)


class SelfAttention(nn.Module):
    """Self-attention of queries; content and position have projections of their own."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_content_proj = nn.Linear(d_model, d_model)
        self.q_pos_proj = nn.Linear(d_model, d_model)
        self.k_content_proj = nn.Linear(d_model, d_model)
        self.k_pos_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Attend; ``mask`` (Q, Q) is True where attention is allowed."""
        q = self.q_content_proj(x) + self.q_pos_proj(position)
        k = self.k_content_proj(x) + self.k_pos_proj(position)
        q, k, v = (_heads(t, self.heads) for t in (q, k, self.v_proj(x)))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed


class CrossAttention(nn.Module):
    """Cross-attention on [content ; spatial] per head."""

    def __init__(self, d_model: int, heads: int, first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_content_proj = nn.Linear(d_model, d_model)
        self.q_pos_proj = nn.Linear(d_model, d_model) if first else None
        self.k_content_proj = nn.Linear(d_model, d_model)
        self.k_pos_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.q_pos_sine_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)

    def forward(
        self, x: Tensor, query_position: Tensor, sine: Tensor, memory: Tensor,
        memory_position: Tensor, valid: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Attend from queries (B, Q, D) to memory (B, N, D); ``valid`` (B, N)."""
        q, k = self.q_content_proj(x), self.k_content_proj(memory)
        k_position = self.k_pos_proj(memory_position)
        if self.q_pos_proj is not None:
            q, k = q + self.q_pos_proj(query_position), k + k_position
        q = torch.cat((_heads(q, self.heads), _heads(self.q_pos_sine_proj(sine), self.heads)), -1)
        k = torch.cat((_heads(k, self.heads), _heads(k_position, self.heads)), -1)
        v = _heads(self.v_proj(memory), self.heads)
        mask = None if valid is None else valid[:, None, None, :]
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed


class FeedForward(nn.Module):
    """Two linear layers."""

    def __init__(self, d_model: int, ffn: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d_model, ffn), nn.Linear(ffn, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        out: Tensor = self.fc2(nn.functional.relu(self.fc1(x)))
        return out


class DecoderLayer(nn.Module):
    """Post-norm decoder layer."""

    def __init__(self, d_model: int, heads: int, ffn: int, dropout: float, first: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(d_model, heads)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.encoder_attn = CrossAttention(d_model, heads, first)
        self.encoder_attn_layer_norm = nn.LayerNorm(d_model)
        self.mlp = FeedForward(d_model, ffn)
        self.final_layer_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, query_position: Tensor, sine: Tensor, memory: Tensor,
        memory_position: Tensor, valid: Tensor | None, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return the next query states."""
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x, query_position, mask)))
        cross = self.encoder_attn(x, query_position, sine, memory, memory_position, valid)
        x = self.encoder_attn_layer_norm(x + self.dropout(cross))
        out: Tensor = self.final_layer_norm(x + self.dropout(self.mlp(x)))
        return out


class ConditionalDecoder(nn.Module):
    """Decoder of Conditional DETR (Meng et al., ICCV 2021), with box refinement as a switch."""

    def __init__(
        self,
        d_model: int,
        heads: int,
        ffn: int,
        dropout: float,
        layers: int,
        refine: bool,
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.refine = refine
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, heads, ffn, dropout, i == 0) for i in range(layers)
        )
        self.layernorm = nn.LayerNorm(d_model)
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        if learned:
            self.ref_point_head = MLP(d_model, d_model, 2, 2)

    def forward(
        self, content: Tensor, query_position: Tensor, memory: Tensor, memory_position: Tensor,
        valid: Tensor | None, boxes: nn.Module, reference: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Decode all queries in parallel.

        Parameters
        ----------
        content, query_position
            (B, Q, D).
        memory, memory_position
            (B, N, D).
        boxes
            Box head, D to 4.
        reference
            (B, Q, 4) boxes cx, cy, w, h to start from; None takes centres from the positions.

        Returns
        -------
        states
            (layers, B, Q, D), normalised.
        boxes
            (layers, B, Q, 4) in 0..1.
        """
        width = content.shape[-1]
        if reference is None:
            centre = self.ref_point_head(query_position).sigmoid()
            logits = nn.functional.pad(inverse_sigmoid(centre), (0, 2))
        else:
            centre, logits = reference[..., :2], inverse_sigmoid(reference)
        x, states, found = content, [], []
        for i, layer in enumerate(self.layers):
            sine = sine_embedding(centre, width)
            if i:
                sine = sine * self.query_scale(x)
            x = layer(x, query_position, sine, memory, memory_position, valid, mask)
            state = self.layernorm(x)
            box = (boxes(state) + logits).sigmoid()
            states.append(state)
            found.append(box)
            if self.refine:
                centre, logits = box[..., :2].detach(), inverse_sigmoid(box.detach())
        return torch.stack(states), torch.stack(found)
