"""The network as an ONNX graph; needs the extra `onnx`."""

from __future__ import annotations

import numpy as np

from noiser.errors import InputError
from noiser.image_array import Padding, check_padding
from noiser.network import INSTANCE_NORM_EPS, SelfRegressionModel

_OPSET = 20


def to_onnx(model: SelfRegressionModel, padding: Padding = "reflect") -> bytes:
    """Write the network as an ONNX model of any image size.

    Parameters
    ----------
    model : the network
    padding : border rule of both convolutions

    Returns
    -------
    serialised model, opset 20: "image" (n, 3, height, width) float32 in [0, 1] to "enhanced" of
    the same shape and range. Instance normalisation takes the statistics of the input.

    Raises
    ------
    InputError
        onnx is not installed, or `padding` is not allowed.
    """
    check_padding(padding)
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise InputError("module='onnx' is missing: pip install 'noiser[onnx]'") from error
    channels = model.channels
    constants = {
        "two": np.float32(2),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "ones": np.ones(channels, np.float32),
        "zeros": np.zeros(channels, np.float32),
        "conv1_weight": model.conv1_weight,
        "conv1_bias": model.conv1_bias,
        "conv2_weight": model.conv2_weight,
        "conv2_bias": model.conv2_bias,
    }
    mode = {"reflect": "reflect", "zeros": "constant"}[padding]
    node = helper.make_node
    nodes = [
        node("Mul", ["image", "two"], ["doubled"]),
        node("Sub", ["doubled", "one"], ["x"]),
        node("Pad", ["x", "pads", "zero"], ["x_padded"], mode=mode),
        node("Conv", ["x_padded", "conv1_weight", "conv1_bias"], ["h"]),
        node("InstanceNormalization", ["h", "ones", "zeros"], ["z"], epsilon=INSTANCE_NORM_EPS),
        node("Gelu", ["z"], ["a"], approximate="none"),
        node("Pad", ["a", "pads", "zero"], ["a_padded"], mode=mode),
        node("Conv", ["a_padded", "conv2_weight", "conv2_bias"], ["sum"]),
        node("Tanh", ["sum"], ["y"]),
        node("Mul", ["y", "half"], ["y_half"]),
        node("Add", ["y_half", "half"], ["enhanced"]),
    ]
    shape: list[int | str | None] = ["n", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "noiser",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("enhanced", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="noiser"
    )
    # A version that the runtimes of the last years read.
    proto.ir_version = 9
    checker.check_model(proto)
    return bytes(proto.SerializeToString())
