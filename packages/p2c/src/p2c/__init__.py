"""Caption objects that no caption ever taught, by paraphrasing (P2C, NeurIPS 2022)."""

from . import metrics
from .association import (
    AssociationModel,
    HFAssociation,
    OpenClipAssociation,
    SmallAssociation,
    association_probability,
    swap_gate,
)
from .captioner import Captioner, Captions, TagTransformerCaptioner
from .config import PipelineConfig
from .decode import beam_search, constrained_beam
from .detector import RegionDetector
from .errors import InputError, NotFiniteError
from .hf import HFCaptioner
from .hf_named import HFJudge, HFStudent
from .hf_paraphrase import HFMaskedLM, T5SpanParaphraser
from .negatives import WordSwaps
from .new_objects import add_objects
from .paraphrase import MaskedLMParaphraser, NullParaphraser, SmallMaskedLM
from .pipeline import Pipeline
from .result import PipelineResult
from .rewards import RewardSum, WordCosines, clip_score
from .rl import SCSTLoss
from .stages import Distillation, SelfParaphrase
from .vocabulary import Vocabulary

__all__ = [
    "AssociationModel",
    "Captioner",
    "Captions",
    "Distillation",
    "HFAssociation",
    "HFCaptioner",
    "HFJudge",
    "HFMaskedLM",
    "HFStudent",
    "InputError",
    "MaskedLMParaphraser",
    "NotFiniteError",
    "NullParaphraser",
    "OpenClipAssociation",
    "Pipeline",
    "PipelineConfig",
    "PipelineResult",
    "RegionDetector",
    "RewardSum",
    "SCSTLoss",
    "SelfParaphrase",
    "SmallAssociation",
    "SmallMaskedLM",
    "T5SpanParaphraser",
    "TagTransformerCaptioner",
    "Vocabulary",
    "WordCosines",
    "WordSwaps",
    "add_objects",
    "association_probability",
    "beam_search",
    "clip_score",
    "constrained_beam",
    "metrics",
    "swap_gate",
]
