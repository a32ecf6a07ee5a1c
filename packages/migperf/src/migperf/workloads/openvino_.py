"""OpenVINO: the perceptron, inference only, on the CPU plug-in."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .base import WorkloadSpec

__all__ = ["OpenvinoWorkload", "build"]


class OpenvinoWorkload:
    """The perceptron of `migperf.workloads.numpy_` as an OpenVINO model.

    Parameters
    ----------
    spec : WorkloadSpec
        What to run.
    threads : int
        Inference threads of the CPU plug-in.
    """

    def __init__(self, spec: WorkloadSpec, threads: int) -> None:
        import openvino as ov
        from openvino import opset13 as ops

        from .numpy_ import MLP

        if spec.mode != "infer" or spec.model != "mlp":
            raise InputError.of(
                "model and mode of framework openvino", (spec.model, spec.mode), "mlp with infer"
            )
        base = MLP(spec.width, batch=spec.batch)
        self.inputs = np.ascontiguousarray(base.inputs)
        parameter = ops.parameter([-1, spec.width], np.float32, name="x")
        node = parameter
        for number, weight in enumerate(base.weights):
            node = ops.matmul(node, ops.constant(weight), False, False)
            if number < len(base.weights) - 1:
                node = ops.relu(node)
        model = ov.Model([node], [parameter], "mlp")
        # Left to itself the plug-in computes in bfloat16 where the CPU can; the others do not.
        config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
                  "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
        self.request = ov.Core().compile_model(model, "CPU", config).create_infer_request()

    def step(self, batch: int) -> None:
        """Run one batch."""
        self.request.infer({0: self.inputs[:batch]})


def build(spec: WorkloadSpec, threads: int) -> OpenvinoWorkload:
    """Set up the workload; see `migperf.workloads.base.create`."""
    return OpenvinoWorkload(spec, threads)
