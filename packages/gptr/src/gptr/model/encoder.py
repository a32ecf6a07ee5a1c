"""Encoder layers with gestalt laws.

Law-bias attention stores no bias: -w |x_i - x_j|^2 differs from 2 w x_i.x_j - w |x_j|^2 only by a
term that is constant along a row, which the softmax removes. So similarity and proximity become
a few more channels of queries and keys, and any fused attention kernel runs them in O(N) memory.
The mask of padding is one more channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gptr.gestalt import laws as law
from gptr.gestalt.coarsen import group_tokens
from gptr.gestalt.descriptors import Descriptors

COLOURS = 5
HIDDEN = -1e4
"""Logit of padding: exp underflows to exactly zero in float32."""


@dataclass
class Tokens:
    """Tokens of all levels, one after another.

    Attributes
    ----------
    places
        (B, N, 2) centres in cells of the finest level, about the image's middle.
    levels
        Descriptors per level.
    valid
        (B, N).
    """

    places: Tensor
    levels: list[Descriptors]
    valid: Tensor

    @property
    def colour(self) -> Tensor:
        """(B, N, 9) colour moments."""
        return torch.cat([level.colour for level in self.levels], 1)

    def split(self, x: Tensor) -> list[Tensor]:
        """Cut (B, N, D) into levels."""
        return list(x.split([level.grid[0] * level.grid[1] for level in self.levels], 1))


def _inverse_softplus(x: float) -> float:
    return math.log(math.expm1(x))


class ColourProjection(nn.Module):
    """Five colour channels, at first the mean R, G, B, the mean deviation and the mean skew."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.zeros(COLOURS, 9)
        start[0, 0] = start[1, 1] = start[2, 2] = 1.0
        start[3, 3:6] = start[4, 6:9] = 1 / 3
        self.weight = nn.Parameter(start)

    def forward(self, colour: Float[Tensor, "B N 9"]) -> Float[Tensor, "B N 5"]:
        """Project."""
        return colour @ self.weight.T


class LawAttention(nn.Module):
    """Multi-head attention, with law bias in mode ``bias``."""

    def __init__(self, d_model: int, heads: int, laws: tuple[str, ...], bias: bool) -> None:
        super().__init__()
        self.heads, self.bias = heads, bias
        self.laws = laws if bias else ()
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        start = torch.tensor([_inverse_softplus(max(w, 0.02)) for w in torch.linspace(0, 2, heads)])
        if "similarity" in self.laws:
            self.colours = ColourProjection()
            self.similarity = nn.Parameter(start.clone())
        if "proximity" in self.laws:
            self.proximity = nn.Parameter(start.clone())

    def law_channels(self, tokens: Tokens) -> Tensor | None:
        """Return (B, H, N, F) coordinates whose squared distance is the negated bias."""
        parts = []
        if "similarity" in self.laws:
            scale = (8 * nn.functional.softplus(self.similarity)).sqrt()  # 1 / (2 * 0.25^2) = 8
            parts.append(self.colours(tokens.colour)[:, None] * scale[:, None, None])
        if "proximity" in self.laws:
            scale = (nn.functional.softplus(self.proximity) / 8).sqrt()
            parts.append(tokens.places[:, None] * scale[:, None, None])
        return torch.cat(parts, -1) if parts else None

    def bias_matrix(self, tokens: Tokens) -> Float[Tensor, "B H N N"]:
        """Return the bias as a dense matrix (for explanations and tests)."""
        channels = self.law_channels(tokens)
        if channels is None:
            raise ValueError("this attention has no law in its logits")
        return -(channels[..., :, None, :] - channels[..., None, :, :]).square().sum(-1)

    def forward(self, q: Tensor, v: Tensor, tokens: Tokens) -> Tensor:
        """Attend: queries and keys from ``q`` (with position), values from ``v``, (B, N, D)."""
        B, N, D = q.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        queries, keys = nn.functional.linear(q, weight[: 2 * D], bias[: 2 * D]).chunk(2, -1)
        values = nn.functional.linear(v, weight[2 * D :], bias[2 * D :])
        width = D // self.heads
        queries, keys, values = (
            t.view(B, N, self.heads, width).transpose(1, 2) for t in (queries, keys, values)
        )
        queries = queries / math.sqrt(width)
        channels = self.law_channels(tokens) if self.laws else None
        padded = not bool(tokens.valid.all())
        if channels is None and not padded:
            out = nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        else:
            extra = 0 if channels is None else channels.shape[-1]
            last = (~tokens.valid).to(q) * HIDDEN
            last = last[:, None].expand(B, self.heads, N)
            q_parts, k_parts = [queries], [keys]
            if channels is not None:
                q_parts.append(2 * channels)
                k_parts.append(channels)
                last = last - channels.square().sum(-1)
            q_parts.append(queries.new_ones(B, self.heads, N, 1))
            k_parts.append(last[..., None])
            room = -(width + extra + 1) % 8
            if room:
                zero = queries.new_zeros(B, self.heads, N, room)
                q_parts.append(zero)
                k_parts.append(zero)
            wide = nn.functional.pad(values, (0, extra + 1 + room))
            out = nn.functional.scaled_dot_product_attention(
                torch.cat(q_parts, -1), torch.cat(k_parts, -1), wide, scale=1.0
            )[..., :width]
        mixed: Tensor = self.out(out.transpose(1, 2).reshape(B, N, D))
        return mixed


