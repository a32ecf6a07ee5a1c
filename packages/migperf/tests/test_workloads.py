"""Framework adapters against the NumPy perceptron; each is skipped where it is not installed."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from migperf.errors import InputError
from migperf.workloads.base import FRAMEWORKS, FrameworkMissing, WorkloadSpec, create
from migperf.workloads.numpy_ import MLP

WIDTH, BATCH = 32, 4


def made(framework: str, mode: str = "infer", **changes: object) -> object:
    module = FRAMEWORKS[framework][0]
    pytest.importorskip(module, reason=f"{framework} is not installed")
    spec = WorkloadSpec(framework, mode=mode, batch=BATCH, width=WIDTH)
    return create(replace(spec, **changes), 1)  # type: ignore[arg-type]


def outputs(framework: str) -> np.ndarray:
    workload = made(framework)
    if framework == "jax":
        return np.asarray(workload.forward(workload.weights, workload.inputs))  # type: ignore[attr-defined]
    if framework == "tensorflow":
        return workload.forward(workload.inputs).numpy()  # type: ignore[attr-defined]
    if framework == "onnx":
        return workload.session.run(None, {"x": workload.inputs})[0]  # type: ignore[attr-defined]
    workload.step(BATCH)  # type: ignore[attr-defined]
    return workload.request.get_output_tensor(0).data.copy()  # type: ignore[attr-defined]


@pytest.mark.parametrize("framework", ["onnx", "jax", "tensorflow", "openvino"])
def test_inference_equals_numpy(framework: str) -> None:
    base = MLP(WIDTH, batch=BATCH)
    x = base.inputs
    for weight in base.weights[:-1]:
        x = np.maximum(x @ weight, 0)
    np.testing.assert_allclose(outputs(framework), x @ base.weights[-1], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_one_step_of_training_equals_numpy(framework: str) -> None:
    base = MLP(WIDTH, train=True, batch=BATCH)
    _, gradients = base.loss_and_gradients(base.inputs, base.targets)
    workload = made(framework, "train")
    workload.step(BATCH)  # type: ignore[attr-defined]
    for found, weight, gradient in zip(
        workload.weights, base.weights, gradients, strict=True  # type: ignore[attr-defined]
    ):  # fmt: skip
        np.testing.assert_allclose(np.asarray(found), weight - 0.01 * gradient, atol=1e-5)


@pytest.mark.parametrize("framework", ["onnx", "openvino"])
def test_training_where_there_is_none_is_refused(framework: str) -> None:
    with pytest.raises(InputError, match=f"framework {framework}.*mlp with infer"):
        made(framework, "train")


@pytest.mark.parametrize("framework", ["jax", "tensorflow", "onnx", "openvino", "torch"])
def test_unknown_models_are_refused(framework: str) -> None:
    with pytest.raises((InputError, FrameworkMissing), match="no_such_net"):
        made(framework, model="no_such_net")


@pytest.mark.parametrize(
    ("model", "module"),
    [
        ("mlp", "torch"),
        ("convnet", "torch"),
        ("resnet18", "timm"),
        ("hf:distilbert", "transformers"),
    ],
)
def test_torch_models_infer_without_gradients_and_train(model: str, module: str) -> None:
    pytest.importorskip(module, reason=f"{module} is not installed")
    torch = pytest.importorskip("torch")
    changes = {"model": model, "image": 32, "sequence": 8}
    server = made("torch", **changes)
    server.step(BATCH)  # type: ignore[attr-defined]
    assert not server.model.training  # type: ignore[attr-defined]
    assert all(p.grad is None for p in server.model.parameters())  # type: ignore[attr-defined]
    trainer = made("torch", "train", **changes)
    before = [p.detach().clone() for p in trainer.model.parameters()]  # type: ignore[attr-defined]
    trainer.step(BATCH)  # type: ignore[attr-defined]
    moved = [
        not torch.equal(a, b)
        for a, b in zip(before, trainer.model.parameters(), strict=True)  # type: ignore[attr-defined]
    ]
    assert any(moved)


def test_out_of_memory_of_torch_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from migperf.errors import WorkloadOutOfMemory

    torch = pytest.importorskip("torch")
    workload = made("torch")

    def fails(batch: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(workload, "_step", fails)
    with pytest.raises(WorkloadOutOfMemory, match="batch 4: CUDA out of memory"):
        workload.step(BATCH)  # type: ignore[attr-defined]


def test_every_adapter_is_importable_by_name() -> None:
    for _, adapter in FRAMEWORKS.values():
        if adapter == ".torch_" and importlib.util.find_spec("torch") is None:
            continue  # its classes derive from torch.nn.Module
        assert hasattr(importlib.import_module(f"migperf.workloads{adapter}"), "build")
