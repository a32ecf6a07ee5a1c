"""The images that the network is trained on: noise, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from noiser.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

NoiseKind = Literal["gaussian", "pure_color", "palette", "mean_shift"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)


def noise_image(
    rng: np.random.Generator,
    kind: NoiseKind = "gaussian",
    size: int = 104,
    sigma: float = 3.0,
    clamp: bool = True,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Float[np.ndarray, "3 size size"]:
    """Draw one training image in [-1, 1].

    Parameters
    ----------
    rng : source of randomness
    kind : "gaussian", independent N(0, sigma^2) per value (the paper's method);
        "pure_color", one N(0, sigma^2) colour for the whole image (C-Regression);
        "palette", overlapping rectangles of such colours (P-Regression);
        "mean_shift", N(mean, sigma^2) (MS-NoiSER)
    size : height and width in pixels
    sigma : standard deviation
    clamp : limit values to [-1, 1]
    mean : per-channel mean of "mean_shift", in [-1, 1]

    Returns
    -------
    (3, size, size) float32

    Raises
    ------
    InputError
        An argument is out of range.

    Notes
    -----
    The paper names C-Regression, P-Regression and MS-NoiSER; their exact definitions were not
    available, and the ones above are this package's choice.

    Examples
    --------
    >>> import numpy as np
    >>> image = noise_image(np.random.default_rng(0))
    >>> image.shape, bool(abs(image).max() <= 1), bool((abs(image) == 1).mean() > 0.7)
    ((3, 104, 104), True, True)
    """
    if kind not in NOISE_KINDS:
        raise InputError(f"noise={kind!r} is not allowed: one of {', '.join(NOISE_KINDS)}")
    if not 8 <= size <= 4096:
        raise InputError(f"size={size} is not allowed: an integer in 8 ... 4096 pixels")
    if not (np.isfinite(sigma) and sigma > 0):
        raise InputError(f"sigma={sigma} is not allowed: a finite number above 0")
    if len(mean) != 3 or not all(-1 <= value <= 1 for value in mean):
        raise InputError(f"mean={mean} is not allowed: three numbers in [-1, 1]")
    scale = np.float32(sigma)
    if kind == "pure_color":
        colour = rng.standard_normal((3, 1, 1), dtype=np.float32) * scale
        image = np.broadcast_to(colour, (3, size, size)).copy()
    elif kind == "palette":
        image = np.empty((3, size, size), dtype=np.float32)
        image[:] = rng.standard_normal((3, 1, 1), dtype=np.float32) * scale
        for _ in range(64):
            top, left = rng.integers(0, size, 2)
            height, width = rng.integers(2, max(3, size // 3), 2)
            colour = rng.standard_normal((3, 1, 1), dtype=np.float32) * scale
            image[:, top : top + height, left : left + width] = colour
    else:
        image = rng.standard_normal((3, size, size), dtype=np.float32) * scale
        if kind == "mean_shift":
            image += np.asarray(mean, dtype=np.float32)[:, None, None]
    return np.clip(image, -1, 1) if clamp else image
