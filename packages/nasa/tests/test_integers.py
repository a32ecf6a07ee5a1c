import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nasa import Architecture, SearchSpace
from nasa._native_loader import available
from nasa.data import load_digits
from nasa.functional import adder_conv2d, conv2d_int8, sad_conv2d
from nasa.nn import AdderConv2d, ShiftConv2d
from nasa.quantization import (
    Bits,
    QuantizedConv2d,
    export_packed,
    load_packed,
    pack_bits,
    quantize,
    shift_codes,
    shift_weights,
    split_powers,
    unpack_bits,
)
from nasa.training import Recipe, evaluate, recalibrate_batch_norm, train_from_scratch
from torch.nn import functional as F


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=50))
def test_packing_round_trips(bits, values):
    small = np.array([v % 2**bits for v in values], dtype=np.int64)
    packed = pack_bits(small, bits)
    assert packed.nbytes == -(-len(values) * bits // 8)
    assert unpack_bits(packed, bits, len(values)).tolist() == small.tolist()


def test_a_value_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit in 3 bits"):
        pack_bits(np.array([8]), 3)


@given(st.integers(3, 6), st.integers(0, 2**16))
def test_shift_codes_round_trip(bits, seed):
    source = np.random.default_rng(seed)
    exponent = source.integers(0, 2 ** (bits - 1), 40)
    weights = np.where(source.random(40) < 0.5, -1.0, 1.0) * 2.0**-exponent
    # the code of the smallest negative power stands for zero
    weights[(weights < 0) & (exponent == 2 ** (bits - 1) - 1)] = 0.0
    codes = shift_codes(torch.from_numpy(weights), bits)
    assert codes.max() < 2**bits
    assert np.array_equal(shift_weights(codes, bits), weights)


def test_planes_of_powers_sum_to_the_weights_over_the_whole_range():
    torch.manual_seed(0)
    weight = torch.sign(torch.randn(6, 5, 3, 3)) * 2.0 ** -torch.randint(0, 32, (6, 5, 3, 3))
    planes, exponents = split_powers(weight)
    total = sum(p.double() * 2.0**e for p, e in zip(planes, exponents.tolist(), strict=True))
    assert torch.equal(total, weight.double())
    assert planes.dtype == torch.int8
    assert len(planes) == 5  # 32 exponents in windows of seven


@pytest.mark.native
@pytest.mark.parametrize("isa", available())
@pytest.mark.parametrize("filters", [1, 7, 16, 24, 33, 48, 56, 64, 130])
def test_integer_kernels_are_exact_for_every_remainder_of_filters(monkeypatch, isa, filters):
    monkeypatch.setenv("NASA_ISA", isa)
    source = torch.Generator().manual_seed(filters)
    layers = ((8, 1, 0, 1), (13, 1, 0, 1), (5, 3, 1, 1), (4, 3, 2, 2))
    for channels, kernel, padding, groups in layers:
        x = torch.randint(-128, 128, (2, channels, 7, 6), generator=source, dtype=torch.int8)
        shape = (filters * groups, channels // groups, kernel, kernel)
        w = torch.randint(-128, 128, shape, generator=source, dtype=torch.int8)
        products = F.conv2d(x.double(), w.double(), None, 1, padding, 1, groups)
        assert torch.equal(conv2d_int8(x, w, 1, padding, groups=groups).double(), products)
        apart = adder_conv2d(x.double(), w.double(), 1, padding, groups=groups, exact=True)
        assert torch.equal(sad_conv2d(x, w, 1, padding, groups=groups).double(), apart)


def test_integer_shift_layer_is_bit_exact_against_float64():
    torch.manual_seed(0)
    layer = ShiftConv2d(8, 12, 3, padding=1, weight_bits=4)
    x = torch.randn(2, 8, 6, 6)
    integer = QuantizedConv2d.of(layer, float(x.abs().max()), Bits())
    q = torch.clamp(torch.round(x / integer.scale), -31, 31).double()
    truth = F.conv2d(q, layer.quantized_weight().detach().double(), None, 1, 1) * integer.scale
    assert torch.allclose(integer(x).double(), truth, rtol=1e-6, atol=1e-9)


def test_integer_adder_layer_needs_one_scale():
    torch.manual_seed(0)
    layer = AdderConv2d(8, 12, 3, padding=1)
    x = torch.randn(2, 8, 6, 6) * 5
    integer = QuantizedConv2d.of(layer, float(x.abs().max()), Bits(adder=8))
    assert integer.scale == integer.weight_scale
    error = (integer(x) - layer(x)).abs().max() / layer(x).abs().max()
    assert error < 0.02


@pytest.fixture(scope="module")
def trained():
    train, test = load_digits()
    architecture = Architecture(SearchSpace.from_yaml("digits"), (1, 3, 5, 1))
    net, _ = train_from_scratch(architecture, train, None, Recipe(epochs=8, batch_size=64))
    recalibrate_batch_norm(net, [x for x, _ in train.batches(256, 0)])
    return net, train, test


def test_integer_network_keeps_most_of_the_accuracy(trained):
    net, train, test = trained
    before, _ = evaluate(net, test)
    integer = quantize(net, [train.images])
    after, _ = evaluate(integer, test)
    assert before > 0.9
    assert after > before - 0.05
    kinds = {m.kind for m in integer.modules() if isinstance(m, QuantizedConv2d)}
    assert kinds == {"conv", "shift", "adder"}


def test_packed_file_is_small_and_loads_the_quantised_weights(trained, tmp_path):
    net, _, test = trained
    sizes = export_packed(net, tmp_path / "n.safetensors")
    assert sizes["packed_bytes"] < sizes["float32_bytes"] / 4 + 64
    again = load_packed(tmp_path / "n.safetensors")
    assert evaluate(again, test)[0] > 0.9
    for name, module in net.named_modules():
        if isinstance(module, ShiftConv2d):
            loaded = again.get_submodule(name).quantized_weight()
            assert torch.equal(loaded, module.quantized_weight())
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="cannot be read"):
        load_packed(tmp_path / "bad.safetensors")


def test_non_finite_weights_and_empty_calibration_are_refused(trained):
    net, train, _ = trained
    with pytest.raises(ValueError, match="at least one batch"):
        quantize(net, [])
    import copy

    broken = copy.deepcopy(net)
    broken.stem[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"'stem.0' has weights that are NaN"):
        quantize(broken, [train.images])
    with pytest.raises(ValueError, match="shift=9"):
        Bits(shift=9)
