"""The contract of a workload, and the adapters by framework name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InputError, MigperfError

__all__ = ["FRAMEWORKS", "FrameworkMissing", "Workload", "WorkloadSpec", "create"]

FRAMEWORKS = {
    "numpy": ("numpy", ".numpy_"),
    "torch": ("torch", ".torch_"),
    "onnx": ("onnxruntime", ".onnx_"),
    "jax": ("jax", ".jax_"),
    "tensorflow": ("tensorflow", ".tensorflow_"),
    "openvino": ("openvino", ".openvino_"),
}


class FrameworkMissing(MigperfError):  # noqa: N818 - reads as the fault it is
    """A framework that the study asks for is not installed (exit code 2)."""

    exit_code = 2


@dataclass(frozen=True)
class WorkloadSpec:
    """What to run.

    Parameters
    ----------
    framework : str
        One of `FRAMEWORKS`.
    model : str
        ``mlp`` in every framework. With torch also ``convnet``, any timm model (``resnet18``,
        ``vit_tiny_patch16_224``) and ``hf:TYPE`` for a transformers model type (``hf:bert``).
    mode : str
        ``infer`` or ``train``.
    batch : int
        Samples per step.
    image : int
        Edge of the square input image in pixels.
    sequence : int
        Sequence length of language models.
    width : int
        Width of ``mlp``.
    """

    framework: str = "numpy"
    model: str = "mlp"
    mode: str = "infer"
    batch: int = 1
    image: int = 64
    sequence: int = 64
    width: int = 512

    def __post_init__(self) -> None:
        if self.framework not in FRAMEWORKS:
            raise InputError.of("framework", self.framework, ", ".join(FRAMEWORKS))
        if self.mode not in ("infer", "train"):
            raise InputError.of("mode", self.mode, "infer, train")
        for name in ("batch", "image", "sequence", "width"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 1 << 20:
                raise InputError.of(name, value, "an integer from 1 to 1048576")

    @classmethod
    def from_dict(cls, data: object) -> WorkloadSpec:
        """Read a mapping of a study file."""
        fields = list(cls.__dataclass_fields__)
        if not isinstance(data, dict) or not set(data) <= set(fields):
            raise InputError.of("workload", data, f"a mapping with {', '.join(fields)}")
        for name in ("framework", "model", "mode"):
            if not isinstance(data.get(name, ""), str):
                raise InputError.of(f"workload.{name}", data[name], "a text")
        return cls(**data)

    @property
    def label(self) -> str:
        """Name in results: model, its size where that is not the default, and framework."""
        field, letter = ("image", "i")
        if self.model == "mlp":
            field, letter = ("width", "w")
        elif self.model.startswith("hf:"):
            field, letter = ("sequence", "s")
        size = getattr(self, field)
        usual = type(self).__dataclass_fields__[field].default
        shown = "" if size == usual else f"-{letter}{size}"
        return f"{self.model}{shown}-{self.framework}"


class Workload(Protocol):
    """One step of inference or training; everything is set up when the object exists."""

    def step(self, batch: int) -> None:
        """Run one batch to completion; asynchronous work is waited for."""


def create(spec: WorkloadSpec, threads: int) -> Workload:
    """Set a workload up in this process.

    Parameters
    ----------
    spec : WorkloadSpec
        What to run.
    threads : int
        Threads that the framework may use: the cores of the grant.

    Raises
    ------
    FrameworkMissing
        The framework is not installed.
    InputError
        The framework has no such model.
    """
    module, adapter = FRAMEWORKS[spec.framework]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise FrameworkMissing(
            f"framework {spec.framework!r}: {error}; install it with "
            f"pip install 'migperf[{spec.framework}]'"
        ) from None
    builder: Any = importlib.import_module(adapter, __package__)
    workload: Workload = builder.build(spec, threads)
    return workload
