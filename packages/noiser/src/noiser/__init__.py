"""Light for badly exposed photographs, from a network that was trained on noise alone."""

from noiser import baselines, metrics
from noiser.enhancement import enhance
from noiser.errors import InputError
from noiser.forward import forward
from noiser.network import SelfRegressionModel
from noiser.noise import noise_image
from noiser.statistics import FoldedModel, PatchStatistics, fold, patch_statistics
from noiser.training import TrainingLog, TrainingRecipe, train

__all__ = [
    "FoldedModel",
    "InputError",
    "PatchStatistics",
    "SelfRegressionModel",
    "TrainingLog",
    "TrainingRecipe",
    "baselines",
    "enhance",
    "fold",
    "forward",
    "metrics",
    "noise_image",
    "patch_statistics",
    "train",
]
