"""Training models larger than device memory, with a plan made before the first step."""

from importlib.metadata import version

from elixir import optim, planner
from elixir.api import initialize, plan
from elixir.errors import (
    BudgetExceededError,
    CorruptCheckpointError,
    InfeasiblePlanError,
    StalePlanError,
    UnsupportedOptimizerError,
)
from elixir.planner.result import Plan
from elixir.profile.hardware import Hardware
from elixir.profile.trace import profile
from elixir.runtime.scaler import LossScaler

__version__ = version("elixir")
__all__ = [
    "BudgetExceededError",
    "CorruptCheckpointError",
    "Hardware",
    "InfeasiblePlanError",
    "LossScaler",
    "Plan",
    "StalePlanError",
    "UnsupportedOptimizerError",
    "initialize",
    "optim",
    "plan",
    "planner",
    "profile",
]
