"""Search strategies."""

from nasa.search.costs import CostTable, true_cost
from nasa.search.dnas import DNAS
from nasa.search.evolution import NSGA2, Evaluator, Evolution, random_search
from nasa.search.result import Evaluated, SearchResult, hypervolume, pareto_front

__all__ = [
    "DNAS",
    "NSGA2",
    "CostTable",
    "Evaluated",
    "Evaluator",
    "Evolution",
    "SearchResult",
    "hypervolume",
    "pareto_front",
    "random_search",
    "true_cost",
]
