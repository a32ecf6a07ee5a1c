"""Terms of the stage 2 reward, each a small function, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .association import AssociationModel, association_probability
from .errors import require


def object_coverage(cosine: Float[np.ndarray, "tags words"], clamp: float = 0.6) -> float:
    """Return O: tags matched to caption words by optimal assignment, mean cosine per tag, clamped.

    Examples
    --------
    >>> object_coverage(np.array([[1.0, 0.2], [0.0, 0.5]]), clamp=1.0)
    0.75
    """
    if not cosine.size:
        return 0.0
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    return min(clamp, float(cosine[rows, columns].sum()) / len(cosine))


def repetition(cosine: Float[np.ndarray, "words words"], clamp: float = 0.5) -> float:
    """Return P: 1 for words that do not resemble one another, 0 for one word repeated; clamped.

    Examples
    --------
    >>> repetition(np.ones((3, 3))), repetition(np.eye(3), clamp=1.0)
    (0.0, 1.0)
    """
    if not cosine.size:
        return 0.0
    other = cosine * (1 - np.eye(len(cosine)))
    rows, columns = linear_sum_assignment(1 - other)
    return min(clamp, float((1 - other[rows, columns]).sum()) / len(cosine))


class WordCosines:
    """Cosines between word vectors, for `object_coverage` and `repetition`."""

    def __init__(self, vectors: Float[Tensor, "words dim"]) -> None:
        unit = torch.nn.functional.normalize(vectors.detach().double(), dim=-1)
        self.table = (unit @ unit.T).clamp(-1, 1).numpy()

    def coverage(self, tags: Sequence[int], words: Sequence[int], clamp: float = 0.6) -> float:
        """Return O of one caption; an image without tags or an empty caption gives 0."""
        return object_coverage(self.table[np.ix_(list(tags), list(words))], clamp)

    def repetition(self, words: Sequence[int], clamp: float = 0.5) -> float:
        """Return P of one caption."""
        return repetition(self.table[np.ix_(list(words), list(words))], clamp)


def sample_association(
    model: AssociationModel,
    image: Float[Tensor, "batch dim"],
    ids: Int[Tensor, "batch samples length"],
    clamp: float = 0.8,
) -> Float[Tensor, "batch samples"]:
    """Return A of every sample, the k-th samples of all images scored against each other, clamped.

    One text pass for all samples.
    """
    batch, samples, _ = ids.shape
    with torch.no_grad():
        text = model.encode_text(ids.flatten(0, 1)).view(batch, samples, -1)
        scale = model.scale
        columns = [association_probability(image, text[:, k], scale) for k in range(samples)]
    return torch.stack(columns, 1).clamp(max=clamp)


def clip_score(
    model: AssociationModel,
    image: Float[Tensor, "batch dim"],
    ids: Int[Tensor, "batch samples length"],
    weight: float = 2.5,
) -> Float[Tensor, "batch samples"]:
    """Return CLIPScore, ``weight * max(cosine, 0)``, of every sample (Hessel et al., EMNLP 2021).

    Unlike the association it does not depend on the batch.
    """
    with torch.no_grad():
        text = model.encode_text(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        cosine = torch.einsum("bd,bsd->bs", image, text)
    return weight * cosine.clamp(min=0)


@dataclass
class RewardSum:
    """A weighted sum of reward terms that keeps every term for the log.

    Examples
    --------
    >>> total = RewardSum({"association": 1.0, "repetition": 0.5})
    >>> total({"association": torch.tensor([0.4]), "repetition": torch.tensor([0.2])})
    tensor([0.5000])
    """

    weights: Mapping[str, float]
    log: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0

    def __call__(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the sum; a term that is not finite counts as 0 there and is counted."""
        total: Tensor | None = None
        row = {}
        for name, value in terms.items():
            require(name in self.weights, "terms", name, "one of " + ", ".join(self.weights))
            good = torch.isfinite(value)
            self.skipped += int((~good).sum())
            clean = torch.where(good, value, torch.zeros_like(value))
            row[name] = float(clean.mean())
            part = self.weights[name] * clean
            total = part if total is None else total + part
        require(total is not None, "terms", {}, "at least one term")
        self.log.append(row)
        assert total is not None
        return total
