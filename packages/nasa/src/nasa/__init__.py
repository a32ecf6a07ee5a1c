"""Hybrid convolution/shift/adder networks: operators, search, accelerator mapping."""

from importlib.metadata import version

from nasa import functional, hw, nn
from nasa.arch import Architecture
from nasa.network import HybridNet
from nasa.space import Candidate, SearchSpace
from nasa.supernet import Supernet

__version__ = version("nasa")
__all__ = [
    "Architecture",
    "Candidate",
    "HybridNet",
    "SearchSpace",
    "Supernet",
    "functional",
    "hw",
    "nn",
]
