"""Training."""

from gptr.train.cache import FeatureCache
from gptr.train.trainer import Trainer, TrainingDivergedError, TrainOptions

__all__ = ["FeatureCache", "TrainOptions", "Trainer", "TrainingDivergedError"]
