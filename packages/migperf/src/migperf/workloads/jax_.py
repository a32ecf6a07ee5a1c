"""JAX: the perceptron, compiled, forward and one step of gradient descent."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .base import WorkloadSpec

__all__ = ["JaxWorkload", "build"]


class JaxWorkload:
    """The perceptron of `migperf.workloads.numpy_` under ``jax.jit``.

    Parameters
    ----------
    spec : WorkloadSpec
        What to run.
    threads : int
        XLA on CPUs takes the cores that the process may use, which the grant has set.
    """

    def __init__(self, spec: WorkloadSpec, threads: int) -> None:
        import jax
        import jax.numpy as jnp

        from .numpy_ import MLP

        del threads
        if spec.model != "mlp":
            raise InputError.of("model of framework jax", spec.model, "mlp")
        base = MLP(spec.width, batch=spec.batch)
        self.train = spec.mode == "train"
        self.weights: Any = [jnp.asarray(w) for w in base.weights]
        self.inputs = jnp.asarray(base.inputs)
        self.targets = jnp.asarray(base.targets)

        def forward(weights: Any, x: Any) -> Any:
            for weight in weights[:-1]:
                x = jax.nn.relu(x @ weight)
            return x @ weights[-1]

        def loss(weights: Any, x: Any, y: Any) -> Any:
            logits = jax.nn.log_softmax(forward(weights, x))
            return -jnp.take_along_axis(logits, y[:, None], axis=1).mean()

        def update(weights: Any, x: Any, y: Any) -> Any:
            gradients = jax.grad(loss)(weights, x, y)
            return [w - 0.01 * g for w, g in zip(weights, gradients, strict=True)]

        self.forward, self.update = jax.jit(forward), jax.jit(update)

    def step(self, batch: int) -> None:
        """Run one batch and wait for it: JAX returns before the work is done."""
        if self.train:
            self.weights = self.update(self.weights, self.inputs[:batch], self.targets[:batch])
            self.weights[0].block_until_ready()
        else:
            self.forward(self.weights, self.inputs[:batch]).block_until_ready()


def build(spec: WorkloadSpec, threads: int) -> JaxWorkload:
    """Set up the workload; see `migperf.workloads.base.create`."""
    return JaxWorkload(spec, threads)
