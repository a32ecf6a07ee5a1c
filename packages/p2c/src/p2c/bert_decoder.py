"""Word-by-word decoding of BERT-like decoders: cached words, one memory for all samples.

The same numbers as the transformers module, from the same weights, without its work per step: keys
and values of the image are computed once per image and shared by its samples, those of the words
are written into buffers, and query, key and value come from one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass
class _Weights:
    """One layer: fused self-attention, cross-attention query, outputs and their norms."""

    qkv: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    outs: list[tuple[Any, Any]]
    inner: Any
    act: Any


def fits(decoder: Any) -> bool:
    """Tell whether a decoder has BERT's layout, with cross-attention and absolute positions."""
    body = getattr(decoder, "bert", None)
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    if body is None or layers is None or not hasattr(decoder, "cls"):
        return False
    kind = getattr(decoder.config, "position_embedding_type", "absolute")
    return kind == "absolute" and all(hasattr(layer, "crossattention") for layer in layers)


class BertStepper:
    """Decodes a batch of captions, a word per call of `step`.

    Parameters
    ----------
    decoder : transformers BERT or BLIP text decoder
        For which `fits` holds.
    states : (batch, places, dim)
        Of the images' encoder.
    samples : int
        Captions per image.
    length : int
        Most words, the start included.
    """

    def __init__(
        self,
        decoder: Any,
        states: Float[Tensor, "batch places dim"],
        samples: int,
        length: int,
    ) -> None:
        body = decoder.bert
        self.embeddings, self.head = body.embeddings, decoder.cls.predictions
        config = decoder.config
        self.heads = config.num_attention_heads
        self.batch, self.samples, self.place = len(states), samples, 0
        kinds = getattr(self.embeddings, "token_type_embeddings", None)
        places = self.embeddings.position_embeddings.weight[:length]
        self.places = places if kinds is None else places + kinds.weight[0]
        width = config.hidden_size // self.heads
        self.layers: list[_Weights] = []
        self.far: list[tuple[Tensor, Tensor]] = []
        self.near: list[Tensor] = []
        for layer in body.encoder.layer:
            own, cross = layer.attention.self, layer.crossattention.self
            parts = (own.query, own.key, own.value)
            self.layers.append(
                _Weights(
                    (torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])),
                    (cross.query.weight, cross.query.bias),
                    [
                        (part.dense, part.LayerNorm)
                        for part in (
                            layer.attention.output,
                            layer.crossattention.output,
                            layer.output,
                        )
                    ],
                    layer.intermediate.dense,
                    layer.intermediate.intermediate_act_fn,
                )
            )
            self.far.append(
                tuple(
                    p(states).unflatten(-1, (self.heads, width)).transpose(1, 2)
                    for p in (cross.key, cross.value)
                )
            )
            self.near.append(states.new_empty(2, self.batch * samples, self.heads, length, width))

    def step(self, last: Int[Tensor, " rows"]) -> Float[Tensor, "rows words"]:
        """Return the logits after one more word per caption (rows are images times samples)."""
        t, rows = self.place, len(last)
        x = self.embeddings.LayerNorm(self.embeddings.word_embeddings.weight[last] + self.places[t])
        for layer, (far_k, far_v), near in zip(self.layers, self.far, self.near):
            qkv = F.linear(x, *layer.qkv).view(rows, 3, self.heads, -1)
            near[:, :, :, t] = qkv[:, 1:].transpose(0, 1)
            own = F.scaled_dot_product_attention(
                qkv[:, 0, :, None], near[0, :, :, : t + 1], near[1, :, :, : t + 1]
            )
            (dense, norm), (dense2, norm2), (dense3, norm3) = layer.outs
            x = norm(dense(own.view(rows, -1)) + x)
            q = F.linear(x, *layer.query).view(self.batch, self.samples, self.heads, -1)
            seen = F.scaled_dot_product_attention(q.transpose(1, 2), far_k, far_v)
            x = norm2(dense2(seen.transpose(1, 2).reshape(rows, -1)) + x)
            x = norm3(dense3(layer.act(layer.inner(x))) + x)
        self.place += 1
        logits: Tensor = self.head(x)
        return logits
