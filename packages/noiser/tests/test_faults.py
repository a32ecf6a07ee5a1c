"""Files that a folder of photographs may hold, through the command line as a user meets them."""

import io
import json
import struct

import numpy as np
import pytest
from noiser import VideoEnhancer, cli, enhance, png
from noiser.images import read_picture
from PIL import Image, ImageCms, PngImagePlugin

# Colorants of red, green and blue, adapted to D50, as the profiles of these spaces hold them.
PRIMARIES = {
    "Display P3": (
        (0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407),
    ),
    "Adobe RGB": (
        (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457),
    ),
}  # fmt: skip


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    return caught.value.code


def matrix_profile(name):
    """Write the ICC profile (version 2.1, matrix and gamma 2.2) of a wide-gamut space."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))
    bodies = {
        b"desc": description,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz((0.9642, 1, 0.8249)),
    }
    for letter, values in zip("rgb", PRIMARIES[name]):
        bodies[f"{letter}XYZ".encode()] = xyz(values)
        bodies[f"{letter}TRC".encode()] = curve
    table, blocks, at = b"", b"", 128 + 4 + 12 * len(bodies)
    for key, body in bodies.items():
        table += key + struct.pack(">2I", at, len(body))
        body += bytes(-len(body) % 4)
        blocks, at = blocks + body, at + len(body)
    rest = struct.pack(">I", len(bodies)) + table + blocks
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(rest), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + rest


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("name", sorted(PRIMARIES))
def test_wide_gamut_files_keep_their_profile_and_their_colours(tmp_path, photograph, name, suffix):
    profile = matrix_profile(name)
    assert name in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    dark = Image.fromarray(photograph // 6)
    dark.save(tmp_path / f"a.{suffix}", icc_profile=profile)
    assert run("enhance", tmp_path / f"a.{suffix}", "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / f"a.{suffix}") as image:
        assert image.info["icc_profile"] == profile
        assert np.asarray(image).mean() > 90


@pytest.mark.parametrize("method", ["paper", "closed_form", "plus", "auto"])
@pytest.mark.parametrize("shape", [(1, 2), (1, 40), (40, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_slivers_stay_finite_and_keep_their_type(method, shape, kind):
    level = 1 if kind == "float32" else np.iinfo(kind).max
    image = (np.random.default_rng(0).random((*shape, 3)) * 0.2 * level).astype(kind)
    out = enhance(image, method)
    assert out.shape == image.shape
    assert out.dtype == image.dtype
    assert np.isfinite(out).all()
    assert (out >= 0).all()
    assert (out <= level).all()


@pytest.mark.parametrize("method", ["plus", "paper", "closed_form"])
def test_video_survives_a_fade_to_black(photograph, method):
    frames = [photograph // 5, photograph * 0, photograph * 0, photograph // 5]
    out = list(VideoEnhancer(method).frames(frames))
    assert np.array_equal(out[1], frames[1])
    assert np.abs(out[3].astype(float) - out[0]).mean() < 1


def test_a_folder_of_odd_files(tmp_path, photograph, capsys):
    """The batch goes on, keeps what each file is, and the report says what failed and why."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    dark = Image.fromarray(photograph // 6)
    flat = np.full((20, 30, 3), 40, np.uint8)
    Image.fromarray(flat).save(folder / "constant.png")
    Image.fromarray(flat * 0).save(folder / "black.png")
    Image.fromarray(flat[:1, :1]).save(folder / "dot.png")
    Image.fromarray(photograph[:1] // 6).save(folder / "line.png")
    dark.convert("CMYK").save(folder / "cmyk.jpg")
    dark.quantize(16).save(folder / "palette.png", transparency=3)
    gray = (photograph[..., :1].astype(np.uint16) * 257) // 6
    (folder / "gray16.png").write_bytes(png.encode16(gray))
    dark.save(
        folder / "moving.gif", save_all=True, append_images=[Image.fromarray(photograph // 4)]
    )
    buffer = io.BytesIO()
    dark.save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    buffer = io.BytesIO()
    dark.save(buffer, "PNG")
    (folder / "cut.png").write_bytes(buffer.getvalue()[:-200])

    assert run("enhance", folder, "-o", out, "--report", tmp_path / "report.json") == 4
    files = json.loads((tmp_path / "report.json").read_text())["files"]
    states = {
        name: (f["status"], f["reason"]) for f in files for name in [f["source"].split("/")[-1]]
    }
    failed = {name: reason for name, (status, reason) in states.items() if status == "failed"}
    assert sorted(failed) == ["cut.jpg", "cut.png", "dot.png"]
    assert "1 x 1 pixels" in failed["dot.png"]
    assert all("complete" in failed[name] for name in ("cut.jpg", "cut.png"))
    stderr = capsys.readouterr().err
    assert all(reason in stderr for reason in failed.values())
    assert "Traceback" not in stderr

    for name in ("constant.png", "black.png"):
        assert np.array_equal(read_picture(out / name).pixels, read_picture(folder / name).pixels)
    assert read_picture(out / "cmyk.jpg").pixels.mean() > 90
    alphas = [read_picture(root / "palette.png").alpha for root in (folder, out)]
    assert np.array_equal(*alphas)
    assert set(np.unique(alphas[0])) == {0, 255}
    deep = read_picture(out / "gray16.png")
    assert deep.gray
    assert deep.pixels.dtype == np.uint16
    assert len(np.unique(deep.pixels)) > 150  # of 256 levels in: nothing was merged on the way
    with Image.open(out / "moving.gif") as image:
        assert image.n_frames == 2


@pytest.mark.stress
def test_metadata_of_five_hundred_files(tmp_path, photograph):
    """EXIF with orientation, ICC, XMP and alpha, in every combination, byte for byte."""
    rng = np.random.default_rng(0)
    folder, out, kept = tmp_path / "in", tmp_path / "out", {}
    folder.mkdir()
    for i in range(500):
        suffix = ("jpg", "png", "webp", "tif")[i % 4]
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x8298] = 1 + i % 8, f"camera {i}", "x" * (i % 50)
        icc = matrix_profile(sorted(PRIMARIES)[i % 2]) if rng.random() < 0.7 else None
        xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>%d</x:xmpmeta>" % i
        alpha = suffix != "jpg" and rng.random() < 0.5
        pixels = photograph[: 8 + i % 30, : 9 + i % 40] // 6
        if alpha:
            pixels = np.dstack([pixels, rng.integers(0, 256, pixels.shape[:2], dtype=np.uint8)])
        options = {"exif": exif.tobytes()} if suffix != "tif" else {}
        if icc is not None:
            options["icc_profile"] = icc
        if suffix in ("jpg", "webp"):
            options["xmp"] = xmp
        elif suffix == "png":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
        if suffix == "webp":
            options |= {"lossless": True, "exact": True}
        path = folder / f"{i:03d}.{suffix}"
        Image.fromarray(pixels).save(path, **options)
        kept[path.name] = read_picture(path)
    assert run("enhance", folder, "-o", out) == 0
    for name, before in kept.items():
        after = read_picture(out / name)
        assert (after.exif, after.icc_profile, after.xmp) == (
            before.exif,
            before.icc_profile,
            before.xmp,
        )
        if before.alpha is None:
            assert after.alpha is None
        else:
            assert np.array_equal(after.alpha, before.alpha), name
        assert after.pixels.mean() > before.pixels.mean()
    assert sum(p.exif is not None for p in kept.values()) >= 375
