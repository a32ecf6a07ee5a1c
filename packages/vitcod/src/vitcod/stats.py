"""Averaged attention maps of a model (section 1.1: ``Abar = mean of softmax(Q K^T scale)``).

Probabilities are averaged, not logits, in float64, over clean images; a NaN is refused where it
enters, with the layer and head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcod.adapters import attention_modules, project, score_bias, special_tokens
from vitcod.errors import InputError
from vitcod.files import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass
class AttentionStats:
    """Averaged maps of all layers.

    Parameters
    ----------
    maps : per layer float64 (heads, queries, keys); rows sum to 1
    images : how many images were averaged
    special_tokens : tokens before the patches
    output_scores : per layer ``E[a^2 ||v - o||^2]``, same shapes; None where not collected
    q_moments, k_moments : per layer (heads, heads) second moments of Q and K over heads, for the
        closed form of the auto-encoder
    """

    maps: list[Float[np.ndarray, "heads queries keys"]]
    images: int
    special_tokens: int = 1
    output_scores: list[Float[np.ndarray, "heads queries keys"]] | None = None
    q_moments: list[Float[np.ndarray, "heads heads"]] = field(default_factory=list)
    k_moments: list[Float[np.ndarray, "heads heads"]] = field(default_factory=list)
    grid_shape: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches; None where they form no square."""
        if self.grid_shape is not None:
            return self.grid_shape
        patches = self.maps[0].shape[-1] - self.special_tokens
        side = round(max(patches, 0) ** 0.5)
        return (side, side) if side * side == patches else None

    def check(self) -> None:
        """Refuse maps that are no probabilities, naming layer and head.

        Raises
        ------
        InputError
            NaN, a negative entry, or a row that does not sum to 1.
        """
        if not self.maps:
            raise InputError("stats has no maps: collect_attention needs a model with attention")
        for layer, maps in enumerate(self.maps):
            bad = ~np.isfinite(maps) | (maps < 0)
            if bad.any():
                head, row, _ = (int(i) for i in np.argwhere(bad)[0])
                raise InputError(
                    f"stats holds NaN, infinite or negative attention in layer {layer},"
                    f" head {head}, row {row}: look for overflow in the model or its checkpoint"
                )
            off = np.abs(maps.sum(-1) - 1) > 1e-3
            if off.any():
                head, row = (int(i) for i in np.argwhere(off)[0])
                raise InputError(
                    f"stats row {row} of layer {layer}, head {head} sums to"
                    f" {maps[head, row].sum():.4f}: rows of averaged probabilities sum to 1"
                )

    def checksum(self) -> str:
        """SHA-256 of the maps."""
        digest = hashlib.sha256()
        for maps in self.maps:
            digest.update(np.ascontiguousarray(maps, np.float64).ravel().data)
        return digest.hexdigest()

    def resize(self, rows: int, columns: int) -> AttentionStats:
        """Interpolate the maps bilinearly to another grid of patches; rows sum to 1 again.

        Raises
        ------
        InputError
            The maps have no grid of patches.
        """
        if self.grid is None:
            raise InputError("stats has no square grid of patches: resize needs one")
        special, result = self.special_tokens, []
        for maps in self.maps:
            t = torch.from_numpy(np.asarray(maps, np.float64))
            for axis in (1, 2):
                t = t.movedim(axis, -1)
                lead = t.shape[:-1]
                patches = t[..., special:].reshape(-1, 1, *self.grid)
                patches = nn.functional.interpolate(
                    patches, (rows, columns), mode="bilinear", align_corners=False
                )
                t = torch.cat([t[..., :special], patches.reshape(*lead, -1)], -1).movedim(-1, axis)
            values = t.numpy()
            result.append(values / values.sum(-1, keepdims=True))
        return AttentionStats(result, self.images, special, grid_shape=(rows, columns))

    def save(self, path: Path | str) -> Path:
        """Write the statistics as safetensors."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {}
        lists = (
            ("maps", self.maps),
            ("output", self.output_scores or []),
            ("q", self.q_moments),
            ("k", self.k_moments),
        )
        for name, values in lists:
            for i, value in enumerate(values):
                arrays[f"{name}.{i}"] = np.ascontiguousarray(value)
        header = {
            "images": self.images,
            "special_tokens": self.special_tokens,
            "grid": self.grid_shape,
            "kind": "attention statistics",
        }
        return write_atomically(path, save(arrays, {"vitcod": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path | str) -> AttentionStats:
        """Read statistics.

        Raises
        ------
        InputError
            No such file, or no statistics.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get("vitcod", "null"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"stats={str(path)!r} cannot be read ({reason}): a file written by vitcod collect"
            ) from error
        if not isinstance(header, dict) or header.get("kind") != "attention statistics":
            raise InputError(
                f"stats={str(path)!r} holds no attention statistics: a file of vitcod collect"
            )

        def take(name: str) -> list[np.ndarray]:
            count = sum(key.startswith(f"{name}.") for key in arrays)
            return [arrays[f"{name}.{i}"] for i in range(count)]

        grid = tuple(header["grid"]) if header["grid"] else None
        return cls(
            take("maps"),
            header["images"],
            header["special_tokens"],
            take("output") or None,
            take("q"),
            take("k"),
            grid,
        )


