"""The detector: backbone, tokens with gestalt laws, queries, decoder, heads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gptr._denormals import flush_denormals
from gptr._files import write_text, write_with
from gptr.config import GPTRConfig
from gptr.detections import Detections
from gptr.gestalt.descriptors import Descriptors, describe
from gptr.gestalt.graph import as_arrays
from gptr.gestalt.official import SIDE, STRIDE, OfficialEncoder
from gptr.losses import SetCriterion
from gptr.model.backbone import build_backbone
from gptr.model.decoder import MLP, ConditionalDecoder, inverse_sigmoid, sine_embedding
from gptr.model.denoising import denoising_queries
from gptr.model.encoder import EncoderLayer, Tokens

Targets = Sequence[dict[str, Tensor]]
PRIOR = 0.01
"""Probability of a class before training (focal prior)."""


@dataclass
class Features:
    """What the trainable part sees of a batch; cached where the backbone is frozen.

    Attributes
    ----------
    maps
        Per level (B, N, C) backbone features.
    levels
        Per level the descriptors.
    sizes
        (B, 2) height and width of each image in pixels.
    official
        Patch (B, 196, 13) and border (B, 196, 64) features of mode ``official``.
    """

    maps: list[Tensor]
    levels: list[Descriptors]
    sizes: Tensor
    official: tuple[Tensor, Tensor] | None = None


@dataclass
class DetectionOutput:
    """Logits (B, Q, C) and boxes (B, Q, 4; cx, cy, w, h in 0..1), with loss where targets came."""

    pred_logits: Tensor
    pred_boxes: Tensor
    aux_outputs: list[dict[str, Tensor]] = field(default_factory=list)
    loss: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class GPTR(nn.Module):
    """Gestalt-perception transformer for objects in diagrams.

    Parameters
    ----------
    config
        See `GPTRConfig`; `from_config` takes the name of a preset.

    References
    ----------
    Hu et al., GPTR: Gestalt-Perception Transformer for Diagram Object Detection, AAAI 2023.
    """

    def __init__(self, config: GPTRConfig) -> None:
        super().__init__()
        self.config = c = config
        if c.mode == "official" and not (c.decoder_layers and len(c.strides) == 1):
            raise ValueError("mode='official' needs decoder_layers > 0 and a single stride")
        self.backbone = build_backbone(c.backbone, c.strides, c.weights)
        channels: Any = self.backbone.channels
        if c.freeze_backbone:
            self.backbone.requires_grad_(False)
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(n, c.d_model), nn.LayerNorm(c.d_model)) for n in channels
        )
        self.level_embedding = nn.Parameter(torch.zeros(len(c.strides), c.d_model))
        self.official: OfficialEncoder | None = None
        if c.mode == "official":
            self.official = OfficialEncoder(
                c.d_model, c.num_heads, c.ffn, c.encoder_layers, c.dropout, c.queries
            )
            self.encoder: Any = nn.ModuleList()
        else:
            self.encoder = nn.ModuleList(
                EncoderLayer(
                    c.d_model, c.num_heads, c.ffn, c.dropout, c.mode, c.laws, c.group_count
                )
                for _ in range(c.encoder_layers)
            )
        self.norm = nn.Identity() if self.official else nn.LayerNorm(c.d_model)
        learned = c.decoder_layers > 0 and (c.query_selection == "learned" or bool(self.official))
        self.token_class: Any = None
        if not learned:
            self.token_class = nn.Linear(c.d_model, c.num_classes)
            self.token_box = MLP(c.d_model, c.d_model, 4, 3)
        if c.decoder_layers:
            self.decoder = ConditionalDecoder(
                c.d_model, c.num_heads, c.ffn, c.dropout, c.decoder_layers, c.refine, learned
            )
            self.query_position = (
                nn.Embedding(c.queries, c.d_model)
                if learned
                else MLP(c.d_model, c.d_model, c.d_model, 2)
            )
            self.class_head = nn.Linear(c.d_model, c.num_classes)
            self.box_head = MLP(c.d_model, c.d_model, 4, 3)
            if c.denoising:
                self.label_embedding = nn.Embedding(c.num_classes, c.d_model)
        self._start(learned)
        self.criterion = SetCriterion()

    def _start(self, learned: bool) -> None:
        prior = -math.log((1 - PRIOR) / PRIOR)
        heads: list[tuple[Any, Any]] = [] if learned else [(self.token_class, self.token_box)]
        if self.config.decoder_layers:
            heads.append((self.class_head, self.box_head))
        for scores, boxes in heads:
            nn.init.constant_(scores.bias, prior)
            nn.init.zeros_(boxes.layers[-1].weight)
            nn.init.zeros_(boxes.layers[-1].bias)

    @staticmethod
    def from_config(config: str | GPTRConfig, **changes: Any) -> GPTR:
        """Build from a preset's name or a configuration.

        Examples
        --------
        >>> GPTR.from_config("gptr-nano", num_classes=3).config.mode
        'bias'
        """
        if isinstance(config, GPTRConfig):
            return GPTR(config)
        return GPTR(GPTRConfig.preset(config, **changes))

    def train(self, mode: bool = True) -> GPTR:
        """Switch training on; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.config.freeze_backbone:
            self.backbone.eval()
        return self

    def extract(self, images: object, size: tuple[int, int] | None = None) -> Features:
        """Return backbone features and descriptors of images of any sizes.

        Parameters
        ----------
        images
            (B, 3, H, W) tensor (uint8, or float in 0..1), arrays, PIL images, or a list of these.
        size
            Height and width to pad to at least; the largest image by default.
        """
        arrays = as_arrays(images)
        device = self.level_embedding.device
        step = max(32, *self.config.strides)
        height = -(-max(*(a.shape[0] for a in arrays), size[0] if size else 0) // step) * step
        width = -(-max(*(a.shape[1] for a in arrays), size[1] if size else 0) // step) * step
        batch = torch.zeros(len(arrays), 3, height, width)
        mask = torch.zeros(len(arrays), 1, height, width)
        for b, a in enumerate(arrays):
            batch[b, :, : a.shape[0], : a.shape[1]] = torch.from_numpy(a).permute(2, 0, 1) / 255
            mask[b, :, : a.shape[0], : a.shape[1]] = 1
        padded = None if bool(mask.all()) else mask.to(device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            maps = self.backbone(batch.to(device), padded)
        levels = [describe(arrays, s, (height, width)).to(device) for s in self.config.strides]
        sizes = torch.tensor([a.shape[:2] for a in arrays], dtype=torch.float32, device=device)
        official = None
        if self.official is not None:
            official = tuple(t.to(device) for t in official_inputs(arrays))
        return Features(
            [m.flatten(2).transpose(1, 2) for m in maps],
            levels,
            sizes,
            official,  # type: ignore[arg-type]
        )

    def tokens(self, features: Features) -> tuple[Tensor, Tensor, Tokens, Tensor]:
        """Return token states, position code, geometry and start boxes of all levels."""
        finest = self.config.strides[0]
        states, centres, starts = [], [], []
        size = features.sizes.flip(-1)[:, None]
        for i, (level, m) in enumerate(zip(features.levels, features.maps, strict=True)):
            states.append(self.project[i](m.float()) + self.level_embedding[i])
            centre = (level.places * level.stride)[None].expand(len(m), -1, -1)
            centres.append(centre)
            side = (4.0 * level.stride / size).clamp(0.02, 0.9).expand(-1, centre.shape[1], -1)
            starts.append(torch.cat(((centre / size).clamp(0.001, 0.999), side), -1))
        centre = torch.cat(centres, 1)
        position = sine_embedding(centre / size, self.config.d_model)
        places = (centre - size / 2) / finest
        valid = torch.cat([level.valid for level in features.levels], 1)
        geometry = Tokens(places, features.levels, valid)
        return torch.cat(states, 1), position, geometry, torch.cat(starts, 1)

    def encode(self, features: Features) -> tuple[Tensor, Tensor, Tokens, Tensor]:
        """Return encoded tokens (B, N, D), position code, geometry and start boxes."""
        x, position, geometry, start = self.tokens(features)
        for layer in self.encoder:
            x = layer(x, position, geometry)
        return self.norm(x), position, geometry, start

    def detect(
        self, features: Features, targets: Targets | None = None, count: float | None = None
    ) -> DetectionOutput:
        """Run everything behind the backbone; losses are divided by ``count`` objects."""
        with flush_denormals():
            return self._detect(features, targets, count)

    def _detect(
        self, features: Features, targets: Targets | None, count: float | None
    ) -> DetectionOutput:
        c = self.config
        learned = self.token_class is None
        stages: list[tuple[Tensor, Tensor]] = []
        fixed: list = []
        if self.official is not None:
            x, position, geometry, _ = self.tokens(features)
            if features.official is None:
                raise ValueError("features has no official inputs: extract them with this model")
            memory, content = self.official(x, position, *features.official, ~geometry.valid)
        else:
            memory, position, geometry, start = self.encode(features)
        valid = None if bool(geometry.valid.all()) else geometry.valid
        if self.token_class is not None:
            logits = self.token_class(memory)
            boxes = (self.token_box(memory) + inverse_sigmoid(start)).sigmoid()
            if valid is not None:
                logits = logits.masked_fill(~valid[..., None], -50.0)
            stages.append((logits, boxes))
        if c.decoder_layers:
            B = len(memory)
            if self.token_class is not None:
                limit = min(c.queries, memory.shape[1])
                top = stages[0][0].amax(-1).topk(limit).indices[..., None]
                content = torch.gather(memory, 1, top.expand(-1, -1, c.d_model))
                reference = torch.gather(stages[0][1], 1, top.expand(-1, -1, 4)).detach()
                query_position = self.query_position(sine_embedding(reference[..., :2], c.d_model))
            else:
                reference = torch.zeros(0)  # the decoder takes the queries' own points
                query_position = self.query_position.weight.expand(B, -1, -1)  # type: ignore
                if self.official is None:
                    content = torch.zeros_like(query_position)
            noised = None
            if c.denoising and self.training and targets is not None and not learned:
                noised = denoising_queries(targets, c.denoising, c.num_classes, content.shape[1])
            mask = None
            if noised is not None:
                extra = self.label_embedding(noised.labels)
                content = torch.cat((extra, content), 1)
                reference = torch.cat((noised.boxes, reference), 1)
                sine = sine_embedding(noised.boxes[..., :2], c.d_model)
                query_position = torch.cat((self.query_position(sine), query_position), 1)
                mask = noised.mask
            states, found = self.decoder(
                content,
                query_position,
                memory,
                position,
                valid,
                self.box_head,
                None if learned else reference,
                mask,
            )
            scores = self.class_head(states)
            split = 0 if noised is None else noised.labels.shape[1]
            stages = [(s[:, split:], b[:, split:]) for s, b in zip(scores, found)][::-1] + stages
            if noised is not None:
                fixed = [
                    (s[:, :split], b[:, :split], noised.pairs, c.denoising)
                    for s, b in zip(scores, found)
                ]
        out = DetectionOutput(
            *stages[0], [{"pred_logits": s, "pred_boxes": b} for s, b in stages[1:]]
        )
        if targets is not None:
            out.loss, out.losses = self.criterion(stages, targets, fixed, count)
        return out

    def forward(self, images: object, targets: Targets | None = None) -> DetectionOutput:
        """Detect objects; with targets, return the loss too.

        Parameters
        ----------
        images
            See `extract`.
        targets
            Per image ``labels`` (T,) int64 and ``boxes`` (T, 4), cx, cy, w, h in 0..1.
        """
        return self.detect(self.extract(images), targets)

    @torch.no_grad()
    def decode(self, out: DetectionOutput, sizes: Tensor, limit: int = 100) -> list[Detections]:
        """Return the best (query, class) pairs of each image, boxes in pixels."""
        results = []
        for logits, boxes, size in zip(out.pred_logits, out.pred_boxes, sizes, strict=True):
            scores = logits.float().sigmoid().flatten()
            best = scores.topk(min(limit, len(scores)))
            query, label = best.indices // logits.shape[-1], best.indices % logits.shape[-1]
            cx, cy, w, h = boxes[query].float().cpu().numpy().T
            height, width = (float(v) for v in size)
            corners = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
            corners = corners * np.array([width, height, width, height])
            corners = np.clip(corners, 0, [width, height, width, height])
            results.append(
                Detections(
                    corners, best.values.cpu().numpy(), label.cpu().numpy(),
                    (int(height), int(width)), self.config.class_names, self.config.category_ids,
                )
            )  # fmt: skip
        return results

    @torch.no_grad()
    def predict(self, image: object, threshold: float = 0.4) -> Detections:
        """Detect objects in a file, PIL image or array.

        Parameters
        ----------
        image
            Path, PIL image, or (H, W, 3) uint8 array.
        threshold
            Least score.
        """
        from gptr.data.images import load_image

        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: must lie in 0..1")
        array = load_image(image) if isinstance(image, str | Path) else as_arrays(image)[0]
        training = self.training
        self.eval()
        features = self.extract([array])
        (found,) = self.decode(self.detect(features), features.sizes)
        self.train(training)
        found.image = array
        return found.above(threshold)

    def law_weights(self) -> dict[str, float]:
        """Return how strongly each law acts now: mean over layers and heads."""
        totals: dict[str, list[float]] = {}
        if self.official is not None:
            g = self.official.graph
            pairs = (("similarity", g.weight_Wco), ("proximity", g.weight_Wpo),
                     ("smoothness", g.weight_Wc))  # fmt: skip
            return {name: w.item() for name, w in pairs}
        for layer in self.encoder:
            attention, messages = layer.attention, layer.messages
            for name in attention.laws:
                if hasattr(attention, name):
                    weight = nn.functional.softplus(getattr(attention, name)).mean()
                    totals.setdefault(name, []).append(weight.item())
            if messages is not None:
                for name, gate in messages.gate.items():
                    totals.setdefault(name, []).append(nn.functional.softplus(gate).item())
        return {name: sum(v) / len(v) for name, v in totals.items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        write_with(folder / "model.safetensors", lambda path: save_file(state, path))
        write_text(folder / "config.json", json.dumps(self.config.to_dict(), indent=1) + "\n")

    @staticmethod
    def from_pretrained(folder: str | Path) -> GPTR:
        """Read what `save_pretrained` wrote.

        Raises
        ------
        ValueError
            If a file is missing or does not fit.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: not found; save_pretrained writes it")
        try:
            values = json.loads((folder / "config.json").read_text())
            config = GPTRConfig.from_dict({**values, "weights": "none"})
            model = GPTR(config)
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            line = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder}: the checkpoint does not fit: {line}") from error
        model.eval()
        return model


def official_inputs(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return patch (B, 196, 13) and border (B, 196, 64) features of images at 224 x 224."""
    from PIL import Image

    squeezed = [
        np.asarray(Image.fromarray(a).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        for a in arrays
    ]
    found = describe(squeezed, STRIDE, keep_borders=True)
    place = found.boxes.expand(len(arrays), -1, -1)
    if found.borders is None:
        raise AssertionError("borders were asked for")
    return torch.cat((found.colour, place), -1), found.borders.flatten(2)
