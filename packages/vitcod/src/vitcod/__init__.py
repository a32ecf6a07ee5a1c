"""Fixed sparse attention for vision transformers."""

from vitcod.errors import InputError
from vitcod.layout import CostModel
from vitcod.ops import sparse_attention
from vitcod.plan import LayerPlan, SparsityPlan

__all__ = ["CostModel", "InputError", "LayerPlan", "SparsityPlan", "sparse_attention"]
