"""The auto-encoder over heads (section 1.4): Q and K as mixtures of fewer heads.

``enc = Linear(H, H')`` and ``dec = Linear(H', H)`` act on the head axis, one pair for Q and one
for K per layer, shared by all tokens and channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitcod.adapters import attention_modules
from vitcod.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

    from vitcod.stats import AttentionStats


@dataclass(frozen=True)
class AEConfig:
    """Settings of the auto-encoder.

    Parameters
    ----------
    ratio : H'/H, above 0 and at most 1; H' is rounded up as the authors do
    init : "pca", the closed form from `stats`, or "random"
    stats : result of `collect_attention`, for "pca"
    seed : of "random"
    """

    ratio: float = 0.5
    init: Literal["pca", "random"] = "pca"
    stats: AttentionStats | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise InputError(f"ratio={self.ratio} is not allowed: above 0 and at most 1")
        if self.init not in ("pca", "random"):
            raise InputError(f"init={self.init!r} is not allowed: 'pca' or 'random'")
        if self.init == "pca" and self.stats is None:
            raise InputError("init='pca' needs stats=collect_attention(...): or use init='random'")

    def compressed(self, heads: int) -> int:
        """Return the number of heads after encoding, H'."""
        return max(1, int(np.ceil(self.ratio * heads - 0.01)))


class HeadCodec(nn.Module):
    """Encoder and decoder over the head axis of (batch, heads, tokens, channels)."""

    def __init__(self, heads: int, compressed: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(heads, compressed)
        self.decoder = nn.Linear(compressed, heads)

    def initialise(self, moment: Float[np.ndarray, "heads heads"]) -> float:
        """Set both to the leading eigenvectors of a second moment; return the lost share.

        Eckart-Young: no linear pair of this size loses less than the trailing eigenvalues.
        """
        values, vectors = np.linalg.eigh(np.asarray(moment, np.float64))
        leading = vectors[:, ::-1][:, : self.encoder.out_features].copy()
        with torch.no_grad():
            self.encoder.weight.copy_(torch.from_numpy(leading.T.copy()))
            self.decoder.weight.copy_(torch.from_numpy(leading))
            self.encoder.bias.zero_()
            self.decoder.bias.zero_()
        lost = values[: len(values) - self.encoder.out_features].sum()
        return float(max(lost, 0) / max(values.sum(), 1e-300))

    def encode(self, x: Float[Tensor, "batch heads tokens dim"]) -> Tensor:
        """Mix the heads to fewer."""
        mixed = torch.einsum("ch,bhnd->bcnd", self.encoder.weight, x)
        return mixed + self.encoder.bias[:, None, None]

    def decode(self, x: Float[Tensor, "batch compressed tokens dim"]) -> Tensor:
        """Restore all heads."""
        mixed = torch.einsum("hc,bcnd->bhnd", self.decoder.weight, x)
        return mixed + self.decoder.bias[:, None, None]

    def forward(self, x: Float[Tensor, "batch heads tokens dim"]) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(x))


class AutoEncoder(nn.Module):
    """The codecs of Q and K of one layer, and the reconstruction loss of the last pass.

    Attributes
    ----------
    loss : ``|Q - Q'|_F + |K - K'|_F`` over the batch, not squared, as the authors train
    mean_loss : the same per element, squared: independent of the batch size
    """

    def __init__(self, heads: int, compressed: int) -> None:
        super().__init__()
        self.q, self.k = HeadCodec(heads, compressed), HeadCodec(heads, compressed)
        self.lost = (float("nan"), float("nan"))
        self.loss: Tensor = torch.zeros(())
        self.mean_loss: Tensor = torch.zeros(())

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructed Q' and K'."""
        q2, k2 = self.q(q), self.k(k)
        if torch.is_grad_enabled():
            self.loss = torch.dist(q, q2) + torch.dist(k, k2)
            self.mean_loss = ((q - q2) ** 2).mean() + ((k - k2) ** 2).mean()
        return q2, k2


class FoldedProjection:
    """How the output of a folded projection splits into decoded Q, K and V."""

    def __init__(self, codec: AutoEncoder, heads: int, original: nn.Linear) -> None:
        self.codec, self.heads, self.original = codec, heads, original

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, tokens, (2 H' + H) d) to q, k, v of (batch, heads, tokens, d)."""
        small = self.codec.q.encoder.out_features
        b, n, _ = qkv.shape
        parts = qkv.view(b, n, 2 * small + self.heads, -1).transpose(1, 2)
        q, k, v = parts.split([small, small, self.heads], 1)
        return self.codec.q.decode(q), self.codec.k.decode(k), v


def fold_autoencoder(model: nn.Module) -> dict[str, float]:
    """Fold the encoders into the projections of a patched model: W_q and W_k shrink to H'/H.

    The result is the same function up to rounding; `vitcod.unpatch` restores the layers.

    Returns
    -------
    dict: multiply-accumulates per token of the Q and K projections before, after (with decoding),
    and their ratio

    Raises
    ------
    InputError
        A layer has no auto-encoder, normalises q and k after the projection, or is already folded.
    """
    before = after = 0
    for name, module in attention_modules(model):
        layer: Any = module
        codec = getattr(layer, "vitcod_autoencoder", None)
        if codec is None:
            raise InputError(
                f"layer {name!r} has no auto-encoder: patch(model, plan, autoencoder=)"
            )
        if getattr(layer, "_vitcod_folded", None) is not None:
            raise InputError(f"layer {name!r} is already folded")
        if not hasattr(layer, "qkv"):
            raise InputError(
                f"layer {name!r} has separate projections: only fused qkv can be folded"
            )
        if not isinstance(getattr(layer, "q_norm", nn.Identity()), nn.Identity):
            raise InputError(f"layer {name!r} normalises q and k: its encoder cannot be folded")
        qkv: nn.Linear = layer.qkv
        heads, width = int(layer.num_heads), qkv.in_features
        dim = qkv.out_features // (3 * heads)
        small = codec.q.encoder.out_features
        with torch.no_grad():
            weight = qkv.weight.view(3, heads, dim, width)
            bias = (torch.zeros(qkv.out_features) if qkv.bias is None else qkv.bias).view(
                3, heads, dim
            )
            rows, offsets = [], []
            for part, c in ((0, codec.q), (1, codec.k)):
                rows.append(torch.einsum("ch,hdw->cdw", c.encoder.weight, weight[part]))
                offsets.append(c.encoder.weight @ bias[part] + c.encoder.bias[:, None])
            folded = nn.Linear(width, (2 * small + heads) * dim).to(qkv.weight)
            folded.weight.copy_(torch.cat([*rows, weight[2]]).reshape(-1, width))
            folded.bias.copy_(torch.cat([*offsets, bias[2]]).reshape(-1))
        layer._vitcod_folded = FoldedProjection(codec, heads, qkv)
        layer.qkv = folded
        before += 2 * heads * dim * width
        after += 2 * small * dim * width + 2 * heads * small * dim
    return {"before": before, "after": after, "ratio": after / before}
