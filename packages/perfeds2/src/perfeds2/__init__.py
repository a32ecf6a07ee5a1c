"""Semi-synchronous personalised federated learning over wireless edges."""

from .bandwidth import (
    Allocation,
    allocate,
    demand,
    equal_split,
    finishing_times,
    lower_limit_s,
    proportional_split,
    snr_for_load,
)
from .channel import path_gain, rate_bit_per_s, snr_density_hz, watt_from_dbm
from .clock import IndependentClock, Round, TimingLog, make_clock
from .config import ExperimentConfig
from .data import FederatedData, federate, load_data
from .engine import Simulation
from .errors import DivergedError, InfeasibleError, InputError
from .objective import FlatModel, MetaGradient
from .plan import Plan, exhaustive_plan, plan
from .result import RunResult
from .schedule import RoundSchedule, exact_round, exhaustive_round, greedy
from .system import System, build_system, read_trace
from .theory import Bound, Constants, bound, estimate_constants, largest_step, rounds_needed
from .tuning import Tuning, tune_participants

__all__ = [
    "Allocation",
    "Bound",
    "Constants",
    "DivergedError",
    "ExperimentConfig",
    "FederatedData",
    "FlatModel",
    "IndependentClock",
    "InfeasibleError",
    "InputError",
    "MetaGradient",
    "Plan",
    "Round",
    "RoundSchedule",
    "RunResult",
    "Simulation",
    "System",
    "TimingLog",
    "Tuning",
    "allocate",
    "bound",
    "build_system",
    "demand",
    "equal_split",
    "estimate_constants",
    "exact_round",
    "exhaustive_plan",
    "exhaustive_round",
    "federate",
    "finishing_times",
    "greedy",
    "largest_step",
    "load_data",
    "lower_limit_s",
    "make_clock",
    "path_gain",
    "plan",
    "proportional_split",
    "rate_bit_per_s",
    "read_trace",
    "rounds_needed",
    "snr_density_hz",
    "snr_for_load",
    "tune_participants",
    "watt_from_dbm",
]
