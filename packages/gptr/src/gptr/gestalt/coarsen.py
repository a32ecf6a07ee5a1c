"""Groups of cells: soft assignment to seeds that the law itself holds apart."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def centred(features: Float[Tensor, "B N F"], valid: Tensor) -> Float[Tensor, "B N F"]:
    """Subtract the mean over valid cells: what all cells share separates none of them."""
    weight = valid[..., None].to(features)
    mean = (features * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return (features - mean) * weight


def farthest_seeds(logits: Float[Tensor, "B N N"], valid: Tensor, count: int) -> Tensor:
    """Return (B, count) cells, each the one that the chosen ones attract least.

    The first is the cell with the largest total affinity, and of cells attracted equally little
    (those of other contours, say) the one with the larger total. The choice is deterministic.
    """
    # cells of one colour tie: rounding keeps the last bits of a batched product from choosing
    logits = (logits * 64).round() / 64
    logits = logits.masked_fill(~valid[:, None, :], float("-inf"))
    total = (torch.logsumexp(logits, -1) * 64).round().masked_fill(~valid, float("-inf"))
    first = total.argmax(-1)
    # less than a step of the rounded logits: it decides between ties only
    tie = torch.softmax(total / 64, -1) / 128
    chosen = [first]
    at = torch.arange(len(logits), device=logits.device)
    nearest = logits[at, first]
    for _ in range(count - 1):
        following = (nearest - tie).masked_fill(~valid, float("inf")).argmin(-1)
        chosen.append(following)
        nearest = torch.maximum(nearest, logits[at, following])
    return torch.stack(chosen, -1)


def group_tokens(
    features: Float[Tensor, "B N F"], logits: Float[Tensor, "B N N"], valid: Tensor, count: int
) -> tuple[Float[Tensor, "B K F"], Float[Tensor, "B N K"]]:
    """Pool cells into groups around seeds.

    The authors pool with a free matrix that ignores the image, and average identical rows; here
    S_ik = softmax over seeds k of the law's logit between cell i and seed k.

    Returns
    -------
    tokens
        (B, K, F) averages of the features over the groups.
    soft
        (B, N, K) memberships; rows of valid cells sum to one.
    """
    if count < 1:
        raise ValueError(f"count={count}: at least one group is needed")
    seeds = farthest_seeds(logits.detach(), valid, min(count, logits.shape[-1]))
    toward = torch.gather(logits, 2, seeds[:, None, :].expand(-1, logits.shape[1], -1))
    soft = torch.softmax(toward, -1) * valid[..., None]
    weight = soft.sum(1).clamp(min=1e-6)
    return soft.transpose(1, 2) @ features / weight[..., None], soft


def mean_cosine_distance(tokens: Float[Tensor, "... K F"]) -> Float[Tensor, ...]:
    """Return 1 - the mean cosine over pairs of different tokens: 0 where all are one vector."""
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    K = tokens.shape[-2]
    cosines = unit @ unit.transpose(-1, -2)
    others = cosines.sum((-1, -2)) - torch.diagonal(cosines, dim1=-2, dim2=-1).sum(-1)
    return 1 - others / max(K * (K - 1), 1)
