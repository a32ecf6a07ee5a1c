"""The network on other engines: torch and ONNX Runtime, on what device they find."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from noiser.errors import InputError
from noiser.image_array import Padding
from noiser.metrics import as_float
from noiser.network import SelfRegressionModel

if TYPE_CHECKING:
    from jaxtyping import Float, Num

Backend = Literal["auto", "torch", "onnx"]


def check_backend(name: str) -> None:
    """Raise InputError unless the back end is known."""
    if name not in get_args(Backend):
        raise InputError(
            f"backend={name!r} is not allowed: one of {', '.join(get_args(Backend))};"
            " auto is the package's own kernel"
        )


@lru_cache(maxsize=2)
def _torch_network(model: SelfRegressionModel, padding: Padding) -> tuple[Any, Any]:
    from noiser.torch_backend import to_torch

    network = to_torch(model, padding)
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return network.to(device), device


@lru_cache(maxsize=2)
def _onnx_session(model: SelfRegressionModel, padding: Padding) -> Any:
    from noiser.onnx_export import to_onnx

    graph = to_onnx(model, padding)
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise InputError(
            "module='onnxruntime' is missing: pip install onnxruntime, or use backend='auto'"
        ) from error
    return onnxruntime.InferenceSession(graph, providers=onnxruntime.get_available_providers())


def run_backend(
    backend: Backend,
    model: SelfRegressionModel,
    image: Num[np.ndarray, "height width 3"],
    padding: Padding,
) -> Float[np.ndarray, "height width 3"]:
    """Apply the network with the statistics of the image itself.

    Parameters
    ----------
    backend : "torch" (on a GPU where there is one) or "onnx"
    model : the network
    image : (height, width, 3) uint8, uint16 or float in [0, 1]
    padding : border rule

    Returns
    -------
    (height, width, 3) float64 in [0, 1]

    Raises
    ------
    InputError
        The engine is not installed.
    """
    value = np.ascontiguousarray(as_float(image).transpose(2, 0, 1)[None], np.float32)
    if backend == "onnx":
        session = _onnx_session(model, padding)
        (out,) = session.run(None, {session.get_inputs()[0].name: value})
        return np.asarray(out[0].transpose(1, 2, 0), np.float64)
    network, device = _torch_network(model, padding)
    import torch

    with torch.inference_mode():
        found = network(torch.from_numpy(value * 2 - 1).to(device))
    return np.asarray(found[0].permute(1, 2, 0).cpu().numpy() / 2 + 0.5, np.float64)
