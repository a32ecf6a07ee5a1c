"""Reading images: orientation, colour modes, depth."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

LARGEST = 100_000_000
"""Most pixels an image may have."""


class DataError(ValueError):
    """A fault of a data set; the message names file, image and annotation, and the fix."""


def to_rgb(image: Image.Image, turn: bool = True) -> Image.Image:
    """Return 8-bit RGB: alpha laid on white, 16 bits scaled to 8, CMYK converted.

    ``turn`` applies the rotation that EXIF asks for.
    """
    if turn:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        array = np.asarray(image).astype(np.float64)
        top = 65535.0 if array.max(initial=0) > 255 else 255.0
        array = np.nan_to_num(array).clip(0, top) * (255.0 / top)
        return Image.fromarray(array.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def load_image(
    source: str | Path | bytes, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Read a file (or its bytes) as 8-bit RGB, turned as EXIF says.

    Where the annotations state the size (height, width) of the unturned file, their boxes mean
    that frame, and the image is not turned.

    Raises
    ------
    DataError
        If the file is missing, is no image, is cut off, or is too large.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise DataError(f"{name}: no such file; check file_name and the image folder")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > LARGEST:
                raise DataError(f"{name}: {image.width} x {image.height} pixels; shrink it first")
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            raw = (image.height, image.width)
            keep = turned and size is not None and tuple(size) == raw and raw[0] != raw[1]
            return np.asarray(to_rgb(image, not keep)).copy()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        line = " ".join(str(error).split())[:120]
        raise DataError(f"{name}: cannot be read as an image ({line})") from error
