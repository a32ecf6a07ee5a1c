"""Fixed sparse attention for vision transformers."""

from vitcod.autoencoder import AEConfig, fold_autoencoder
from vitcod.diagnose import Maskability, diagnose
from vitcod.errors import InputError
from vitcod.finetune import Recipe, accuracy, finetune
from vitcod.layout import CostModel
from vitcod.masks import import_mask
from vitcod.models import VisionTransformer
from vitcod.ops import sparse_attention
from vitcod.patching import patch, unpatch
from vitcod.plan import LayerPlan, SparsityPlan
from vitcod.polarize import polarize
from vitcod.pruning import information_mask, prune
from vitcod.sim import simulate
from vitcod.stats import AttentionStats, collect_attention

__all__ = [
    "AEConfig",
    "AttentionStats",
    "CostModel",
    "InputError",
    "LayerPlan",
    "Maskability",
    "Recipe",
    "SparsityPlan",
    "VisionTransformer",
    "accuracy",
    "collect_attention",
    "diagnose",
    "finetune",
    "fold_autoencoder",
    "import_mask",
    "information_mask",
    "patch",
    "polarize",
    "prune",
    "simulate",
    "sparse_attention",
    "unpatch",
]
