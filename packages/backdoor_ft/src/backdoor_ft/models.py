"""Networks: small ones of our own, and factories by name or import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class SmallCNN(nn.Module):
    """Three convolutions with batch or group normalisation, for images of 8 to 32 pixels.

    ``features`` is the encoder, ``head`` the classifier.
    """

    def __init__(
        self, channels: int = 1, num_classes: int = 10, width: int = 16, norm: str = "batch"
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = channels
        for out, stride in ((width, 1), (2 * width, 2), (4 * width, 1)):
            layers += [
                nn.Conv2d(previous, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out) if norm == "batch" else nn.GroupNorm(4, out),
                nn.ReLU(),
            ]
            previous = out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(previous, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return logits."""
        out: Tensor = self.head(self.features(x))
        return out


class PreActBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(inside, outside, 1, stride, bias=False)
            if stride != 1 or inside != outside
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = torch.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(torch.relu(self.bn2(out)))
        summed: Tensor = out + residual
        return summed


class PreActResNet(nn.Module):
    """Pre-activation ResNet; ``blocks=(2, 2, 2, 2), width=64`` is PreActResNet18."""

    def __init__(
        self,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        width: int = 64,
        channels: int = 3,
        num_classes: int = 10,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False)]
        previous = width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            for block in range(count):
                layers.append(PreActBlock(previous, out, 2 if stage and block == 0 else 1))
                previous = out
        layers += [nn.BatchNorm2d(previous), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(previous, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return logits of images in [0, 1]."""
        out: Tensor = self.head(self.features((x - 0.5) / 0.25))
        return out


class TinyViT(nn.Module):
    """A small vision transformer with layer normalisation."""

    def __init__(
        self,
        size: int = 8,
        patch: int = 2,
        channels: int = 1,
        num_classes: int = 10,
        width: int = 48,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        nn.init.normal_(self.position, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return logits."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        out: Tensor = self.head(self.norm(self.encoder(tokens)).mean(1))
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer normalisation, and a wide GELU layer (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.scale * self.narrow(F.gelu(self.wide(out)))
        summed: Tensor = x + out.permute(0, 3, 1, 2)
        return summed


class TinyConvNeXt(nn.Module):
    """A small ConvNeXt: a patch stem, two stages, layer normalisation everywhere."""

    def __init__(
        self, size: int = 8, channels: int = 1, num_classes: int = 10, width: int = 24
    ) -> None:
        super().__init__()
        patch = max(size // 4, 1)
        self.stem = nn.Conv2d(channels, width, patch, patch)
        self.first = ConvNeXtBlock(width)
        self.between = nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, 2 * width, 2, 2))
        self.second = ConvNeXtBlock(2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return logits."""
        out = self.second(self.between(self.first(self.stem(x))))
        logits: Tensor = self.head(self.norm(out.mean((2, 3))))
        return logits


class TextTransformer(nn.Module):
    """A small transformer over token ids; token 0 pads."""

    def __init__(
        self,
        vocabulary: int = 82,
        length: int = 16,
        num_classes: int = 4,
        width: int = 32,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position = nn.Parameter(torch.zeros(1, length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "n classes"]:
        """Return logits."""
        hidden = self.encoder(self.embedding(tokens) + self.position)
        keep = (tokens != 0).float()[..., None]
        out: Tensor = self.head((hidden * keep).sum(1) / keep.sum(1).clamp(min=1))
        return out


def _mlp(channels: int, num_classes: int, size: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size**2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, num_classes),
    )  # fmt: skip


_OWN: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": lambda c, k, size: SmallCNN(c, k),
    "cnn-gn": lambda c, k, size: SmallCNN(c, k, norm="group"),
    "mlp": _mlp,
    "vit": lambda c, k, size: TinyViT(size, max(size // 4, 1), c, k),
    "convnext": lambda c, k, size: TinyConvNeXt(size, c, k),
    "resnet8": lambda c, k, size: PreActResNet((1, 1, 1), 32, c, k, stem_stride=2),
    "preactresnet18": lambda c, k, size: PreActResNet((2, 2, 2, 2), 64, c, k),
    "text": lambda c, k, size: TextTransformer(length=size, num_classes=k),
}


def build(spec: str, channels: int, num_classes: int, size: int, seed: int = 0) -> nn.Module:
    """Make a network by a specification, with seeded weights.

    Parameters
    ----------
    spec : cnn, cnn-gn, mlp, vit, convnext, resnet8, preactresnet18, text, ``timm:NAME``,
        ``hf:NAME``, or
        ``package.module:factory``, a callable that is called with (channels, num_classes)
    channels, num_classes, size : of the task; size is the edge of the images or the text's length
    seed : of the weights

    Raises
    ------
    InputError
        The name, module, or library is not there.

    Examples
    --------
    >>> sum(p.numel() for p in build("cnn", 1, 10, 8).parameters())
    24058
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec in _OWN:
            return _OWN[spec](channels, num_classes, size)
        if spec.startswith("timm:"):
            return _timm(spec.removeprefix("timm:"), channels, num_classes)
        if spec.startswith("hf:"):
            return _hf(spec.removeprefix("hf:"), num_classes)
        if ":" in spec:
            return _imported(spec, channels, num_classes)
    raise InputError(
        f"model={spec!r} is not known: {', '.join(_OWN)}, timm:NAME, hf:NAME, or module:factory"
    )


def _imported(spec: str, channels: int, num_classes: int) -> nn.Module:
    module, _, name = spec.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"model={spec!r} cannot be imported: {error}") from error
    network = factory(channels, num_classes)
    if not isinstance(network, nn.Module):
        raise InputError(f"model={spec!r} returned {type(network).__name__}, not an nn.Module")
    return network


def _timm(name: str, channels: int, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InputError("model='timm:...' needs timm: pip install 'backdoor-ft[timm]'") from error
    if name not in timm.list_models():
        raise InputError(f"model='timm:{name}' is not known to timm {timm.__version__}")
    network: nn.Module = timm.create_model(name, in_chans=channels, num_classes=num_classes)
    return network


class HuggingFaceLogits(nn.Module):
    """A transformers classifier that takes and returns plain tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        found = self.network(pixel_values=x) if x.is_floating_point() else self.network(x)
        logits: Tensor = found.logits
        return logits


def _hf(name: str, num_classes: int) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "model='hf:...' needs transformers: pip install 'backdoor-ft[hf]'"
        ) from error
    for auto in ("AutoModelForImageClassification", "AutoModelForSequenceClassification"):
        try:
            config = transformers.AutoConfig.from_pretrained(name, num_labels=num_classes)
            return HuggingFaceLogits(getattr(transformers, auto).from_config(config))
        except ValueError:  # not of this task
            continue
        except OSError as error:
            raise InputError(f"model='hf:{name}' cannot be loaded: no network or name") from error
    raise InputError(f"model='hf:{name}' is neither an image nor a text classifier")


def head_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and module of the classifier: the last linear layer.

    Raises
    ------
    InputError
        The network has no linear layer.
    """
    linear = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear]
    if not linear:
        raise InputError("model has no linear layer: the last one is taken as the head")
    return linear[-1]