class LawMessages(nn.Module):
    """Gated messages sum_law g_law A_law X V_law (section 7 of the design; ours, not the paper's).

    Parameters
    ----------
    width
        Channels a law carries.
    groups
        Groups per law whose tokens are injected too; 0 for none.
    """

    def __init__(
        self, d_model: int, laws: tuple[str, ...], width: int = 32, groups: int = 0, hops: int = 4
    ) -> None:
        super().__init__()
        self.laws, self.width, self.groups, self.hops = laws, width, groups, hops
        self.value = nn.Linear(d_model, width * len(laws))
        self.out = nn.ModuleDict({name: nn.Linear(width, d_model) for name in laws})
        self.gate = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(_inverse_softplus(0.1))) for name in laws}
        )
        if "similarity" in laws:
            self.colours = ColourProjection()
            self.log_temperature = nn.Parameter(torch.tensor(math.log(0.15)))
        if "proximity" in laws:
            self.log_sigma = nn.Parameter(torch.tensor(math.log(2.0)))
        if "smoothness" in laws:
            self.log_spread = nn.Parameter(torch.tensor(math.log(0.5)))
            self.logit_decay = nn.Parameter(torch.tensor(0.0))
        if groups:
            self.group_query = nn.Linear(d_model, width)
            self.group_embed = nn.Linear(9, width)

    def _product(self, name: str, values: Tensor, level: Descriptors) -> Tensor:
        if name == "proximity":
            return law.proximity_product(values, level.valid, level.grid, self.log_sigma.exp())
        if name == "smoothness":
            right, down = law.continuation(level, self.log_spread.exp())
            return law.smoothness_product(
                values, level.valid, right, down, self.logit_decay.sigmoid(), self.hops
            )
        channels = self.colours(level.colour) / (self.log_temperature.exp() * math.sqrt(2))
        last = (~level.valid).to(values) * HIDDEN - channels.square().sum(-1)
        room = self.width - COLOURS - 1
        one = torch.ones_like(last)[..., None]
        zero = values.new_zeros(*values.shape[:2], room)
        q = torch.cat((2 * channels, one, zero), -1)[:, None]
        k = torch.cat((channels, last[..., None], zero), -1)[:, None]
        out = nn.functional.scaled_dot_product_attention(q, k, values[:, None], scale=1.0)[:, 0]
        return out * level.valid[..., None]

    def logits(self, name: str, level: Descriptors) -> Tensor:
        """Return the law's logits (B, N, N) with this layer's parameters."""
        if name == "similarity":
            return law.similarity_logits(self.colours(level.colour), self.log_temperature.exp())
        if name == "proximity":
            near = law.proximity_logits(level.places, self.log_sigma.exp())
            return near.expand(len(level.colour), -1, -1)
        right, down = law.continuation(level, self.log_spread.exp())
        total = law.smoothness_weights(
            right, down, self.logit_decay.detach().sigmoid().item(), self.hops
        )
        return torch.log(law.FLOOR + total)

    def tokens(self, name: str, values: Tensor, level: Descriptors) -> Tensor:
        """Return group tokens (B, K, width) of a law: what a group adds to the image's mean."""
        valid = level.valid
        place = level.places.expand(len(values), -1, -1) / 16
        about = {
            "similarity": level.colour,
            "proximity": torch.cat((place, place.new_zeros(*place.shape[:2], 7)), -1),
            "smoothness": torch.cat(
                (
                    level.tensor,
                    level.density[..., None],
                    place,
                    place.new_zeros(*place.shape[:2], 3),
                ),
                -1,
            ),
        }[name]
        field = values + self.group_embed(4 * about)
        weight = valid[..., None].to(field)
        mean = (field * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        pooled, _ = group_tokens(
            (field - mean) * weight, self.logits(name, level), valid, self.groups
        )
        return nn.functional.normalize(pooled, dim=-1)

    def forward(self, x: Tensor, tokens: Tokens, update: Tensor) -> Tensor:
        """Return ``update`` plus the sum of the messages, (B, N, D)."""
        messages = []
        queries = self.group_query(x) if self.groups else x
        for name, values in zip(self.laws, self.value(x).split(self.width, -1), strict=True):
            parts = []
            for level, v, q in zip(
                tokens.levels, tokens.split(values), tokens.split(queries), strict=True
            ):
                message = self._product(name, v, level)
                # groups need the law's matrix: they live on the coarsest level alone
                if self.groups and level is tokens.levels[-1]:
                    T = self.tokens(name, v, level)
                    message = message + torch.softmax(q @ T.transpose(1, 2), -1) @ T
                parts.append(message)
            messages.append(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        # the gates scale the small weights, so that one product sums all laws
        gates = [nn.functional.softplus(self.gate[name]) for name in self.laws]
        outs = [cast(nn.Linear, self.out[name]) for name in self.laws]
        weight = torch.cat([g * o.weight for g, o in zip(gates, outs, strict=True)], 1)
        bias = torch.stack([g * o.bias for g, o in zip(gates, outs, strict=True)]).sum(0)
        joined = torch.cat(messages, -1) if len(messages) > 1 else messages[0]
        total = torch.addmm((update + bias).flatten(0, 1), joined.flatten(0, 1), weight.T)
        return total.view_as(update)


class EncoderLayer(nn.Module):
    """Pre-norm encoder layer; with ``mode="none"`` a plain one."""

    def __init__(
        self, d_model: int, heads: int, ffn: int, dropout: float, mode: str,
        laws: tuple[str, ...], groups: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = LawAttention(d_model, heads, laws, mode == "bias")
        told: tuple[str, ...] = ()
        if mode == "gptr":
            told = laws
        elif mode == "bias":
            told = tuple(name for name in laws if name == "smoothness")
        self.messages = (
            LawMessages(d_model, told, groups=groups if mode == "gptr" else 0) if told else None
        )
        self.linear1, self.linear2 = nn.Linear(d_model, ffn), nn.Linear(ffn, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, tokens: Tokens) -> Tensor:
        """Return the next token states (B, N, D)."""
        h = self.norm1(x)
        update = self.attention(h + position, h, tokens)
        if self.messages is not None:
            update = self.messages(h, tokens, update)
        x = x + self.dropout(update)
        h = self.linear2(self.dropout(nn.functional.relu(self.linear1(self.norm2(x)))))
        out: Tensor = x + self.dropout(h)
        return out
