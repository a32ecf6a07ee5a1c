"""Scorers: masked models, span-infilling models, explicit tables, user functions."""

from .base import Request, Scorer, Scores
from .explicit import FunctionScorer, TableScorer
from .masked import MaskedScorer, load, load_tokenizer
from .seq2seq import InfillScorer, load_infill

__all__ = [
    "FunctionScorer",
    "InfillScorer",
    "MaskedScorer",
    "Request",
    "Scorer",
    "Scores",
    "TableScorer",
    "load",
    "load_infill",
    "load_tokenizer",
]
