"""Formats of other people's libraries, read back with them."""

import io
import sys

import numpy as np
import pytest
from noiser import InputError, cli
from noiser.images import read_picture, write_picture
from PIL import Image

tifffile = pytest.importorskip("tifffile")


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    return caught.value.code


@pytest.fixture
def deep():
    return np.random.default_rng(0).integers(0, 65536, (9, 7, 4)).astype(np.uint16)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}])
def test_16_bit_colour_tiff_is_read_whole(tmp_path, deep, channels, options):
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    samples = deep[..., :channels]
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", **extra, **options)
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.pixels, deep[..., :3])
    assert (picture.alpha is None) == (channels == 3)
    write_picture(picture, tmp_path / "b.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), samples)


def test_16_bit_planes_apart(tmp_path, deep):
    planes = np.moveaxis(deep[..., :3], 2, 0)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", planes, **options)
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, deep[..., :3])


def test_profile_xmp_and_orientation_of_a_16_bit_tiff_survive(tmp_path, deep):
    icc, xmp = b"\0\0\1\x0cfake profile " * 20, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    extra = [(700, "B", len(xmp), xmp, True), (274, "H", 1, 6, True)]
    options = {"photometric": "rgb", "iccprofile": icc, "extratags": extra}
    tifffile.imwrite(tmp_path / "a.tif", deep[..., :3] // 5, **options)
    assert run("enhance", tmp_path / "a.tif", "-o", tmp_path / "out", "--method", "plus") == 0
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as file:
        tags = file.pages[0].tags
        assert (tags[34675].value, tags[700].value, tags[274].value) == (icc, xmp, 6)
        out = file.pages[0].asarray()
    assert out.dtype == np.uint16
    assert len(np.unique(out)) > 150  # 189 samples: nothing passed through 8 bits


def test_16_bit_png_becomes_a_16_bit_tiff(tmp_path, deep):
    from noiser import png

    (tmp_path / "a.png").write_bytes(png.encode16(deep[..., :1]))
    assert run("enhance", tmp_path / "a.png", "-o", tmp_path / "out", "--format", ".tif") == 0
    assert tifffile.imread(tmp_path / "out" / "a.tif").dtype == np.uint16


@pytest.mark.parametrize("kind", ["float", "pages", "cut", "five"])
def test_other_tiffs_get_one_line(tmp_path, deep, kind):
    path, rgb = tmp_path / "a.tif", deep[..., :3]
    if kind == "float":
        tifffile.imwrite(path, rgb.astype(np.float32), photometric="rgb")
    elif kind == "pages":
        tifffile.imwrite(path, np.stack([rgb, rgb]), photometric="rgb")
    elif kind == "five":
        tifffile.imwrite(path, np.concatenate([rgb, rgb[..., :2]], 2), photometric="rgb")
    else:
        tifffile.imwrite(path, rgb, photometric="rgb", compression="zlib")
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"a\.tif") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)


def minimal_dng(path, bayer):
    """Write an uncompressed linear-response DNG with a colour filter array RGGB."""
    ascii_, byte, short, long, ratio = "s", "B", "H", "I", "2I"
    matrix = [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1]
    extra = [
        (271, ascii_, 0, "noiser", True),
        (272, ascii_, 0, "test", True),
        (33421, short, 2, (2, 2), True),
        (33422, byte, 4, bytes([0, 1, 1, 2]), True),
        (50706, byte, 4, bytes([1, 4, 0, 0]), True),
        (50708, ascii_, 0, "noiser test", True),
        (50717, long, 1, 65535, True),
        (50721, "2i", 9, matrix, True),
        (50728, ratio, 3, [1, 1, 1, 1, 1, 1], True),
        (50778, short, 1, 21, True),
    ]
    tifffile.imwrite(path, bayer, photometric=32803, extratags=extra, metadata=None)


def test_raw_is_developed_to_16_bits(tmp_path):
    pytest.importorskip("rawpy")
    ramp = np.linspace(1000, 30000, 128)
    bayer = np.repeat(ramp[None, :], 64, axis=0).astype(np.uint16)
    minimal_dng(tmp_path / "a.dng", bayer)
    picture = read_picture(tmp_path / "a.dng")
    assert picture.pixels.dtype == np.uint16
    assert picture.pixels.shape[0] in range(60, 65)
    green = picture.pixels[20, 8:-8, 1].astype(float)
    assert (np.diff(green) >= 0).mean() > 0.95  # a ramp stays a ramp
    assert run("enhance", tmp_path / "a.dng", "-o", tmp_path / "out") == 0
    from noiser import png

    assert png.bit_depth((tmp_path / "out" / "a.png").read_bytes()) == 16


def test_heif_is_read(tmp_path, photograph):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(photograph)).save(tmp_path / "a.heic", quality=95)
    pixels = read_picture(tmp_path / "a.heic").pixels
    assert np.abs(pixels.astype(int) - photograph).mean() < 4
    assert run("enhance", tmp_path / "a.heic", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("a.dng", "rawpy", "raw"), ("a.heic", "pillow_heif", "heif"), ("a.tif", "tifffile", "tiff")],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, deep, name, module, extra):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, deep[..., :3], photometric="rgb")
    (tmp_path / name).write_bytes(buffer.getvalue())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"noiser\[{extra}\]"):
        read_picture(tmp_path / name)


@pytest.mark.parametrize("name", ["a.dng", "a.heic"])
def test_damaged_files_get_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"no photograph" * 9)
    with pytest.raises(InputError, match=name) as caught:
        read_picture(tmp_path / name)
    assert "\n" not in str(caught.value)
