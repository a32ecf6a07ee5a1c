"""Self-critical policy gradients (Rennie et al., 2017) with three baselines and a KL penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import NotFiniteError, require


@dataclass(frozen=True)
class SCSTLoss:
    """REINFORCE over several samples per image.

    Parameters
    ----------
    baseline : "greedy", "loo" or "group"
        The greedy caption's reward, the mean of the other samples, or the group's mean divided by
        its deviation.
    normalize : "sum" or "mean"
        Sum of the token log-probabilities, the exact policy gradient; or their mean per caption, as
        the authors' code has it, which weighs long captions down.

    Examples
    --------
    >>> log_prob = torch.tensor([[[-1.0, -2.0], [-0.5, 0.0]]], requires_grad=True)
    >>> there = torch.tensor([[[True, True], [True, False]]])
    >>> loss = SCSTLoss("loo")(log_prob, there, torch.tensor([[1.0, 0.0]]))
    >>> loss.item()
    1.25
    """

    baseline: Literal["greedy", "loo", "group"] = "greedy"
    normalize: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        """Check the settings."""
        require(
            self.baseline in ("greedy", "loo", "group"),
            "baseline",
            self.baseline,
            "greedy, loo, group",
        )
        require(self.normalize in ("sum", "mean"), "normalize", self.normalize, "sum or mean")

    def advantage(
        self,
        rewards: Float[Tensor, "batch samples"],
        greedy: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Return rewards less their baseline."""
        samples = rewards.shape[1]
        if self.baseline == "greedy":
            require(greedy is not None, "greedy", None, "the greedy captions' rewards")
            assert greedy is not None
            return rewards - greedy[:, None]
        require(samples >= 2, "samples", samples, f"at least 2 for the baseline {self.baseline}")
        if self.baseline == "loo":
            return (rewards - rewards.mean(1, keepdim=True)) * samples / (samples - 1)
        spread = rewards.std(1, keepdim=True)
        return (rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)

    def __call__(
        self,
        log_prob: Float[Tensor, "batch samples length"],
        there: Bool[Tensor, "batch samples length"],
        rewards: Float[Tensor, "batch samples"],
        greedy: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, whose gradient is minus the gradient of the expected reward.

        Parameters
        ----------
        log_prob : (batch, samples, length)
            Of the chosen tokens, end token included.
        there : (batch, samples, length)
            False at padding.
        rewards, greedy
            Rewards of the samples, and of the greedy captions.

        Raises
        ------
        NotFiniteError
            No reward is finite; single ones are left out.
        """
        advantage = self.advantage(rewards, greedy).detach()
        good = torch.isfinite(advantage)
        if not bool(good.any()):
            raise NotFiniteError("rewards: none is finite; check the scorers and the features")
        total = (log_prob * there).sum(-1)
        if self.normalize == "mean":
            total = total / there.sum(-1).clamp(min=1)
        advantage = torch.where(good, advantage, torch.zeros_like(advantage))
        return -(total * advantage).sum() / good.sum()


def kl_penalty(
    log_prob: Float[Tensor, "batch samples length"],
    reference: Float[Tensor, "batch samples length"],
) -> Float[Tensor, ""]:
    """Return the mean per-token estimate of KL(policy || reference), never negative (k3).

    Examples
    --------
    >>> x = torch.full((1, 1, 2), -0.5)
    >>> float(kl_penalty(x, x))
    0.0
    """
    ratio = reference - log_prob
    return (ratio.exp() - 1 - ratio).mean()
