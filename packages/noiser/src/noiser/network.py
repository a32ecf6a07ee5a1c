"""The self-regression module (SRM): its weights, its file format."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noiser.errors import InputError
from noiser.files import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float

FORMAT = "noiser-srm"
FORMAT_VERSION = 1
INSTANCE_NORM_EPS = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class SelfRegressionModel:
    """Weights of the network conv3x3, instance norm, GELU, conv3x3, tanh.

    Input and output are RGB in [-1, 1]; instance normalisation has no parameters and takes its
    statistics from the image at hand.

    Parameters
    ----------
    conv1_weight : (channels, 3, 3, 3) float32, axes (out, in, row, column)
    conv1_bias : (channels,) float32
    conv2_weight : (3, channels, 3, 3) float32
    conv2_bias : (3,) float32
    training : how the weights came about: recipe, seed, final losses

    Raises
    ------
    InputError
        A shape or a value does not fit.

    Notes
    -----
    The layers are the paper's (SRM, section 3); order, padding and initialisation follow an
    independent implementation, because the authors published no code. A model of C channels has
    55 C + 3 parameters: 993 for C = 18, the paper's "about 1K".

    Examples
    --------
    >>> model = SelfRegressionModel.initialise(channels=18, seed=0)
    >>> model
    SelfRegressionModel(channels=18, parameters=993, untrained)
    """

    conv1_weight: Float[np.ndarray, "channels 3 3 3"]
    conv1_bias: Float[np.ndarray, channels]
    conv2_weight: Float[np.ndarray, "3 channels 3 3"]
    conv2_bias: Float[np.ndarray, " 3"]
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = int(self.conv1_bias.shape[0]) if self.conv1_bias.ndim == 1 else 0
        wanted = {
            "conv1_weight": (channels, 3, 3, 3),
            "conv1_bias": (channels,),
            "conv2_weight": (3, channels, 3, 3),
            "conv2_bias": (3,),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if channels < 1 or value.shape != shape:
                raise InputError(
                    f"{name} has shape {value.shape}: must be {shape}, with at least one channel"
                )
            if not np.isfinite(value).all():
                raise InputError(f"{name} holds NaN or infinity: all weights must be finite")
            object.__setattr__(self, name, np.ascontiguousarray(value, dtype=np.float32))

    @property
    def channels(self) -> int:
        """Number of hidden channels."""
        return int(self.conv1_bias.shape[0])

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(a.size for a in self.arrays())

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Weights and biases in the order conv1, conv2."""
        return self.conv1_weight, self.conv1_bias, self.conv2_weight, self.conv2_bias

    def __repr__(self) -> str:
        how = f"trained {self.training['steps']} steps" if self.training else "untrained"
        return f"SelfRegressionModel(channels={self.channels}, parameters={self.parameters}, {how})"

    @classmethod
    def initialise(cls, channels: int = 18, seed: int = 0) -> SelfRegressionModel:
        """Random weights, uniform within 1/sqrt(fan in), as PyTorch initialises a convolution.

        Parameters
        ----------
        channels : number of hidden channels, at least 1
        seed : of the generator

        Returns
        -------
        SelfRegressionModel

        Raises
        ------
        InputError
            `channels` is not in 1 ... 256.
        """
        if not 1 <= channels <= 256:
            raise InputError(f"channels={channels} is not allowed: an integer in 1 ... 256")
        rng = np.random.default_rng(seed)

        def uniform(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
            bound = 1.0 / math.sqrt(fan_in)
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        return cls(
            uniform((channels, 3, 3, 3), 27),
            uniform((channels,), 27),
            uniform((3, channels, 3, 3), 9 * channels),
            uniform((3,), 9 * channels),
        )

    def to_json(self) -> str:
        """Write the model as JSON text; weights are base64 of little-endian float32."""
        arrays = {
            name: {
                "shape": list(getattr(self, name).shape),
                "float32": base64.b64encode(getattr(self, name).astype("<f4").tobytes()).decode(),
            }
            for name in ("conv1_weight", "conv1_bias", "conv2_weight", "conv2_bias")
        }
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "channels": self.channels,
            "training": self.training,
            "arrays": arrays,
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "model") -> SelfRegressionModel:
        """Read a model from JSON text.

        Parameters
        ----------
        text : what `to_json` wrote
        name : how error messages call the source

        Returns
        -------
        SelfRegressionModel

        Raises
        ------
        InputError
            The text is not a model of this format and version.
        """
        wanted = f"must be a model written by 'noiser train' ({FORMAT} version {FORMAT_VERSION})"
        try:
            document = json.loads(text)
            if document["format"] != FORMAT or document["version"] != FORMAT_VERSION:
                raise InputError(f"model={name!r} has another format: {wanted}")
            values = {}
            for key in ("conv1_weight", "conv1_bias", "conv2_weight", "conv2_bias"):
                entry = document["arrays"][key]
                flat = np.frombuffer(base64.b64decode(entry["float32"], validate=True), "<f4")
                values[key] = flat.reshape(entry["shape"]).astype(np.float32)
            return cls(**values, training=dict(document["training"]))
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"model={name!r} is not readable ({error}): {wanted}") from error

    def save(self, path: Path | str) -> Path:
        """Write the model to a JSON file, atomically.

        Parameters
        ----------
        path : file to write

        Returns
        -------
        the path

        Raises
        ------
        InputError
            The file cannot be written.
        """
        return write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: Path | str) -> SelfRegressionModel:
        """Read a model from a JSON file.

        Parameters
        ----------
        path : file that `save` wrote

        Returns
        -------
        SelfRegressionModel

        Raises
        ------
        InputError
            There is no such file, or it holds no model.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"model={str(path)!r} cannot be read ({error.__class__.__name__}):"
                " name a file written by 'noiser train'"
            ) from error
        return cls.from_json(text, str(path))
