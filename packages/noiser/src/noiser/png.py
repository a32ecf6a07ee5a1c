"""PNG files of 16 bits per sample, which Pillow reads with 8 bits only."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from noiser import native
from noiser.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt16

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_COLOUR_TYPE = {1: 0, 3: 2, 2: 4, 4: 6}
# Chunks that describe the picture and stay true when its pixels change.
KEPT_CHUNKS = {
    b"iCCP",
    b"sRGB",
    b"gAMA",
    b"cHRM",
    b"cICP",
    b"eXIf",
    b"iTXt",
    b"tEXt",
    b"zTXt",
    b"pHYs",
    b"tIME",
}


def chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of each chunk, up to IEND.

    Raises
    ------
    InputError
        The file is cut short or a checksum is wrong.
    """
    position = len(SIGNATURE)
    while True:
        head = data[position : position + 8]
        if len(head) < 8:
            raise InputError(f"image={name!r} is cut short: a complete PNG file is needed")
        length, kind = struct.unpack(">I4s", head)
        end = position + 8 + length
        body, check = data[position + 8 : end], data[end : end + 4]
        if len(body) < length or len(check) < 4:
            raise InputError(f"image={name!r} is cut short: a complete PNG file is needed")
        if zlib.crc32(kind + body) != struct.unpack(">I", check)[0]:
            raise InputError(f"image={name!r} has a wrong checksum: the PNG file is damaged")
        if kind == b"IEND":
            return
        yield kind, body
        position = end + 4


def bit_depth(data: bytes) -> int:
    """Bits per sample that the header names, or 0 where it is no PNG header."""
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 26:
        return 0
    return data[24]


def decode16(data: bytes, name: str = "image") -> UInt16[np.ndarray, "height width channels"]:
    """Decode a 16-bit PNG file that is not interlaced.

    Parameters
    ----------
    data : content of the file
    name : how messages call it

    Returns
    -------
    (height, width, channels) uint16 with 1 (gray), 2 (gray, alpha), 3 or 4 channels

    Raises
    ------
    InputError
        The file is damaged or interlaced.
    """
    header, packed = b"", b""
    parts = []
    for kind, body in chunks(data, name):
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            parts.append(body)
    packed = b"".join(parts)
    if len(header) != 13:
        raise InputError(f"image={name!r} has no PNG header: the file is damaged")
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if bits != 16 or colour not in _CHANNELS:
        raise InputError(f"image={name!r} is not a 16-bit PNG of colour type 0, 2, 4 or 6")
    if interlaced:
        raise InputError(f"image={name!r} is an interlaced 16-bit PNG: save it without interlacing")
    pixel = 2 * _CHANNELS[colour]
    stride = width * pixel
    if not 0 < width * height <= 2**31:
        raise InputError(f"image={name!r} names {width} x {height} pixels: the file is damaged")
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, (stride + 1) * height)
    except zlib.error as error:
        raise InputError(f"image={name!r} cannot be unpacked: the PNG file is damaged") from error
    if len(raw) < (stride + 1) * height:
        raise InputError(f"image={name!r} is cut short: a complete PNG file is needed")
    lines = np.frombuffer(raw, np.uint8).reshape(height, stride + 1)
    out = unfilter(lines, pixel, name)
    return out.view(">u2").astype(np.uint16).reshape(height, width, _CHANNELS[colour])


def unfilter(lines: np.ndarray, pixel: int, name: str) -> np.ndarray:
    """Undo the row filters of PNG (section 9 of the specification): (rows, bytes) uint8."""
    compiled = native.unfilter(lines, pixel, name)
    if compiled is not None:
        return compiled
    height, stride = lines.shape[0], lines.shape[1] - 1
    out = np.zeros((height + 1, stride), dtype=np.uint8)
    for y in range(height):
        kind, line, above = int(lines[y, 0]), lines[y, 1:], out[y]
        if kind == 0:
            out[y + 1] = line
        elif kind == 1:
            by_pixel = line.reshape(-1, pixel)
            out[y + 1] = np.cumsum(by_pixel, axis=0, dtype=np.uint8).reshape(-1)
        elif kind == 2:
            out[y + 1] = line + above
        elif kind in (3, 4):
            _unfilter_sequential(kind, line.tolist(), above.tolist(), pixel, out[y + 1])
        else:
            raise InputError(f"image={name!r} has an unknown row filter: the PNG file is damaged")
    return np.ascontiguousarray(out[1:])


def _unfilter_sequential(
    kind: int, line: list[int], above: list[int], pixel: int, out: np.ndarray
) -> None:
    """Average (3) and Paeth (4), where each pixel needs the one before it."""
    result = [0] * (pixel + len(line))
    above = [0] * pixel + above
    for x, value in enumerate(line):
        left, up, corner = result[x], above[x + pixel], above[x]
        if kind == 3:
            guess = (left + up) >> 1
        else:
            to_left, to_up = abs(up - corner), abs(left - corner)
            to_corner = abs(left + up - 2 * corner)
            if to_left <= to_up and to_left <= to_corner:
                guess = left
            else:
                guess = up if to_up <= to_corner else corner
        result[x + pixel] = (value + guess) & 255
    out[:] = result[pixel:]


def encode16(
    image: UInt16[np.ndarray, "height width channels"],
    extra: list[tuple[bytes, bytes]] | None = None,
) -> bytes:
    """Encode 16-bit pixels as a PNG file.

    Parameters
    ----------
    image : (height, width, channels) uint16, 1 to 4 channels
    extra : chunks to write before the pixels, type and content

    Returns
    -------
    content of the file

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 2500
    >>> bool((decode16(encode16(image)) == image).all())
    True
    """
    height, width, channels = image.shape
    lines = np.ascontiguousarray(image.astype(">u2")).view(np.uint8).reshape(height, -1)
    # Filter 2 (up) on all rows: fast, and close to the best on photographs.
    filtered = np.full((height, lines.shape[1] + 1), 2, dtype=np.uint8)
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPE[channels], 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    middle = b"".join(chunk(kind, body) for kind, body in extra or [])
    pixels = chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6))
    return SIGNATURE + chunk(b"IHDR", header) + middle + pixels + chunk(b"IEND", b"")
