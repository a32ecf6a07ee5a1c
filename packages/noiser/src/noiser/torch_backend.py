"""The network as an ordinary torch module; needs the extra `train`."""

from __future__ import annotations

from typing import Any

from noiser.errors import InputError
from noiser.image_array import Padding, check_padding
from noiser.network import INSTANCE_NORM_EPS, SelfRegressionModel


def to_torch(
    model: SelfRegressionModel, padding: Padding = "reflect", eps: float = INSTANCE_NORM_EPS
) -> Any:
    """Build a torch module with the weights of a model.

    Parameters
    ----------
    model : the network
    padding : border rule of both convolutions
    eps : of the instance normalisation

    Returns
    -------
    torch.nn.Sequential from (n, 3, height, width) to the same shape, both in [-1, 1]

    Raises
    ------
    InputError
        torch is not installed, or `padding` is not allowed.
    """
    check_padding(padding)
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError("module='torch' is missing: pip install 'noiser[train]'") from error
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, model.channels, 3, padding=1, padding_mode=padding),
        torch.nn.InstanceNorm2d(model.channels, affine=False, eps=eps),
        torch.nn.GELU(),
        torch.nn.Conv2d(model.channels, 3, 3, padding=1, padding_mode=padding),
        torch.nn.Tanh(),
    )
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), model.arrays()):
            parameter.copy_(torch.from_numpy(value.copy()))
    return network.eval()


def from_torch(network: Any, training: dict[str, Any] | None = None) -> SelfRegressionModel:
    """Take the weights of such a module, or of a state dict with the same four arrays.

    Parameters
    ----------
    network : module that `to_torch` built, or a mapping of names to tensors in the order weight
        and bias of the first convolution, weight and bias of the second
    training : how the weights came about

    Returns
    -------
    SelfRegressionModel

    Raises
    ------
    InputError
        The arrays have other shapes.
    """
    tensors = network if isinstance(network, dict) else network.state_dict()
    arrays = [tensor.detach().cpu().float().numpy() for tensor in tensors.values()]
    if len(arrays) != 4:
        raise InputError(f"network has {len(arrays)} arrays: must have 4, of two convolutions")
    return SelfRegressionModel(arrays[0], arrays[1], arrays[2], arrays[3], training or {})
