"""What each law links: heat maps, groups, and group tokens of trained and untrained graphs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptr.gestalt import laws as law
from gptr.gestalt.coarsen import mean_cosine_distance
from gptr.gestalt.graph import GestaltGraph, as_arrays
from gptr.gestalt.official import OfficialGraph
from gptr.model.gptr import GPTR, official_inputs


@dataclass
class Explanation:
    """Law matrices and groups of one image.

    Attributes
    ----------
    image
        (H, W, 3).
    grid
        Rows and columns.
    matrices
        Law to (N, N), rows sum to one.
    groups
        Law to (N,) group of each cell.
    distances
        Law to the mean cosine distance of its group tokens.
    weights
        Law to its learned weight, where a model was explained.
    """

    image: np.ndarray
    grid: tuple[int, int]
    stride: int
    matrices: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    distances: dict[str, float]
    weights: dict[str, float]

    def heat(self, name: str, row: int, column: int) -> np.ndarray:
        """Return what the cell at (row, column) attends to, (rows, columns), largest is one."""
        A = self.matrices[name][row * self.grid[1] + column].reshape(self.grid)
        return np.asarray(A / max(A.max(), 1e-12))

    def busiest_cell(self) -> tuple[int, int]:
        """Return the cell whose smoothness row reaches furthest (something is drawn there)."""
        name = "smoothness" if "smoothness" in self.matrices else next(iter(self.matrices))
        A = self.matrices[name]
        spread = -(A * np.log(np.maximum(A, 1e-12))).sum(1)
        own = np.diag(A)
        order = spread - 10 * (own > 0.9)
        return divmod(int(order.argmax()), self.grid[1])


def explain(
    image: object, model: GPTR | None = None, *, stride: int = 16, groups: int = 12
) -> Explanation:
    """Explain an image by the graph alone, or with the weights of a trained model's first layer."""
    array = as_arrays(image)[0]
    settings: dict = {"stride": stride}
    names: tuple[str, ...] = law.LAWS
    weights: dict[str, float] = {}
    if model is not None:
        weights = model.law_weights()
        settings["stride"] = model.config.strides[-1]
        names = model.config.laws if model.config.mode in ("gptr", "bias") else law.LAWS
        messages = model.encoder[0].messages if len(model.encoder) else None
        if messages is not None:
            for key, name, change in (
                ("temperature", "log_temperature", torch.exp),
                ("sigma", "log_sigma", torch.exp),
                ("spread", "log_spread", torch.exp),
                ("decay", "logit_decay", torch.sigmoid),
            ):
                if hasattr(messages, name):
                    settings[key] = change(getattr(messages, name).detach()).item()
    graph = GestaltGraph(names, **settings)
    found = graph.describe([array])
    matrices = {k: v[0].numpy() for k, v in graph([array]).items()}
    grouped = graph.groups([array], groups)
    return Explanation(
        array,
        found.grid,
        graph.stride,
        matrices,
        {k: v[0][0].numpy() for k, v in grouped.items()},
        {k: float(mean_cosine_distance(v[1])[0]) for k, v in grouped.items()},
        weights,
    )


def official_collapse(images: object, *, layers: int = 4, seed: int = 0) -> dict[str, float]:
    """Return the mean cosine distance of the authors' group tokens, at initialisation, per law."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        graph = OfficialGraph(layers=layers).eval()
    with torch.no_grad():
        tokens = graph.group_tokens(*official_inputs(as_arrays(images)))
    totals: dict[str, list[Tensor]] = {}
    for layer in tokens:
        for name, t in layer.items():
            totals.setdefault(name, []).append(mean_cosine_distance(t.double()).mean())
    return {name: float(torch.stack(v).mean()) for name, v in totals.items()}


@torch.no_grad()
def model_group_distances(model: GPTR, images: object) -> dict[str, float]:
    """Return the mean cosine distance of the group tokens inside a model (mode ``gptr``)."""
    if model.config.mode != "gptr" or not model.config.group_count:
        raise ValueError(
            f"mode={model.config.mode!r}: group tokens need mode gptr, group_count > 0"
        )
    features = model.extract(images)
    x, position, geometry, _ = model.tokens(features)
    totals: dict[str, list[float]] = {}
    for layer in model.encoder:
        h = layer.norm1(x)
        messages = layer.messages
        level = geometry.levels[-1]
        for name, values in zip(messages.laws, messages.value(h).split(messages.width, -1)):
            tokens = messages.tokens(name, geometry.split(values)[-1], level)
            totals.setdefault(name, []).append(mean_cosine_distance(tokens).mean().item())
        x = layer(x, position, geometry)
    return {name: float(np.mean(v)) for name, v in totals.items()}
