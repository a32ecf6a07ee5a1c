"""Gestalt perception: descriptors of image cells, the three laws, groups."""

from gptr.gestalt.coarsen import group_tokens, mean_cosine_distance
from gptr.gestalt.descriptors import Descriptors, canny, describe
from gptr.gestalt.graph import GestaltGraph
from gptr.gestalt.laws import LAWS

__all__ = [
    "LAWS",
    "Descriptors",
    "GestaltGraph",
    "canny",
    "describe",
    "group_tokens",
    "mean_cosine_distance",
]
