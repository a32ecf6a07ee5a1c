"""Noise self-regression: the network learns to return noise images, and sees nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from noiser.activation import gelu_and_derivative
from noiser.environment import available_cores
from noiser.errors import InputError
from noiser.native import NativeTraining, instruction_set
from noiser.network import INSTANCE_NORM_EPS, SelfRegressionModel
from noiser.noise import NOISE_KINDS, NoiseKind, noise_image
from noiser.passes import check_threads

if TYPE_CHECKING:
    from jaxtyping import Float

_TAIL = 200
# Steps between two chances to stop.
_BATCH = 20


@dataclass(frozen=True)
class TrainingRecipe:
    """Settings of a training run; the defaults are those of the paper's method.

    Parameters
    ----------
    channels : hidden channels; 18 gives 993 parameters
    noise : kind of the training images, see `noise_image`
    sigma : standard deviation of the noise; its values are clamped to [-1, 1]
    clamp : whether they are
    mean : per-channel mean of the noise kind "mean_shift"
    tv_weight : weight of the total-variation term
    steps : number of images seen, one per step
    size : their height and width in pixels
    learning_rate : of Adam
    betas : of Adam
    seed : of weights and noise

    Notes
    -----
    No code by the authors exists. sigma, size, steps and optimiser are those of an independent
    implementation that followed the paper's text.
    """

    channels: int = 18
    noise: NoiseKind = "gaussian"
    sigma: float = 3.0
    clamp: bool = True
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tv_weight: float = 1.0
    steps: int = 2000
    size: int = 104
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} is not allowed: an integer of at least 1")
        if self.noise not in NOISE_KINDS:
            raise InputError(
                f"noise={self.noise!r} is not allowed: one of {', '.join(NOISE_KINDS)}"
            )
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is not allowed: an integer of at least 0")
        for name in ("learning_rate", "tv_weight"):
            value = getattr(self, name)
            lowest_allowed = value > 0 or (name == "tv_weight" and value == 0)
            if not (math.isfinite(value) and lowest_allowed):
                raise InputError(f"{name}={value} is not allowed: a finite number above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas={self.betas} is not allowed: two numbers in [0, 1)")


@dataclass
class TrainingLog:
    """Losses of every step.

    Parameters
    ----------
    l1 : mean absolute difference between output and noise
    tv : total variation of the output, before its weight
    """

    l1: list[float] = field(default_factory=list)
    tv: list[float] = field(default_factory=list)

    def final(self) -> tuple[float, float]:
        """Both losses, averaged over the last 200 steps."""
        return float(np.mean(self.l1[-_TAIL:])), float(np.mean(self.tv[-_TAIL:]))


def total_variation(
    y: Float[np.ndarray, "3 height width"],
) -> tuple[float, Float[np.ndarray, "3 height width"]]:
    """Squared differences of neighbours, summed and divided by the number of values.

    Parameters
    ----------
    y : (3, height, width)

    Returns
    -------
    value, gradient with respect to `y`
    """
    down = y[:, 1:] - y[:, :-1]
    right = y[:, :, 1:] - y[:, :, :-1]
    gradient = np.zeros_like(y)
    gradient[:, 1:] += down
    gradient[:, :-1] -= down
    gradient[:, :, 1:] += right
    gradient[:, :, :-1] -= right
    value = float((np.vdot(down, down) + np.vdot(right, right)) / y.size)
    return value, gradient * np.float32(2.0 / y.size)


class _Plane:
    """Geometry of a zero-padded square whose rows are stored end to end.

    A shift by (row, column) is then a shift of the flat index, so that a 3x3 convolution is nine
    matrix products on views. Columns beyond the width hold values that are never used.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.stride = size + 2
        self.length = size * self.stride
        self.padded = (size + 2) * self.stride + 2
        self.offsets = [row * self.stride + column for row in range(3) for column in range(3)]

    def pad(self, x: Float[np.ndarray, "channels size size"]) -> Float[np.ndarray, "channels n"]:
        flat = np.zeros((x.shape[0], self.padded), dtype=x.dtype)
        square = flat[:, : (self.size + 2) * self.stride]
        square.reshape(-1, self.size + 2, self.stride)[:, 1:-1, 1:-1] = x
        return flat

    def crop(self, flat: Float[np.ndarray, "channels n"]) -> Float[np.ndarray, "channels s s"]:
        return flat.reshape(-1, self.size, self.stride)[:, :, : self.size]

    def spread(self, x: Float[np.ndarray, "channels size size"]) -> Float[np.ndarray, "c n"]:
        """Undo `crop`, with zeros in the unused columns."""
        flat = np.zeros((x.shape[0], self.size, self.stride), dtype=x.dtype)
        flat[:, :, : self.size] = x
        return flat.reshape(x.shape[0], -1)


