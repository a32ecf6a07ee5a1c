"""Light for badly exposed photographs, from a network that was trained on noise alone."""

from noiser import baselines, metrics
from noiser.assess import ExposureReport, assess
from noiser.cube import Cube
from noiser.enhancement import Enhancer, Settings, enhance, pretrained
from noiser.errors import InputError
from noiser.forward import forward
from noiser.network import SelfRegressionModel
from noiser.noise import noise_image
from noiser.passes import apply_network, collect_statistics
from noiser.statistics import FoldedModel, PatchStatistics, fold, patch_statistics
from noiser.training import TrainingLog, TrainingRecipe, train, train_many
from noiser.video import VideoEnhancer

__all__ = [
    "Cube",
    "Enhancer",
    "ExposureReport",
    "FoldedModel",
    "InputError",
    "PatchStatistics",
    "SelfRegressionModel",
    "Settings",
    "TrainingLog",
    "TrainingRecipe",
    "VideoEnhancer",
    "apply_network",
    "assess",
    "baselines",
    "collect_statistics",
    "enhance",
    "fold",
    "forward",
    "metrics",
    "noise_image",
    "patch_statistics",
    "pretrained",
    "train",
    "train_many",
]
