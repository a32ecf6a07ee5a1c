"""Evaluation: COCO figures, classes by frequency, errors, paired bootstrap."""

from gptr.evaluation.bootstrap import Comparison, compare
from gptr.evaluation.coco import Evaluation, evaluate, evaluate_detections

__all__ = ["Comparison", "Evaluation", "compare", "evaluate", "evaluate_detections"]
