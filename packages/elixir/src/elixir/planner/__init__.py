"""From a trace and a machine to a plan that fits."""

from elixir.planner.belady import belady_loads, palindrome_loads
from elixir.planner.cache import Cache
from elixir.planner.placement import knapsack
from elixir.planner.result import ChunkPlan, Plan
from elixir.planner.search import search
from elixir.planner.simulate import simulate

__all__ = [
    "Cache",
    "ChunkPlan",
    "Plan",
    "belady_loads",
    "knapsack",
    "palindrome_loads",
    "search",
    "simulate",
]
