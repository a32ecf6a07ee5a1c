import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from noiser import InputError, png
from PIL import Image

SAMPLES = hnp.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)))


@settings(max_examples=50, deadline=None)
@given(SAMPLES)
def test_round_trip(image):
    assert np.array_equal(png.decode16(png.encode16(image)), image)


def test_gray_files_of_pillow_read_alike_in_both_directions():
    plane = np.random.default_rng(0).integers(0, 65536, (20, 31)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "PNG")
    assert np.array_equal(png.decode16(buffer.getvalue())[..., 0], plane)
    with Image.open(io.BytesIO(png.encode16(plane[..., None]))) as image:
        assert np.array_equal(np.asarray(image).astype(np.uint16), plane)


def test_colour_files_have_the_high_byte_that_pillow_sees():
    image = np.random.default_rng(1).integers(0, 65536, (15, 8, 3)).astype(np.uint16)
    with Image.open(io.BytesIO(png.encode16(image))) as seen:
        assert np.abs(np.asarray(seen).astype(int) - image // 256).max() <= 1


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4])
def test_every_row_filter_against_pillow(kind):
    """Filter bytes of an 8-bit RGBA file, decoded by Pillow, are ours at 4 bytes per pixel."""
    rng = np.random.default_rng(kind)
    lines = rng.integers(0, 256, (6, 1 + 4 * 7)).astype(np.uint8)
    lines[:, 0] = kind
    header = struct.pack(">IIBBBBB", 7, 6, 8, 6, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    data = png.SIGNATURE + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts
    )
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image).reshape(6, -1)
    assert np.array_equal(png.unfilter(lines, 4, "test"), expected)


def test_a_ramp_keeps_its_65536_levels():
    ramp = np.arange(65536, dtype=np.uint16).reshape(64, 1024, 1)
    assert len(np.unique(png.decode16(png.encode16(ramp)))) == 65536


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_files_are_one_line(data):
    whole = png.encode16(np.arange(60, dtype=np.uint16).reshape(4, 5, 3) * 997)
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InputError) as caught:
        png.decode16(bytes(damaged), "x.png")
    assert "\n" not in str(caught.value)
