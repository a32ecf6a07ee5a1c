import numpy as np
import pytest
import torch
from noiser import Enhancer, InputError, SelfRegressionModel, forward
from noiser.enhancement import Settings
from noiser.onnx_export import to_onnx
from noiser.speed import measure_speed
from noiser.torch_backend import from_torch, to_torch


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_the_torch_module_equals_the_reference(model, photograph, padding):
    x = torch.from_numpy(2 * photograph.astype(np.float32) / 255 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        y = to_torch(model, padding)(x)[0].permute(1, 2, 0).numpy()
    assert np.abs((y + 1) / 2 - forward(model, photograph, padding)).max() < 1e-5


def test_weights_go_to_torch_and_back(model):
    again = from_torch(to_torch(model))
    assert all(np.array_equal(a, b) for a, b in zip(model.arrays(), again.arrays()))
    # The names of an independent implementation's file: network.0 and network.3.
    renamed = {f"network.{k}": v for k, v in to_torch(model).state_dict().items()}
    assert np.array_equal(from_torch(renamed).conv2_weight, model.conv2_weight)
    with pytest.raises(InputError, match="4"):
        from_torch({"a": torch.zeros(3)})


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_torch_back_end_gives_the_kernels_image(model, photograph, strength):
    settings = Settings("paper", strength=strength)
    ours = Enhancer(model, settings)(photograph)
    theirs = Enhancer(model, settings, backend="torch")(photograph)
    assert theirs.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_back_ends_are_checked(model):
    with pytest.raises(InputError, match="backend='tpu'"):
        Enhancer(model, Settings("paper"), backend="tpu")
    with pytest.raises(InputError, match="only the method paper"):
        Enhancer(model, Settings("plus"), backend="torch")


@pytest.mark.peer
def test_the_onnx_back_end_gives_the_kernels_image(model, photograph):
    pytest.importorskip("onnxruntime")
    ours = Enhancer(model, Settings("paper"))(photograph)
    theirs = Enhancer(model, Settings("paper"), backend="onnx")(photograph)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.peer
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_the_onnx_graph_equals_the_reference(photograph, padding):
    runtime = pytest.importorskip("onnxruntime")
    model = SelfRegressionModel.initialise(18, seed=1)
    session = runtime.InferenceSession(to_onnx(model, padding), providers=["CPUExecutionProvider"])
    for image in (photograph, photograph[:40, :31]):
        x = (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]
        (y,) = session.run(None, {"image": x})
        expected = forward(model, image, padding)
        assert np.abs(y[0].transpose(1, 2, 0) - expected).max() < 1e-5


def test_speed_names_what_it_measured(model):
    timings = measure_speed(model, 40, 50, repeats=2)
    assert {t.name for t in timings} >= {"noiser plus", "torch eager, same weights"}
    assert all(t.milliseconds >= 0 for t in timings)
    with pytest.raises(InputError, match="repeats=1"):
        measure_speed(model, 40, 50, repeats=1)
