"""The server: weight versions, staleness weights, aggregation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .config import ServerConfig
from .errors import require


def staleness_weights(
    staleness: Int[np.ndarray, " A"], config: ServerConfig
) -> Float[np.ndarray, " A"]:
    """Weight of updates that are `staleness` rounds behind.

    ``constant`` 1; ``polynomial`` (1 + tau)^-a and ``hinge`` 1 / (a (tau - b) + 1) from tau > b
    (FedAsync, arXiv 1903.03934); ``fedbuff`` 1 / sqrt(1 + tau) (arXiv 2106.06639).

    Examples
    --------
    >>> import numpy as np
    >>> staleness_weights(np.array([0, 3]), ServerConfig(staleness_weight="fedbuff")).tolist()
    [1.0, 0.5]
    """
    tau = np.asarray(staleness, dtype=float)
    a = config.weight_exponent
    if config.staleness_weight == "constant":
        return np.ones_like(tau)
    if config.staleness_weight == "polynomial":
        return (1.0 + tau) ** -a
    if config.staleness_weight == "fedbuff":
        return (1.0 + tau) ** -0.5
    return np.where(tau <= config.hinge_from, 1.0, 1.0 / (a * (tau - config.hinge_from) + 1.0))


def aggregate(
    weights: Float[Tensor, " P"],
    sent: Float[Tensor, "A P"],
    updates: Float[Tensor, "A P"],
    staleness: Int[np.ndarray, " A"],
    samples: Int[np.ndarray, " A"],
    config: ServerConfig,
    served: Int[np.ndarray, " A"] | None = None,
) -> Float[Tensor, " P"]:
    """Weights after a round.

    ``average``: w - (beta / A_k) sum s(tau_i) g_i. ``fedasync``: mix the UE's own model
    w_v - g into w with weight beta s(tau).

    Parameters
    ----------
    weights : Tensor of shape (P,)
        Current global weights w_k.
    sent : Tensor of shape (A, P)
        Stale weights each update was computed at.
    updates : Tensor of shape (A, P)
        Updates in ascending order of UE id; the sum is taken in this order.
    staleness, samples : int arrays of shape (A,)
        Rounds behind, and training samples of each UE.
    config : ServerConfig
        Rule, step and weights.
    served : int array of shape (A,), optional
        Updates of each UE used so far, this one included; for `participation_weighted`.

    Raises
    ------
    InputError
        When no update is given.
    """
    require(len(updates) > 0, "updates", 0, "at least one")
    s = staleness_weights(staleness, config)
    if config.rule == "fedasync":
        mix = float(config.step * s[0])
        return (1.0 - mix) * weights + mix * (sent[0] - updates[0])
    if config.data_weighted:
        s = s * samples / np.mean(samples)
    if config.participation_weighted and served is not None:
        s = s / served / np.mean(1.0 / served)
    scale = torch.as_tensor(s, dtype=updates.dtype)[:, None]
    total = torch.zeros_like(weights)
    for row in scale * updates:  # a fixed order of summation, whatever the number of rows
        total = total + row
    return weights - (config.step / len(updates)) * total


class VersionStore:
    """Weights of the rounds that a job in flight still uses: one copy per version, not per UE.

    Examples
    --------
    >>> store = VersionStore()
    >>> store.put(0, torch.zeros(2)); store.put(1, torch.ones(2))
    >>> store.evict(lambda version: version == 1)
    >>> len(store)
    1
    """

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def put(self, version: int, weights: Float[Tensor, " P"]) -> None:
        """Keep the weights of a round."""
        self._held[version] = weights

    def stack(self, versions: Int[np.ndarray, " A"]) -> Float[Tensor, "A P"]:
        """Rows for several UEs."""
        return torch.stack([self._held[int(v)] for v in versions])

    def evict(self, is_live: Callable[[int], bool]) -> None:
        """Forget the versions nobody uses."""
        for version in [v for v in self._held if not is_live(v)]:
            del self._held[version]

    def items(self) -> list[tuple[int, Tensor]]:
        """Versions and weights."""
        return sorted(self._held.items())

    def __len__(self) -> int:
        return len(self._held)
