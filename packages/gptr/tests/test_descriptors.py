"""Oracles: OpenCV's Canny, NumPy moments, closed forms."""

import cv2
import numpy as np
import pytest
import torch
from gptr._native_loader import native
from gptr.gestalt.descriptors import _describe_numpy, canny, describe, describe_op
from hypothesis import given, settings
from hypothesis import strategies as st


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 1.5)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    cv2.line(image, (0, 3), (width, height - 5), (0, 0, 0), 2)
    return image


@given(st.integers(0, 10**6), st.integers(3, 70), st.integers(3, 70), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_canny_is_opencvs_bit_for_bit(seed, height, width, low):
    grey = random_image(seed, height, width)[..., 0].copy()
    theirs = cv2.Canny(grey, low, low + 90) > 0
    assert np.array_equal(canny(grey, low, low + 90), theirs)


@pytest.mark.native
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize(
    ("stride", "rows", "columns"), [(8, 3, 5), (16, 2, 2), (32, 1, 3), (2, 7, 9)]
)
def test_native_equals_numpy(isa, stride, rows, columns, monkeypatch):
    if native() is None or isa not in native().available():
        pytest.skip(f"no {isa} code here")
    monkeypatch.setenv("GPTR_ISA", isa)
    image = random_image(stride + rows, stride * rows, stride * columns)
    found = [t[0].numpy() for t in describe_op(torch.from_numpy(image)[None], stride)]
    wanted = _describe_numpy(image, stride, 60, 160)
    assert np.abs(found[0] - wanted[0]).max() <= 1e-6
    assert np.abs(found[1] - wanted[1]).max() <= 1e-6
    assert np.array_equal(found[2], wanted[2])
    assert np.array_equal(found[3], wanted[3])


@pytest.mark.native
def test_batches_and_threads_agree():
    torch.set_num_threads(2)
    images = np.stack([random_image(i, 64, 96) for i in range(5)])
    together = describe_op(torch.from_numpy(images), 16)
    torch.set_num_threads(1)
    for b in range(5):
        alone = describe_op(torch.from_numpy(images[b : b + 1]), 16)
        assert all(torch.equal(t[b : b + 1], a) for t, a in zip(together, alone, strict=True))


def test_moments_are_numpys(drawing):
    colour = describe([drawing[:144, :192]], 16).colour[0]
    cell = drawing[16:32, 32:48].reshape(-1, 3).astype(float) / 255
    node = colour[1 * 12 + 2].numpy()
    assert np.allclose(node[:3], cell.mean(0), atol=1e-6)
    assert np.allclose(node[3:6], cell.std(0), atol=1e-5)
    skew = np.cbrt(((cell - cell.mean(0)) ** 3).mean(0))
    assert np.allclose(node[6:], skew, atol=1e-4)


def test_opcheck():
    rgb = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    torch.library.opcheck(torch.ops.gptr.describe.default, (rgb, 16, 60, 160))


def test_padding_and_company_change_nothing(drawing):
    alone = describe([drawing], 16)
    wide = np.full((300, 280, 3), 7, np.uint8)
    together = describe([drawing, wide], 16, (320, 320))
    rows, columns = alone.grid
    inside = together.packed()[0].view(*together.grid, 15)[:rows, :columns]
    assert torch.equal(inside.reshape(-1, 15), alone.packed()[0])
    assert int(together.valid[0].sum()) == rows * columns


@pytest.mark.parametrize(
    ("shape", "stride", "message"),
    [((1, 30, 32, 3), 16, "multiples of 16"), ((1, 32, 32, 4), 16, "B, H, W, 3"),
     ((1, 32, 32, 3), 1, "stride=1")],
)  # fmt: skip
def test_bad_input_is_named(shape, stride, message):
    with pytest.raises(ValueError, match=message):
        describe_op(torch.zeros(shape, dtype=torch.uint8), stride)


def test_without_the_extension(monkeypatch, drawing):
    with_code = describe([drawing], 16).packed()
    monkeypatch.setenv("GPTR_ISA", "torch")
    assert torch.allclose(describe([drawing], 16).packed(), with_code, atol=1e-6)
    monkeypatch.setenv("GPTR_ISA", "mmx")
    with pytest.raises(ValueError, match="GPTR_ISA='mmx'"):
        describe([drawing], 16)
