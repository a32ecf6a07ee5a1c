import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from noiser import (
    InputError,
    SelfRegressionModel,
    apply_network,
    collect_statistics,
    forward,
    native,
    patch_statistics,
)

pytestmark = pytest.mark.native
SETS = ["avx512", "avx2", "portable"]


@pytest.fixture(params=SETS)
def instructions(request, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, request.param)
    try:
        native.instruction_set()
    except InputError as error:
        pytest.skip(str(error))
    return request.param


def as_kind(photograph, kind):
    scale = {"uint8": 1, "uint16": 211, "float32": 1 / 255, "float64": 1 / 255}[kind]
    return (photograph * scale).astype(kind)


def test_the_compiled_part_is_installed():
    assert importlib.util.find_spec("noiser._native") is not None


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
def test_statistics_equal_the_reference(photograph, instructions, kind, padding):
    image = as_kind(photograph, kind)
    expected, found = patch_statistics(image, padding), collect_statistics(image, padding)
    if image.dtype.kind == "u":
        assert np.array_equal(found.mean, expected.mean)
        assert np.array_equal(found.covariance, expected.covariance)
    else:
        assert np.abs(found.mean - expected.mean).max() < 1e-14
        assert np.abs(found.covariance - expected.covariance).max() < 1e-14


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 6, 18, 32])
def test_network_equals_the_reference(photograph, instructions, kind, padding, channels):
    # Bound of the single-precision kernels: 1e-5 of full scale, far below one level of 8 bits.
    model = SelfRegressionModel.initialise(channels, seed=channels)
    image = as_kind(photograph[:40], kind)
    out = apply_network(model, image, collect_statistics(image, padding), padding)
    assert np.abs(out - forward(model, image, padding)).max() < 1e-5


def test_integer_outputs_are_the_rounded_values(photograph, instructions, model):
    measured = collect_statistics(photograph)
    exact = forward(model, photograph)
    for kind, white in (("uint8", 255), ("uint16", 65535)):
        out = apply_network(model, photograph, measured, out=np.empty(photograph.shape, dtype=kind))
        assert np.abs(out - exact * white).max() < 0.5 + 1e-5 * white


def test_very_dark_16_bit_images_keep_their_precision(instructions, model):
    image = np.random.default_rng(0).integers(0, 12, (50, 60, 3)).astype(np.uint16)
    out = apply_network(model, image, collect_statistics(image))
    assert np.abs(out - forward(model, image)).max() < 1e-5


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 9), st.integers(2, 11), st.just(3)),
    ),
    st.integers(1, 10),
    st.integers(1, 3),
    st.sampled_from(["reflect", "zeros"]),
)
def test_bands_and_threads_do_not_change_a_bit(image, tile, threads, padding):
    model = SelfRegressionModel.initialise(4, seed=9)
    whole = collect_statistics(image, padding)
    banded = collect_statistics(image, padding, tile, threads)
    assert np.array_equal(whole.covariance, banded.covariance)
    assert np.array_equal(whole.mean, banded.mean)
    expected = apply_network(model, image, whole, padding)
    assert np.array_equal(apply_network(model, image, whole, padding, tile, threads), expected)
    assert np.abs(expected - forward(model, image, padding)).max() < 1e-4


def test_wide_images_have_no_seams_between_strips(instructions, model):
    image = np.random.default_rng(1).integers(0, 256, (7, 1600, 3)).astype(np.uint8)
    out = apply_network(model, image, collect_statistics(image))
    assert np.abs(out - forward(model, image)).max() < 1e-5


def test_float_bands_and_threads_do_not_change_a_bit(photograph, instructions, model):
    image = as_kind(np.tile(photograph, (3, 1, 1)), "float32")
    whole = collect_statistics(image)
    for tile, threads in ((1, 1), (50, 2), (None, 3)):
        banded = collect_statistics(image, tile=tile, threads=threads)
        assert np.array_equal(whole.covariance, banded.covariance)
        out = apply_network(model, image, whole, tile=tile, threads=threads)
        assert np.array_equal(out, apply_network(model, image, whole))


def test_gelu_and_tanh_are_within_their_bounds(instructions):
    """One hidden channel that passes its input, one output that passes it on."""
    values = np.linspace(-3, 3, 60_000).reshape(200, 100, 3)
    first = np.zeros((1, 3, 3, 3), np.float32)
    first[0, 0, 1, 1] = 1
    second = np.zeros((3, 1, 3, 3), np.float32)
    second[:, 0, 1, 1] = (4.0, 0.5, 0.02)
    zero = np.zeros(1, np.float32), np.zeros(3, np.float32)
    model = SelfRegressionModel(first, zero[0], second, zero[1])
    out = apply_network(model, values, collect_statistics(values), out=np.empty(values.shape))
    assert np.abs(out - forward(model, values)).max() < 1.2e-5


