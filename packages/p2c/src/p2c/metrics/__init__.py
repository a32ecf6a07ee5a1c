"""Caption metrics: n-gram overlap, objects, intervals and tests."""

from .evaluation import domain_table, evaluate
from .ngram import CiderD, bleu, cider, rouge_l
from .objects import Hallucination, NovelF1, novel_f1, object_hallucination, tag_listing
from .stats import Interval, bootstrap, paired_bootstrap

__all__ = [
    "CiderD",
    "Hallucination",
    "Interval",
    "NovelF1",
    "bleu",
    "bootstrap",
    "cider",
    "domain_table",
    "evaluate",
    "novel_f1",
    "object_hallucination",
    "paired_bootstrap",
    "rouge_l",
    "tag_listing",
]
