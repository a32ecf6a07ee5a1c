"""ONNX Runtime: the perceptron, inference only; the graph is built on the spot."""

from __future__ import annotations

from ..errors import InputError
from .base import FrameworkMissing, WorkloadSpec

__all__ = ["OnnxWorkload", "build"]


class OnnxWorkload:
    """The perceptron of `migperf.workloads.numpy_` as an ONNX graph.

    Parameters
    ----------
    spec : WorkloadSpec
        What to run.
    threads : int
        Intra-op threads; inter-op threads are set to one and do not spin.
    """

    def __init__(self, spec: WorkloadSpec, threads: int) -> None:
        import onnxruntime

        from .numpy_ import MLP

        if spec.mode != "infer" or spec.model != "mlp":
            raise InputError.of(
                "model and mode of framework onnx", (spec.model, spec.mode), "mlp with infer"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            _graph(spec.width), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = MLP(spec.width, batch=spec.batch).inputs

    def step(self, batch: int) -> None:
        """Run one batch."""
        self.session.run(None, {"x": self.inputs[:batch]})


def _graph(width: int) -> bytes:
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise FrameworkMissing(
            f"framework 'onnx': {error}; install it with pip install 'migperf[onnx]'"
        ) from None
    from .numpy_ import MLP

    nodes, weights, name = [], [], "x"
    layers = MLP(width).weights
    for number, weight in enumerate(layers):
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], [f"m{number}"]))
        name = f"m{number}"
        if number < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [name], [f"r{number}"]))
            name = f"r{number}"
    graph = helper.make_graph(
        nodes, "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", layers[-1].shape[1]])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    text: bytes = model.SerializeToString()
    return text


def build(spec: WorkloadSpec, threads: int) -> OnnxWorkload:
    """Set up the workload; see `migperf.workloads.base.create`."""
    return OnnxWorkload(spec, threads)