def test_memory_maps_in_and_out(tmp_path, photograph, model):
    source = np.memmap(tmp_path / "in", np.uint8, "w+", shape=(600, 112, 3))
    source[:] = np.tile(photograph, (7, 1, 1))[:600]
    target = np.memmap(tmp_path / "out", np.uint8, "w+", shape=source.shape)
    measured = collect_statistics(source)
    apply_network(model, source, measured, out=target)
    expected = apply_network(model, np.array(source), measured, out=np.empty_like(target))
    assert np.array_equal(target, expected)


def test_numpy_takes_over_without_the_compiled_part(photograph, model, monkeypatch):
    measured = collect_statistics(photograph)
    fast = apply_network(model, photograph, measured, out=np.empty_like(photograph))
    monkeypatch.setattr(native, "_native", None)
    native._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="compiled part"):
        slow = apply_network(model, photograph, measured, out=np.empty_like(photograph))
    assert np.abs(fast.astype(int) - slow).max() <= 1
    assert native.instruction_set() == "numpy"


def test_the_variable_is_checked(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "mmx")
    with pytest.raises(InputError, match="NOISER_INSTRUCTIONS='mmx'"):
        native.instruction_set()


def test_bad_arrays_and_options(photograph, model):
    measured = collect_statistics(photograph)
    with pytest.raises(InputError, match="threads=0"):
        collect_statistics(photograph, threads=0)
    for out in (np.empty((2, 2, 3)), np.empty(photograph.shape, np.int32)):
        with pytest.raises(InputError, match="out has shape"):
            apply_network(model, photograph, measured, out=out)


def test_lookup_and_unfilter_equal_numpy(photograph, monkeypatch):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (3, 256)).astype(np.uint8)
    expected = np.stack([table[c][photograph[..., c]] for c in range(3)], axis=2)
    assert np.array_equal(native.lookup(photograph, table, 2), expected)
    from noiser import png

    lines = rng.integers(0, 256, (25, 1 + 6 * 11)).astype(np.uint8)
    lines[:, 0] %= 5
    fast = png.unfilter(lines, 6, "x")
    monkeypatch.setenv(native.VARIABLE, "numpy")
    assert np.array_equal(png.unfilter(lines, 6, "x"), fast)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(96, 112), (61, 37), (1, 9), (260, 300)])
def test_plus_equals_its_reference(photograph, instructions, kind, shape):
    from noiser import enhance
    from noiser.tone import light, measure_curve

    tiled = np.tile(photograph, (3, 3, 1))[: shape[0], : shape[1]] // 5
    image = as_kind(tiled, kind)
    value = image / {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    curve, powered = measure_curve(value, 0.5, 0.5)
    expected = light(curve, powered)
    found = enhance(image, "plus", threads=2) / {"uint8": 255, "uint16": 65535}.get(kind, 1)
    # Half a level of rounding, and bins of the luma that single precision fills otherwise.
    assert np.abs(found - expected).max() < (0.5 / 255 if kind == "uint8" else 0) + 4e-3
    assert np.array_equal(enhance(image, "plus", threads=1), enhance(image, "plus", threads=3))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (7, 24), (18, 33)])
def test_training_gradients_equal_the_reference(instructions, channels, size):
    from noiser import noise_image
    from noiser.training import loss_and_gradient

    arrays = SelfRegressionModel.initialise(channels, seed=4).arrays()
    x = noise_image(np.random.default_rng(5), size=size)
    l1, tv, (grad1, _, grad2, grad_bias) = loss_and_gradient(arrays, x, 1.5)
    weights = tuple(arrays[k].copy() for k in (0, 2, 3))
    training = native.NativeTraining(weights, 1.5, 2e-4, (0.5, 0.999))
    losses = training.run(np.stack([x]))
    assert losses[0] == pytest.approx((l1, tv), abs=2e-6)
    expected = np.concatenate([grad1.ravel(), grad2.ravel(), grad_bias])
    assert np.abs(training.gradients - expected).max() < 5e-5 * np.abs(expected).max()


def test_many_native_steps_stay_with_the_numpy_steps(instructions, monkeypatch):
    from noiser import TrainingLog, train

    logs = [TrainingLog(), TrainingLog()]
    train(channels=5, steps=120, size=20, seed=2, learning_rate=1e-3, log=logs[0])
    monkeypatch.setenv(native.VARIABLE, "numpy")
    train(channels=5, steps=120, size=20, seed=2, learning_rate=1e-3, log=logs[1])
    assert np.abs(np.array(logs[0].l1) - logs[1].l1).max() < 2e-3
    assert np.abs(np.array(logs[0].tv) - logs[1].tv).max() < 2e-3
