import io

import numpy as np
import pytest
from noiser import InputError, png
from noiser.images import read_picture, write_picture
from PIL import Image, PngImagePlugin


def test_8_bit_formats_without_loss_round_trip(tmp_path, photograph):
    for suffix in (".png", ".bmp", ".tif"):
        Image.fromarray(photograph).save(tmp_path / f"in{suffix}")
        picture = read_picture(tmp_path / f"in{suffix}")
        assert np.array_equal(picture.pixels, photograph)
        write_picture(picture, tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as again:
            assert np.array_equal(np.asarray(again), photograph)


def test_alpha_and_gray_are_kept(tmp_path, photograph):
    alpha = photograph[..., :1]
    Image.fromarray(np.concatenate([photograph, alpha], axis=2)).save(tmp_path / "rgba.png")
    Image.fromarray(photograph[..., 0]).save(tmp_path / "gray.png")
    rgba, gray = (read_picture(tmp_path / f"{n}.png") for n in ("rgba", "gray"))
    assert np.array_equal(rgba.alpha, alpha[..., 0])
    assert gray.gray
    write_picture(rgba, tmp_path / "rgba2.png")
    write_picture(gray, tmp_path / "gray2.png")
    with Image.open(tmp_path / "rgba2.png") as a, Image.open(tmp_path / "gray2.png") as g:
        assert np.array_equal(np.asarray(a)[..., 3], alpha[..., 0])
        assert g.mode == "L"
        assert np.array_equal(np.asarray(g), photograph[..., 0])


def test_16_bit_colour_round_trips_with_its_chunks(tmp_path):
    image = np.random.default_rng(0).integers(0, 65536, (9, 7, 4)).astype(np.uint16)
    extra = [(b"tEXt", b"Author\0someone"), (b"pHYs", bytes(9))]
    (tmp_path / "in.png").write_bytes(png.encode16(image, extra))
    picture = read_picture(tmp_path / "in.png")
    write_picture(picture, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "in.png").read_bytes()


def test_exif_icc_and_xmp_survive_byte_for_byte(tmp_path, photograph):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    icc = b"\0\0\1\x0cfake profile " * 20
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    image = Image.fromarray(photograph)
    image.save(tmp_path / "a.jpg", exif=exif, icc_profile=icc, xmp=xmp)
    image.save(tmp_path / "a.png", exif=exif, icc_profile=icc, pnginfo=text)
    for suffix in ("jpg", "png"):
        before = read_picture(tmp_path / f"a.{suffix}")
        write_picture(before, tmp_path / f"b.{suffix}")
        after = read_picture(tmp_path / f"b.{suffix}")
        assert after.exif == before.exif is not None
        assert after.icc_profile == icc
        assert after.xmp == xmp


def test_palette_with_transparency_and_cmyk(tmp_path, photograph):
    image = Image.fromarray(photograph)
    image.quantize(16).save(tmp_path / "p.png", transparency=3)
    image.convert("CMYK").save(tmp_path / "c.jpg")
    palette, cmyk = read_picture(tmp_path / "p.png"), read_picture(tmp_path / "c.jpg")
    assert set(np.unique(palette.alpha)) == {0, 255}
    assert cmyk.notes == ("CMYK converted to sRGB",)
    assert np.abs(cmyk.pixels.astype(int) - photograph).mean() < 8


def test_files_that_cannot_be_read(tmp_path, photograph):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    frames = [Image.fromarray(photograph[:9, :9]), Image.fromarray(photograph[9:18, :9])]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:800])
    for name in ("text.png", "empty.png", "two.gif", "cut.jpg", "missing.png"):
        with pytest.raises(InputError, match=name) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_files_that_cannot_be_written(tmp_path, photograph):
    Image.fromarray(photograph).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    with pytest.raises(InputError, match="suffix"):
        write_picture(picture, tmp_path / "a.xyz")
    with pytest.raises(InputError, match="cannot be written"):
        write_picture(picture, tmp_path / "a.png" / "b.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_neither_applied_nor_lost(tmp_path, photograph, orientation):
    from noiser import cli

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photograph // 6).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with pytest.raises(SystemExit):
        cli.main(["enhance", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.getexif()[0x0112] == orientation
        assert image.size == (112, 96)
        upright = np.asarray(image)[..., 0].astype(float)
    # The pixels stand as they stood: the correlation with the input is high, not with its mirror.
    before = photograph[..., 0].astype(float)
    assert np.corrcoef(upright.ravel(), before.ravel())[0, 1] > 0.9


def test_a_wide_gamut_profile_is_kept(tmp_path, photograph):
    from PIL import ImageCms

    # A profile of another gamut than sRGB, as far as the file is concerned: its bytes must survive.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(photograph).save(tmp_path / "a.png", icc_profile=profile)
    write_picture(read_picture(tmp_path / "a.png"), tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").icc_profile == profile


@pytest.mark.stress
def test_ten_thousand_damaged_files(tmp_path, photograph):
    rng = np.random.default_rng(0)
    samples = []
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "gif"):
        buffer = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        Image.fromarray(photograph[:24, :24]).save(buffer, kind)
        samples.append((suffix, buffer.getvalue()))
    samples.append(("png", png.encode16(photograph[:9, :9].astype(np.uint16) * 200)))
    refused = []
    for i in range(10_000):
        suffix, data = samples[i % len(samples)]
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for _ in range(rng.integers(0, 6)):
            damaged[rng.integers(0, len(damaged))] = rng.integers(0, 256)
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(damaged)
        try:
            read_picture(path)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 3000
    assert not any("\n" in message for message in refused)
