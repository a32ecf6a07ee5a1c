"""NumPy: a multilayer perceptron, forward and backward written out.

The threads are those of the BLAS library, set through the environment before NumPy is imported.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..errors import InputError
from .base import WorkloadSpec

__all__ = ["MLP", "build"]

Matrix = Float[np.ndarray, "rows columns"]


class MLP:
    """Perceptron with three hidden layers, ReLU, softmax cross-entropy, plain SGD.

    Parameters
    ----------
    width : int
        Inputs and units per hidden layer.
    classes : int
        Outputs.
    train : bool
        `step` also goes backward and updates the weights.
    batch : int
        Largest batch.
    seed : int
        Seed of weights and data.
    """

    def __init__(
        self, width: int, classes: int = 10, *, train: bool = False, batch: int = 1, seed: int = 0
    ) -> None:
        generator = np.random.default_rng(seed)
        sizes = [width, width, width, width, classes]
        self.weights = [
            (generator.standard_normal((a, b)) * np.sqrt(2.0 / a)).astype(np.float32)
            for a, b in itertools.pairwise(sizes)
        ]
        self.train = train
        self.inputs = generator.standard_normal((batch, width)).astype(np.float32)
        self.targets = generator.integers(0, classes, size=batch)

    def forward(self, inputs: Matrix) -> list[Matrix]:
        """Activations of every layer; the last entry holds the logits."""
        layers = [inputs]
        for number, weight in enumerate(self.weights):
            product = layers[-1] @ weight
            last = number == len(self.weights) - 1
            layers.append(product if last else np.maximum(product, 0.0, out=product))
        return layers

    def loss_and_gradients(
        self, inputs: Matrix, targets: NDArray[np.int64]
    ) -> tuple[float, list[Matrix]]:
        """Mean cross-entropy and its gradient for every weight matrix."""
        layers = self.forward(inputs)
        logits = layers[-1] - layers[-1].max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        chances = exponentials / exponentials.sum(axis=1, keepdims=True)
        rows = np.arange(len(targets))
        loss = float(-np.log(chances[rows, targets] + 1e-30).mean())
        chances[rows, targets] -= 1.0
        signal = chances / np.float32(len(targets))
        gradients: list[Matrix] = []
        for number in range(len(self.weights) - 1, -1, -1):
            gradients.append(layers[number].T @ signal)
            if number:
                signal = (signal @ self.weights[number].T) * (layers[number] > 0)
        return loss, gradients[::-1]

    def step(self, batch: int) -> None:
        """Run one batch."""
        inputs = self.inputs[:batch]
        if not self.train:
            self.forward(inputs)
            return
        _, gradients = self.loss_and_gradients(inputs, self.targets[:batch])
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight -= np.float32(0.01) * gradient


def build(spec: WorkloadSpec, threads: int) -> MLP:
    """Set up the workload; see `migperf.workloads.base.create`."""
    del threads  # the BLAS library read its own variable when NumPy was imported
    if spec.model != "mlp":
        raise InputError.of("model of framework numpy", spec.model, "mlp")
    return MLP(spec.width, train=spec.mode == "train", batch=spec.batch)
