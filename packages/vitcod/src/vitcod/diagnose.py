"""Whether a fixed mask means anything for a model.

Maps that are close to uniform say nothing about which keys matter: any mask of the same size then
does as well as information pruning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcod.adapters import attention_modules, project, score_bias
from vitcod.errors import InputError
from vitcod.plan import LayerPlan, SparsityPlan
from vitcod.pruning import prune
from vitcod.stats import AttentionStats

if TYPE_CHECKING:
    from jaxtyping import Float

# Share of log(keys) above which averaged maps count as uniform. Ours: a small ViT whose information
# masks beat random ones stood at 70 %, one whose masks did not at 97 %.
TOO_UNIFORM = 0.9


@dataclass(frozen=True)
class Maskability:
    """Diagnosis of averaged maps.

    Parameters
    ----------
    entropy : mean entropy of a row as a share of log(keys); 1 is uniform
    retained : attention mass that information pruning keeps at the target sparsity
    retained_random : mass that a random mask of the same size keeps
    sparsity : target, 0 to 1
    error, error_random : `output_error` of information and of random pruning; None without images
    """

    entropy: float
    retained: float
    retained_random: float
    sparsity: float
    error: float | None = None
    error_random: float | None = None

    @property
    def suited(self) -> bool:
        """Whether the maps are peaked and information pruning keeps twice a random mask's mass.

        With images its error must be the smaller one, too.
        """
        peaked = self.entropy <= TOO_UNIFORM and self.retained >= 2 * self.retained_random
        if self.error is None or self.error_random is None:
            return peaked
        return peaked and self.error < self.error_random

    def __str__(self) -> str:
        verdict = (
            "fixed masks suit this model"
            if self.suited
            else "fixed masks are unsuited: the averaged maps are too uniform to choose keys by"
        )
        if self.error is not None and self.error_random is not None:
            verdict = (
                f"the output's error is {self.error:.3f} against {self.error_random:.3f}: {verdict}"
            )
        return (
            f"entropy {100 * self.entropy:.1f} % of uniform; at {100 * self.sparsity:.0f} %"
            f" sparsity information pruning keeps {100 * self.retained:.1f} % of the attention,"
            f" a random mask {100 * self.retained_random:.1f} %: {verdict}"
        )


def retained_mass(stats: AttentionStats, plan: SparsityPlan) -> float:
    """Mean share of the averaged attention that a plan keeps, 0 to 1."""
    kept = [float((m * p.keep).sum(-1).mean()) for m, p in zip(stats.maps, plan)]
    return float(np.mean(kept))


def output_error(
    model: nn.Module, plan: SparsityPlan, images: Float[Tensor, "batch channels height width"]
) -> float:
    """Predict how much a plan disturbs a dense model, from unlabelled images.

    Every layer sees the dense model's input, with and without the mask.

    Parameters
    ----------
    model : dense model, not patched
    plan : masks for it
    images : some tens suffice

    Returns
    -------
    float: ``|o' - o|^2 / |o|^2`` of the heads' outputs o, mean over layers; 0 for full masks

    Raises
    ------
    InputError
        Plan and model differ in layers.
    """
    modules = attention_modules(model)
    if len(plan) != len(modules):
        raise InputError(
            f"plan has {len(plan)} layers and the model {len(modules)}: make a plan of this model"
        )
    found: list[float] = []

    def measure(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: LayerPlan
    ) -> None:
        q, k, v, scale = project(module, args[0] if args else kwargs["hidden_states"])
        bias = score_bias(module, q.device)
        scores = q @ k.transpose(-1, -2) * scale
        weights = torch.softmax(scores if bias is None else scores + bias, -1)
        masked = weights * torch.from_numpy(layer.keep.copy()).to(weights)
        dense, sparse = weights @ v, masked @ v / masked.sum(-1, keepdim=True).clamp_min(1e-30)
        found.append(float(((sparse - dense) ** 2).sum() / (dense**2).sum().clamp_min(1e-30)))

    hooks = [
        module.register_forward_pre_hook(partial(measure, layer=layer), with_kwargs=True)
        for (_, module), layer in zip(modules, plan)
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return float(np.mean(found))


def diagnose(
    stats: AttentionStats,
    sparsity: float = 0.9,
    model: nn.Module | None = None,
    images: Float[Tensor, "batch channels height width"] | None = None,
) -> Maskability:
    """Measure how far the averaged maps are from uniform.

    Averaged maps alone can flatter information pruning: they hide that each image attends to other
    keys. With the model and some images the output's error decides as well.

    Parameters
    ----------
    stats : averaged maps
    sparsity : target, 0 to 1
    model, images : dense model and unlabelled images for `output_error`; both or none

    Raises
    ------
    InputError
        A model without images, or images without a model.

    Examples
    --------
    >>> import numpy as np, vitcod
    >>> flat = vitcod.AttentionStats([np.full((1, 65, 65), 1 / 65)], images=1)
    >>> vitcod.diagnose(flat, 0.5).suited
    False
    """
    if (model is None) != (images is None):
        raise InputError("model and images: give both, or none")
    entropies = []
    for maps in stats.maps:
        p = np.maximum(maps, 1e-300)
        entropies.append(float(-(maps * np.log(p)).sum(-1).mean() / np.log(maps.shape[-1])))
    info = prune(stats, sparsity=sparsity, protect=())
    random = prune(stats, sparsity=sparsity, method="random", protect=())
    errors: tuple[float | None, float | None] = (None, None)
    if model is not None and images is not None:
        errors = output_error(model, info, images), output_error(model, random, images)
    return Maskability(
        float(np.mean(entropies)),
        retained_mass(stats, info),
        retained_mass(stats, random),
        sparsity,
        *errors,
    )
