"""Reading and writing image files without losing what belongs to them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from noiser import decoders, png
from noiser.errors import InputError
from noiser.files import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Num

# Suffix to Pillow's format name; these can be written.
WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
_BITS_PER_SAMPLE = 258  # of TIFF
_XMP_KEYWORD = "XML:com.adobe.xmp"


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels of an image file, and what else the file held.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 or uint16, encoded as in the file, not rotated
    alpha : (height, width) of the same type, or None
    gray : whether the file was gray; it is written gray again
    exif, icc_profile, xmp : metadata as bytes, None where the file has none
    png_chunks : descriptive chunks of a 16-bit PNG, copied as they are
    orientation : of a 16-bit TIFF, copied as it is
    notes : what had to be converted, in words
    """

    pixels: Num[np.ndarray, "height width 3"]
    alpha: Num[np.ndarray, "height width"] | None = None
    gray: bool = False
    exif: bytes | None = None
    icc_profile: bytes | None = None
    xmp: bytes | None = None
    png_chunks: list[tuple[bytes, bytes]] = field(default_factory=list)
    orientation: int | None = None
    notes: tuple[str, ...] = ()

    def with_pixels(self, pixels: Num[np.ndarray, "height width 3"]) -> Picture:
        """Return the same picture with other pixels."""
        return replace(self, pixels=pixels)


def read_picture(path: Path | str) -> Picture:
    """Read an image file.

    Parameters
    ----------
    path : PNG and TIFF (8 and 16 bits), JPEG, WebP, BMP, HEIF, camera RAW or whatever else Pillow
        reads; TIFF of 16 bits, HEIF and RAW need the extras tiff, heif and raw

    Returns
    -------
    Picture

    Raises
    ------
    InputError
        There is no such file, it is no image, it is damaged, or it holds several frames.
    """
    path = Path(path)
    name = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"image={name!r} cannot be read ({error.strerror}): name an existing image file"
        ) from error
    suffix = path.suffix.lower()
    if png.bit_depth(data) == 16:
        return _from_png16(data, name)
    if suffix in decoders.RAW_SUFFIXES:
        return Picture(decoders.decode_raw(data, name), notes=("developed by LibRaw to sRGB",))
    if suffix in decoders.HEIF_SUFFIXES:
        decoders.register_heif()
    try:
        with Image.open(io.BytesIO(data)) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise InputError(
                    f"image={name!r} holds {frames} frames: save the one you want as a single image"
                )
            if _has_16_bit_colours(image):
                return _from_tiff16(data, name)
            image.load()
            return _from_pillow(image, name)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise InputError(_unreadable(name, error)) from error


def _unreadable(name: str, error: Exception) -> str:
    return (
        f"image={name!r} is not a readable image ({error.__class__.__name__}):"
        " name a complete PNG, JPEG, WebP, TIFF or BMP file"
    )


