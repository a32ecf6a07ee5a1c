"""What counts as an image in memory, and the map to the network's range [-1, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from noiser.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Num

Padding = Literal["reflect", "zeros"]
PADDINGS: tuple[str, ...] = get_args(Padding)
_FULL_SCALE = {"uint8": 255, "uint16": 65535}


def check_image(image: Num[np.ndarray, "height width 3"], name: str = "image") -> None:
    """Raise unless `image` is an RGB array that the network can take.

    Parameters
    ----------
    image : (height, width, 3) array of uint8, uint16, float32 or float64; floats in [0, 1]
    name : how the message calls it

    Raises
    ------
    InputError
        Wrong type, shape, number of pixels, or values that are not finite.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} is a {type(image).__name__}: must be a numpy array")
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{name} has shape {image.shape}: must be (height, width, 3), RGB")
    if image.dtype.name not in {*_FULL_SCALE, "float32", "float64"}:
        raise InputError(
            f"{name} has dtype {image.dtype}: must be uint8, uint16, float32 or float64;"
            " scale other integers to uint16"
        )
    if image.shape[0] * image.shape[1] < 2:
        raise InputError(
            f"{name} has {image.shape[0]} x {image.shape[1]} pixels: must have at least 2 pixels,"
            " because the method compares a pixel with the rest of the image"
        )
    if image.dtype.kind == "f":
        bad = sum(int(row.size - np.isfinite(row).sum()) for row in image)
        if bad:
            raise InputError(
                f"{name} holds {bad} values that are NaN or infinite: all must be finite;"
                " replace them first, for instance with numpy.nan_to_num"
            )


def check_padding(padding: str) -> None:
    """Raise unless `padding` is a known border rule."""
    if padding not in PADDINGS:
        raise InputError(f"padding={padding!r} is not allowed: one of {', '.join(PADDINGS)}")


def full_scale(dtype: np.dtype) -> int:
    """Value of white: 255, 65535, or 1 for floats."""
    return _FULL_SCALE.get(dtype.name, 1)


def centred(image: Num[np.ndarray, "rows width 3"]) -> Num[np.ndarray, "rows width 3"]:
    """Twice the image minus white: exact integers for integer images, [-1, 1] for floats."""
    if image.dtype.kind == "f":
        return 2.0 * image.astype(np.float64) - 1.0
    return 2 * image.astype(np.int64) - full_scale(image.dtype)


def padded_rows(
    image: Num[np.ndarray, "height width 3"], first: int, last: int, padding: Padding
) -> Num[np.ndarray, "rows padded_width 3"]:
    """Rows `first` ... `last - 1` of the centred image, with one pixel of border on each side.

    Parameters
    ----------
    image : image, or a memory map of one: only the rows asked for are read
    first, last : row range; -1 and `height` are the border rows
    padding : "reflect" mirrors about the outermost pixel (a side of one pixel is repeated);
        "zeros" is mid-gray, because the network's range is [-1, 1]

    Returns
    -------
    (last - first, width + 2, 3) array, int64 for integer images, float64 for floats
    """
    height = image.shape[0]
    rows = np.arange(first, last)
    mirrored = np.abs(rows)
    mirrored = np.where(mirrored >= height, 2 * (height - 1) - mirrored, mirrored)
    mirrored = np.clip(mirrored, 0, height - 1)
    low, high = int(mirrored.min()), int(mirrored.max()) + 1
    body = centred(image[low:high])[mirrored - low]
    if padding == "zeros":
        body[(rows < 0) | (rows >= height)] = 0
        return np.pad(body, ((0, 0), (1, 1), (0, 0)))
    if image.shape[1] == 1:
        return np.pad(body, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return np.pad(body, ((0, 0), (1, 1), (0, 0)), mode="reflect")