def loss_and_gradient(
    weights: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    x: Float[np.ndarray, "3 size size"],
    tv_weight: float = 1.0,
) -> tuple[float, float, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Loss of one noise image and its gradient with respect to the weights.

    Parameters
    ----------
    weights : as `SelfRegressionModel.arrays` returns them
    x : noise image in [-1, 1], input and target
    tv_weight : weight of the total variation

    Returns
    -------
    l1, tv, gradients in the order of `weights`

    Notes
    -----
    L = mean |f(x) - x| + tv_weight TV(f(x)); the gradient is written out by hand and checked
    against automatic differentiation in the tests. Borders are padded with zeros, as in training
    by the recipe that this follows.
    """
    conv1_weight, _, conv2_weight, conv2_bias = weights
    plane = _Plane(x.shape[1])
    channels = conv1_weight.shape[0]
    x_flat = plane.pad(x)
    first = np.ascontiguousarray(conv1_weight.transpose(2, 3, 0, 1)).reshape(9, channels, 3)
    second = np.ascontiguousarray(conv2_weight.transpose(2, 3, 0, 1)).reshape(9, 3, channels)

    patches = np.concatenate([x_flat[:, o : o + plane.length] for o in plane.offsets])
    # The bias is left out: the normalisation removes it again.
    h = plane.crop(first.transpose(1, 0, 2).reshape(channels, 27) @ patches)
    centred = h - h.mean(axis=(1, 2), keepdims=True)
    inverse = 1.0 / np.sqrt(
        np.square(centred).mean(axis=(1, 2), keepdims=True) + np.float32(INSTANCE_NORM_EPS)
    )
    z = centred * inverse
    a, slope = gelu_and_derivative(z)
    a_flat = plane.pad(a)
    out = np.zeros((3, plane.length), dtype=x.dtype)
    for k, offset in enumerate(plane.offsets):
        out += second[k] @ a_flat[:, offset : offset + plane.length]
    y = np.tanh(plane.crop(out) + conv2_bias[:, None, None])

    difference = y - x
    l1 = float(np.abs(difference).mean())
    tv, tv_gradient = total_variation(y)
    gradient = np.sign(difference) * x.dtype.type(1.0 / x.size)
    gradient += x.dtype.type(tv_weight) * tv_gradient
    gradient *= 1 - y * y

    grad_out = plane.spread(gradient)
    grad_second = np.empty_like(second)
    grad_a = np.zeros_like(a_flat)
    for k, offset in enumerate(plane.offsets):
        grad_second[k] = grad_out @ a_flat[:, offset : offset + plane.length].T
        grad_a[:, offset : offset + plane.length] += second[k].T @ grad_out
    square = grad_a[:, : (plane.size + 2) * plane.stride]
    grad_z = square.reshape(channels, plane.size + 2, plane.stride)[:, 1:-1, 1:-1] * slope
    # Instance normalisation passes on what is left after removing mean and projection on z.
    grad_z -= grad_z.mean(axis=(1, 2), keepdims=True)
    grad_h = inverse * (grad_z - z * (grad_z * z).mean(axis=(1, 2), keepdims=True))
    grad_first = (plane.spread(grad_h) @ patches.T).reshape(channels, 3, 3, 3)
    return (
        l1,
        tv,
        (
            np.ascontiguousarray(grad_first.transpose(0, 3, 1, 2)),
            np.zeros(channels, dtype=x.dtype),
            np.ascontiguousarray(grad_second.reshape(3, 3, 3, channels).transpose(2, 3, 0, 1)),
            gradient.sum(axis=(1, 2)),
        ),
    )


def _numpy_steps(
    weights: list[np.ndarray], images: Iterable[np.ndarray], recipe: TrainingRecipe
) -> Iterator[tuple[float, float]]:
    """Take one Adam step per image, in place; yield both losses."""
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    beta1, beta2 = recipe.betas
    for step, x in enumerate(images, 1):
        w1, b1, w2, b2 = weights
        l1, tv, gradients = loss_and_gradient((w1, b1, w2, b2), x, recipe.tv_weight)
        rate = recipe.learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        correction = 1e-8 * math.sqrt(1 - beta2**step)
        for w, m, v, g in zip(weights, first, second, gradients):
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            w -= (rate * m / (np.sqrt(v) + correction)).astype(np.float32)
        yield l1, tv


def _native_steps(
    weights: list[np.ndarray], images: Iterable[np.ndarray], recipe: TrainingRecipe
) -> Iterator[tuple[float, float]]:
    """Do the same by the compiled kernels; the bias before the normalisation never moves."""
    training = NativeTraining(
        (weights[0], weights[2], weights[3]), recipe.tv_weight, recipe.learning_rate, recipe.betas
    )
    images = iter(images)
    while batch := list(islice(images, _BATCH)):
        yield from ((l1, tv) for l1, tv in training.run(np.stack(batch)).tolist())


def train(
    channels: int = 18,
    noise: NoiseKind = "gaussian",
    sigma: float = 3.0,
    clamp: bool = True,
    tv_weight: float = 1.0,
    steps: int = 2000,
    size: int = 104,
    learning_rate: float = 2e-4,
    seed: int = 0,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    log: TrainingLog | None = None,
    on_step: Callable[[int], object] | None = None,
) -> SelfRegressionModel:
    """Train a network on noise.

    Parameters
    ----------
    channels, noise, sigma, clamp, tv_weight, steps, size, learning_rate, seed, mean
        see `TrainingRecipe`
    log : receives the losses of every step
    on_step : called with the number of finished steps, for a progress display

    Returns
    -------
    SelfRegressionModel, the same bytes for the same arguments on the same machine

    Raises
    ------
    InputError
        An argument is out of range.

    Examples
    --------
    >>> log = TrainingLog()
    >>> model = train(steps=20, size=32, seed=1, log=log)
    >>> model.training["steps"], len(log.l1)
    (20, 20)
    """
    recipe = TrainingRecipe(
        channels, noise, sigma, clamp, mean, tv_weight, steps, size, learning_rate, seed=seed
    )
    log = TrainingLog() if log is None else log
    rng = np.random.default_rng([seed, 1])
    weights = [a.copy() for a in SelfRegressionModel.initialise(channels, seed).arrays()]
    images = (noise_image(rng, noise, size, sigma, clamp, mean) for _ in range(steps))
    advance = _native_steps if instruction_set() != "numpy" else _numpy_steps
    for l1, tv in advance(weights, images, recipe):
        log.l1.append(l1)
        log.tv.append(tv)
        if on_step is not None:
            on_step(len(log.l1))
    l1, tv = log.final()
    training = {
        **{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(recipe).items()},
        "final_l1": round(l1, 6),
        "final_tv": round(tv, 6),
    }
    return SelfRegressionModel(weights[0], weights[1], weights[2], weights[3], training)


def train_many(
    seeds: Iterable[int],
    jobs: int | None = None,
    on_step: Callable[[int], object] | None = None,
    logs: list[TrainingLog] | None = None,
    **recipe: Any,
) -> list[SelfRegressionModel]:
    """Train one network per seed, several at a time.

    Parameters
    ----------
    seeds : of weights and noise
    jobs : trainings at a time, each on one thread; None for one per core of the process
    on_step : called after every step of every training, from several threads
    logs : receives the losses of every training, in order of the seeds
    recipe : other arguments of `train`

    Returns
    -------
    one SelfRegressionModel per seed, in order; each is what `train` gives for its seed, bit for bit

    Raises
    ------
    InputError
        An argument is out of range.

    Examples
    --------
    >>> models = train_many(range(3), steps=5, size=16)
    >>> [model.training["seed"] for model in models]
    [0, 1, 2]
    """
    if jobs is not None:
        check_threads(jobs, "jobs")
    seeds = list(seeds)
    written = [TrainingLog() for _ in seeds]
    if logs is not None:
        logs.extend(written)
    stop = Event()

    def one(seed: int, log: TrainingLog) -> SelfRegressionModel:
        def tell(step: int) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            if on_step is not None:
                on_step(step)

        return train(seed=seed, on_step=tell, log=log, **recipe)

    # The compiled steps let other threads run.
    with ThreadPoolExecutor(available_cores() if jobs is None else jobs) as pool:
        try:
            return list(pool.map(one, seeds, written))
        except BaseException:
            stop.set()  # the others would run to their end first
            raise
