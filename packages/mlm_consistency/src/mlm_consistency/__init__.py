"""Measure whether a joint distribution stands behind a masked language model, and repair it."""

from . import compat, gibbs, hodge, joints, metrics, paper, pooling, stats, umr
from .eoc import (
    CompletionItem,
    EnsembleOfConditionals,
    EnsembleResult,
    MaskingPattern,
    last_word_items,
    parse_patterns,
)
from .errors import InputError, ProbeError, ScoreError, SupportError, VerdictError
from .evaluator import ConsistencyEvaluator, EvaluatorConfig
from .finetune import FinetuneConfig, finetune
from .masked_ensemble import ensemble_conditional
from .mini import held_out_sentences
from .planner import Planner
from .pll import SentenceScore, pseudo_log_likelihood
from .probes import PairProbe, ProbeSet, pair_probes
from .result import ConsistencyReport, compare
from .scorers import (
    FunctionScorer,
    InfillScorer,
    MaskedScorer,
    Request,
    Scorer,
    Scores,
    TableScorer,
    load,
    load_infill,
)
from .tables import CubeTable, PairTable

__all__ = [
    "CompletionItem",
    "ConsistencyEvaluator",
    "ConsistencyReport",
    "CubeTable",
    "EnsembleOfConditionals",
    "EnsembleResult",
    "EvaluatorConfig",
    "FinetuneConfig",
    "FunctionScorer",
    "InfillScorer",
    "InputError",
    "MaskedScorer",
    "MaskingPattern",
    "PairProbe",
    "PairTable",
    "Planner",
    "ProbeError",
    "ProbeSet",
    "Request",
    "ScoreError",
    "Scorer",
    "Scores",
    "SentenceScore",
    "SupportError",
    "TableScorer",
    "VerdictError",
    "compare",
    "compat",
    "ensemble_conditional",
    "finetune",
    "gibbs",
    "held_out_sentences",
    "hodge",
    "joints",
    "last_word_items",
    "load",
    "load_infill",
    "metrics",
    "pair_probes",
    "paper",
    "parse_patterns",
    "pooling",
    "pseudo_log_likelihood",
    "stats",
    "umr",
]
