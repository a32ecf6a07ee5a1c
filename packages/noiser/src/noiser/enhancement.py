"""One call from a badly exposed image to an enhanced one of the same type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from noiser.baselines import zscore
from noiser.errors import InputError
from noiser.forward import forward
from noiser.image_array import Padding, check_image, full_scale
from noiser.metrics import as_float
from noiser.network import SelfRegressionModel

if TYPE_CHECKING:
    from jaxtyping import Num

Method = Literal["paper", "closed_form"]
METHODS: tuple[str, ...] = get_args(Method)


def enhance(
    image: Num[np.ndarray, "height width 3"],
    model: SelfRegressionModel | None = None,
    method: Method = "paper",
    strength: float = 1.0,
    padding: Padding = "reflect",
    tile: int | None = None,
) -> Num[np.ndarray, "height width 3"]:
    """Enhance one image.

    Parameters
    ----------
    image : (height, width, 3) sRGB, uint8, uint16 or float in [0, 1]
    model : network; needed by the method "paper"
    method : "paper", the self-regression network with whole-image normalisation;
        "closed_form", per-channel z-score and tanh, no network
    strength : 0 returns the image, 1 the full effect
    padding : border rule of the network, see `forward`
    tile : rows treated at a time; the result does not depend on it

    Returns
    -------
    image of the same shape and type; an image of one single colour comes back unchanged

    Raises
    ------
    InputError
        The image or an option is not allowed.

    Examples
    --------
    >>> import noiser, numpy as np
    >>> dark = np.random.default_rng(0).integers(0, 40, (32, 48, 3)).astype(np.uint8)
    >>> light = noiser.enhance(dark, method="closed_form")
    >>> light.dtype.name, light.shape, bool(abs(light.mean() / 255 - 0.5) < 0.02)
    ('uint8', (32, 48, 3), True)
    """
    check_image(image)
    if method not in METHODS:
        raise InputError(f"method={method!r} is not allowed: one of {', '.join(METHODS)}")
    if not 0 <= strength <= 1:
        raise InputError(f"strength={strength} is not allowed: a number in [0, 1]")
    if strength == 0 or (image == image[:1, :1]).all():
        return image.copy()
    if method == "closed_form":
        value = zscore(image)
    elif model is None:
        raise InputError("model=None is not allowed with method='paper': train or load one")
    else:
        value = forward(model, image, padding, tile)
    if strength < 1:
        value = as_float(image) + strength * (value - as_float(image))
    if image.dtype.kind == "f":
        return np.asarray(np.clip(value, 0, 1), dtype=image.dtype)
    white = full_scale(image.dtype)
    return np.asarray(np.rint(np.clip(value, 0, 1) * white), dtype=image.dtype)