class _Collector:
    """Adds up the statistics of one layer, as a forward pre-hook."""

    def __init__(self, output_scores: bool) -> None:
        self.total: Tensor | None = None
        self.output: Tensor | None = None
        self.moments: list[Tensor] | None = None
        self.samples = [0, 0]
        self.want_output = output_scores

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        q, k, v, scale = project(module, x)
        scores = (q.float() @ k.float().transpose(-1, -2)) * scale
        bias = score_bias(module, q.device)
        weights = torch.softmax(scores if bias is None else scores + bias, -1)
        total = weights.double().sum(0)
        self.total = total if self.total is None else self.total + total
        moments = [torch.einsum("bhnd,bgnd->hg", t.double(), t.double()) for t in (q, k)]
        self.moments = (
            moments if self.moments is None else [a + b for a, b in zip(self.moments, moments)]
        )
        self.samples = [
            n + t.shape[0] * t.shape[2] * t.shape[3] for n, t in zip(self.samples, (q, k))
        ]
        if self.want_output:
            out = weights @ v.float()
            # |v_j - o_i|^2 without a tensor of (queries, keys, channels)
            distance = (
                (v.float() ** 2).sum(-1)[:, :, None]
                - 2 * out @ v.float().transpose(-1, -2)
                + (out**2).sum(-1)[..., None]
            )
            score = (weights.double() ** 2 * distance.double().clamp_min(0)).sum(0)
            self.output = score if self.output is None else self.output + score


def collect_attention(
    model: nn.Module,
    loader: Iterable[Any],
    max_images: int = 10_000,
    output_scores: bool = False,
) -> AttentionStats:
    """Average the attention maps of a model over images.

    Parameters
    ----------
    model : own, timm or transformers ViT; run in eval mode, its mode is restored
    loader : batches of images (batch, channels, height, width), or tuples that start with one;
        clean images: augmentation changes the maps
    max_images : stop after so many
    output_scores : also collect ``E[a^2 ||v - o||^2]``, for ``prune(method="output")``

    Returns
    -------
    AttentionStats

    Raises
    ------
    InputError
        No known attention layer, no image, or NaN in a layer's maps.

    Examples
    --------
    >>> import torch, vitcod
    >>> model = vitcod.VisionTransformer(image=8, patch=2, channels=1, dim=32, depth=2, heads=2)
    >>> stats = vitcod.collect_attention(model, [torch.zeros(4, 1, 8, 8)])
    >>> len(stats.maps), stats.maps[0].shape, stats.images
    (2, (2, 17, 17), 4)
    """
    if max_images < 1:
        raise InputError(f"max_images={max_images} is not allowed: an integer of at least 1")
    modules = attention_modules(model)
    collectors = [_Collector(output_scores) for _ in modules]
    hooks = [
        module.register_forward_pre_hook(collector, with_kwargs=True)
        for (_, module), collector in zip(modules, collectors)
    ]
    training, images = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in loader:
                x = batch[0] if isinstance(batch, (tuple, list)) else batch
                x = x[: max_images - images]
                if len(x):
                    model(x)
                images += len(x)
                if images >= max_images:
                    break
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if images == 0:
        raise InputError("loader gave no image: at least one is needed")
    maps, output, q_moments, k_moments = [], [], [], []
    for collector in collectors:
        assert collector.total is not None
        assert collector.moments is not None
        maps.append((collector.total / images).cpu().numpy())
        q_moments.append((collector.moments[0] / collector.samples[0]).cpu().numpy())
        k_moments.append((collector.moments[1] / collector.samples[1]).cpu().numpy())
        if collector.output is not None:
            output.append((collector.output / images).cpu().numpy())
    stats = AttentionStats(
        maps, images, special_tokens(model), output or None, q_moments, k_moments
    )
    stats.check()
    return stats
