"""Formats that Pillow does not read: 16-bit colour TIFF, camera RAW, HEIF; each needs an extra."""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from noiser.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt16

# Suffixes of camera files that LibRaw decodes.
RAW_SUFFIXES = frozenset(
    {
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mrw",
        ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    }
)  # fmt: skip
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_ICC, _XMP, _ORIENTATION = 34675, 700, 274


def _module(name: str, extra: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"module={name!r} is missing, {what} needs it: pip install 'noiser[{extra}]'"
        ) from error


def decode_tiff16(data: bytes, name: str) -> tuple[UInt16[np.ndarray, "h w c"], dict[str, Any]]:
    """Decode a TIFF of one page with 16 bits per sample and several samples.

    Parameters
    ----------
    data : the file
    name : for messages

    Returns
    -------
    samples : (height, width, 3 or 4) uint16
    metadata : "icc_profile", "xmp", "orientation", those that the file has

    Raises
    ------
    InputError
        tifffile is missing, or the file is something else.
    """
    tifffile = _module("tifffile", "tiff", "a TIFF of 16 bits per sample")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = len(file.pages)
            page = file.pages[0]
            tags = page.tags
            found = {"icc_profile": _ICC, "xmp": _XMP, "orientation": _ORIENTATION}
            metadata = {key: tags[tag].value for key, tag in found.items() if tag in tags}
            planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
            samples = np.asarray(page.asarray())
            colour = page.photometric == tifffile.PHOTOMETRIC.RGB
    except Exception as error:  # tifffile's decoders raise many types on damaged files
        raise InputError(
            f"image={name!r} is not a readable TIFF ({error.__class__.__name__}:"
            f" {' '.join(str(error).split())[:120]})"
        ) from error
    if pages > 1:
        raise InputError(
            f"image={name!r} holds {pages} pages: save the one you want as a single image"
        )
    if planar and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, 2)
    if not (colour and samples.dtype == np.uint16 and samples.ndim == 3):
        raise InputError(
            f"image={name!r} holds {samples.dtype} samples of shape {samples.shape}: allowed are"
            " RGB with 8 or 16 bits per sample, and gray"
        )
    if samples.shape[2] not in (3, 4):
        raise InputError(f"image={name!r} has {samples.shape[2]} channels: allowed are 3 and 4")
    return np.ascontiguousarray(samples), metadata


def encode_tiff16(
    samples: UInt16[np.ndarray, "h w c"],
    icc_profile: bytes | None = None,
    xmp: bytes | None = None,
    orientation: int | None = None,
) -> bytes:
    """Encode uint16 samples, (height, width, 1, 3 or 4), as a deflated TIFF.

    Raises
    ------
    InputError
        tifffile is missing.
    """
    tifffile = _module("tifffile", "tiff", "a TIFF of 16 bits per sample")
    extra: list[tuple[int, str, int, Any, bool]] = []
    if xmp:
        extra.append((_XMP, "B", len(xmp), xmp, True))
    if orientation:
        extra.append((_ORIENTATION, "H", 1, int(orientation), True))
    channels = samples.shape[2]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        samples[:, :, 0] if channels == 1 else samples,
        photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression="zlib",
        iccprofile=icc_profile,
        extratags=extra,
        software=False,
        metadata=None,
    )
    return buffer.getvalue()


def decode_raw(data: bytes, name: str) -> UInt16[np.ndarray, "h w 3"]:
    """Develop a camera RAW file: camera white balance, no automatic brightening, sRGB, upright.

    Parameters
    ----------
    data : the file
    name : for messages

    Returns
    -------
    (height, width, 3) uint16, encoded with the sRGB curve

    Raises
    ------
    InputError
        rawpy is missing, or LibRaw does not know the file.
    """
    rawpy = _module("rawpy", "raw", "a camera RAW file")
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            developed = raw.postprocess(
                use_camera_wb=True,
                no_auto_bright=True,  # the exposure is this package's business
                output_bps=16,
                output_color=rawpy.ColorSpace.sRGB,
                gamma=(2.4, 12.92),
            )
    except Exception as error:  # rawpy wraps LibRaw's codes in many types
        raise InputError(
            f"image={name!r} is not a readable RAW file ({error.__class__.__name__}:"
            f" {' '.join(str(error).split())[:120]})"
        ) from error
    return np.ascontiguousarray(developed, np.uint16)


def register_heif() -> None:
    """Teach Pillow to open HEIF files.

    Raises
    ------
    InputError
        pillow-heif is missing.
    """
    _module("pillow_heif", "heif", "a HEIF file").register_heif_opener()