def _has_16_bit_colours(image: Image.Image) -> bool:
    """Whether this is a TIFF of which Pillow would keep the upper 8 bits only."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return len(bits) > 1 and max(bits) > 8


def _from_tiff16(data: bytes, name: str) -> Picture:
    samples, metadata = decoders.decode_tiff16(data, name)
    alpha = samples[:, :, 3].copy() if samples.shape[2] == 4 else None
    return Picture(np.ascontiguousarray(samples[:, :, :3]), alpha, **metadata)


def _from_png16(data: bytes, name: str) -> Picture:
    samples = png.decode16(data, name)
    kept = [(kind, body) for kind, body in png.chunks(data, name) if kind in png.KEPT_CHUNKS]
    gray = samples.shape[2] < 3
    colours = np.repeat(samples[:, :, :1], 3, axis=2) if gray else samples[:, :, :3]
    alpha = samples[:, :, -1] if samples.shape[2] in (2, 4) else None
    return Picture(np.ascontiguousarray(colours), alpha, gray, png_chunks=kept)


def _from_pillow(image: Image.Image, name: str) -> Picture:
    info: dict[Any, Any] = image.info
    icc = info.get("icc_profile")
    notes: tuple[str, ...] = ()
    mode = image.mode
    if mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        plane = np.asarray(image).astype(np.uint16)
        return Picture(np.repeat(plane[:, :, None], 3, axis=2), None, True, info.get("exif"), icc)
    if mode in ("I", "F"):
        raise InputError(
            f"image={name!r} has {mode!r} samples of 32 bits: save it with 8 or 16 bits"
        )
    if mode == "CMYK":
        image, icc = _cmyk_to_srgb(image, icc), None
        notes = ("CMYK converted to sRGB",)
    elif mode in ("P", "PA") or "transparency" in info:
        image = image.convert("RGBA")
    elif mode not in ("RGB", "RGBA", "L", "LA"):
        image = image.convert("L" if mode == "1" else "RGB")
    samples = np.asarray(image)
    gray = image.mode in ("L", "LA")
    if samples.ndim == 2:
        samples = samples[:, :, None]
    alpha = samples[:, :, -1].copy() if image.mode in ("LA", "RGBA") else None
    colours = np.repeat(samples[:, :, :1], 3, axis=2) if gray else samples[:, :, :3]
    xmp = info.get("xmp") or info.get(_XMP_KEYWORD)
    if isinstance(xmp, str):
        xmp = xmp.encode()
    exif = info.get("exif")
    if alpha is not None and mode in ("P", "PA", "RGB", "L") and (alpha == 255).all():
        alpha = None
    return Picture(np.ascontiguousarray(colours), alpha, gray, exif, icc, xmp, notes=notes)


def _cmyk_to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc is None:
        return image.convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    converted = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    return image.convert("RGB") if converted is None else converted


def write_picture(picture: Picture, path: Path | str) -> Path:
    """Write a picture, atomically.

    Parameters
    ----------
    picture : what to write; 16-bit pixels need a .png or .tif name
    path : file; its suffix chooses the format

    Returns
    -------
    the path

    Raises
    ------
    InputError
        The format cannot be written or cannot hold the picture.
    """
    path = Path(path)
    return write_atomically(path, encode_picture(picture, path.suffix.lower(), str(path)))


def encode_picture(picture: Picture, suffix: str, name: str = "output") -> bytes:
    """Encode a picture in the format that a file suffix stands for."""
    if suffix not in WRITABLE:
        raise InputError(f"output={name!r} has the suffix {suffix!r}: one of {', '.join(WRITABLE)}")
    samples = picture.pixels
    if picture.gray:
        # Rounded luma of the enhanced colours; a gray file stays gray.
        weights = np.array([0.299, 0.587, 0.114])
        samples = np.rint(samples @ weights).astype(picture.pixels.dtype)[:, :, None]
    if picture.alpha is not None and suffix not in (".jpg", ".jpeg", ".bmp"):
        samples = np.concatenate([samples, picture.alpha[:, :, None]], axis=2)
    if samples.dtype == np.uint16:
        if suffix in (".tif", ".tiff"):
            return decoders.encode_tiff16(
                samples, picture.icc_profile, picture.xmp, picture.orientation
            )
        if suffix != ".png":
            raise InputError(f"output={name!r} cannot hold 16 bits per sample: use .png or .tif")
        return png.encode16(samples, picture.png_chunks)
    image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    options: dict[str, Any] = {}
    if picture.exif:
        options["exif"] = picture.exif
    if picture.icc_profile:
        options["icc_profile"] = picture.icc_profile
    kind = WRITABLE[suffix]
    if kind == "JPEG":
        options.update(quality=95, subsampling=0)
    if picture.xmp and kind in ("JPEG", "WEBP"):
        options["xmp"] = picture.xmp
    elif picture.xmp and kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(_XMP_KEYWORD, picture.xmp.decode("utf-8", "replace"))
        options["pnginfo"] = text
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
