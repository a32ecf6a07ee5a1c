"""Objects in diagrams, found with gestalt laws that can be looked at."""

from importlib.metadata import version

from gptr.config import GPTRConfig
from gptr.data.coco import COCODataset
from gptr.data.dataset import DiagramDataset
from gptr.data.images import DataError
from gptr.detections import Detections
from gptr.evaluation.bootstrap import compare
from gptr.evaluation.coco import Evaluation, evaluate
from gptr.gestalt.graph import GestaltGraph
from gptr.matching import HungarianMatcher
from gptr.model.gptr import GPTR, DetectionOutput
from gptr.synth.generate import generate
from gptr.train.trainer import Trainer, TrainOptions

__version__ = version("gptr")
__all__ = [
    "GPTR",
    "COCODataset",
    "DataError",
    "DetectionOutput",
    "Detections",
    "DiagramDataset",
    "Evaluation",
    "GPTRConfig",
    "GestaltGraph",
    "HungarianMatcher",
    "TrainOptions",
    "Trainer",
    "compare",
    "evaluate",
    "generate",
]
