"""Plain models for the demo, the tests and the benchmarks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

GPT2_SHAPES = {
    "400M": (1024, 24, 16),
    "1B": (1536, 32, 24),
    "4B": (3072, 32, 24),
    "10B": (4096, 48, 32),
    "15B": (8192, 18, 64),
    "20B": (8192, 24, 64),
    "25B": (8192, 30, 64),
    "30B": (8192, 36, 64),
}
"""Hidden size, layers, heads of the paper's benchmark (``example/common/models.py``)."""


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """Return attention and feed-forward added to the input."""
        b, t, d = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .view(b, t, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class GPT(nn.Module):
    """A GPT that returns its loss.

    Parameters
    ----------
    vocab, context, dim, layers, heads
        Sizes.
    tied
        Share the token embedding with the output layer.
    """

    def __init__(
        self,
        vocab: int = 256,
        context: int = 64,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        *,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        if tied:
            self.head.weight = self.wte.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(
        self, tokens: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, ""]:
        """Return the mean cross entropy of the next tokens."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        loss: Tensor = F.cross_entropy(
            self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten()
        )
        return loss


class MoE(nn.Module):
    """Top-1 routed experts; an expert without tokens is not called at all.

    Parameters
    ----------
    dim, hidden, experts
        Sizes.
    """

    def __init__(self, dim: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
            for _ in range(experts)
        )

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Return each token's expert output, weighted by its gate, added to the input."""
        flat = x.reshape(-1, x.shape[-1])
        gate = self.router(flat).softmax(-1)
        weight, choice = gate.max(-1)
        out = torch.zeros_like(flat)
        for index in choice.unique().tolist():
            rows = (choice == index).nonzero().squeeze(1)
            out = out.index_add(0, rows, self.experts[index](flat[rows]) * weight[rows, None])
        return x + out.view_as(x)
