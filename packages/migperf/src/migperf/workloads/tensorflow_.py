"""TensorFlow: the perceptron as a graph function, inference and training."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import InputError
from .base import WorkloadSpec

__all__ = ["TensorflowWorkload", "build"]


class TensorflowWorkload:
    """The perceptron of `migperf.workloads.numpy_` under ``tf.function``.

    Parameters
    ----------
    spec : WorkloadSpec
        What to run.
    threads : int
        Intra-op threads; inter-op threads are set to one.
    """

    def __init__(self, spec: WorkloadSpec, threads: int) -> None:
        from .numpy_ import MLP

        # tensorflow and tensorflow-cpu both provide the module.
        tf: Any = importlib.import_module("tensorflow")
        if spec.model != "mlp":
            raise InputError.of("model of framework tensorflow", spec.model, "mlp")
        # TensorFlow refuses to change these once it has run something, even to equal values.
        runtime = tf.config.threading
        if runtime.get_intra_op_parallelism_threads() != threads:
            runtime.set_intra_op_parallelism_threads(threads)
        if runtime.get_inter_op_parallelism_threads() != 1:
            runtime.set_inter_op_parallelism_threads(1)
        base = MLP(spec.width, batch=spec.batch)
        self.train = spec.mode == "train"
        self.weights = [tf.Variable(w) for w in base.weights]
        self.inputs = tf.constant(base.inputs)
        self.targets = tf.constant(base.targets)

        def forward(x: Any) -> Any:
            for weight in self.weights[:-1]:
                x = tf.nn.relu(x @ weight)
            return x @ self.weights[-1]

        def update(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, forward(x))
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, self.weights)
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.assign_sub(0.01 * gradient)
            return loss

        self.forward, self.update = tf.function(forward), tf.function(update)

    def step(self, batch: int) -> None:
        """Run one batch; reading the result waits for it."""
        if self.train:
            self.update(self.inputs[:batch], self.targets[:batch]).numpy()
        else:
            self.forward(self.inputs[:batch]).numpy()


def build(spec: WorkloadSpec, threads: int) -> TensorflowWorkload:
    """Set up the workload; see `migperf.workloads.base.create`."""
    return TensorflowWorkload(spec, threads)
