"""PyTorch: perceptron, a small residual net, timm and transformers models with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import InputError, WorkloadOutOfMemory
from .base import FrameworkMissing, WorkloadSpec

__all__ = ["TorchWorkload", "build"]


class _Block(nn.Module):
    """Two 3x3 convolutions with a residual connection (He et al., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(x + self.norms[1](self.second(y)))


def _convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), _Block(32), nn.Conv2d(32, 64, 3, 2, 1),
        _Block(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def _mlp(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(width, width, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10, bias=False))


def _timm(name: str) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise FrameworkMissing(
            f"model {name!r}: timm cannot be used ({error}); install it with "
            "pip install 'migperf[timm]'"
        ) from None
    if name not in timm.list_models():
        raise InputError.of("model of framework torch", name, "mlp, convnet, hf:TYPE, a timm model")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
    return model


def _transformer(kind: str) -> nn.Module:
    try:
        from transformers import AutoConfig, AutoModelForSequenceClassification
    except ImportError as error:
        raise FrameworkMissing(
            f"model 'hf:{kind}': {error}; install it with pip install 'migperf[transformers]'"
        ) from None
    try:
        config = AutoConfig.for_model(kind, num_labels=5)
        model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    except (ValueError, KeyError) as error:
        raise InputError.of(
            "model of framework torch", f"hf:{kind}", f"a model type ({error})"
        ) from None
    return model


class TorchWorkload:
    """A module with its inputs, on the GPU where the grant shows one, else on the CPU.

    Parameters
    ----------
    spec : WorkloadSpec
        What to run.
    threads : int
        Intra-op threads; inter-op threads are set to one.
    """

    def __init__(self, spec: WorkloadSpec, threads: int) -> None:
        torch.set_num_threads(threads)
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.is_text = spec.model.startswith("hf:")
        model: nn.Module
        shape: tuple[int, ...]
        if spec.model == "mlp":
            model, shape = _mlp(spec.width), (spec.batch, spec.width)
        elif spec.model == "convnet":
            model, shape = _convnet(), (spec.batch, 3, spec.image, spec.image)
        elif self.is_text:
            model, shape = _transformer(spec.model[3:]), (spec.batch, spec.sequence)
        else:
            model, shape = _timm(spec.model), (spec.batch, 3, spec.image, spec.image)
        self.train = spec.mode == "train"
        self.model = model.to(self.device).train(self.train)
        if self.is_text:
            self.inputs = torch.randint(0, 1000, shape, device=self.device)
        else:
            self.inputs = torch.randn(shape, device=self.device)
        classes = 5 if self.is_text else 10
        self.targets = torch.randint(0, classes, (spec.batch,), device=self.device)
        self.optimizer: Any = None
        if self.train:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def step(self, batch: int) -> None:
        """Run one batch and wait for the device."""
        try:
            self._step(batch)
        except torch.OutOfMemoryError as error:
            raise WorkloadOutOfMemory(f"batch {batch}: {str(error).splitlines()[0]}") from None
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise WorkloadOutOfMemory(f"batch {batch}: {str(error).splitlines()[0]}") from None

    def _step(self, batch: int) -> None:
        inputs = self.inputs[:batch]
        if self.train:
            output = self.model(inputs)
            logits = output.logits if self.is_text else output
            loss = nn.functional.cross_entropy(logits, self.targets[:batch])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        else:
            with torch.inference_mode():
                self.model(inputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def build(spec: WorkloadSpec, threads: int) -> TorchWorkload:
    """Set up the workload; see `migperf.workloads.base.create`."""
    return TorchWorkload(spec, threads)
