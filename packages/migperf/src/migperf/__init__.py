"""Benchmark, reconfigure and plan partitioned GPUs."""

from .boards import Board, GpuProfile, board_names, load_board
from .errors import Infeasible, InputError, InstanceInUse, MigperfError
from .layout import Layout, PlacedLayout, enumerate_layouts
from .measurements import Measurement, MeasurementTable, load_measurements, paper_measurements
from .node import Gpu, MigDevice, Node
from .nvml.sim import Simulator
from .placement import fragmentation
from .planner.exact import plan
from .planner.model import Demand, Plan
from .study import Study
from .transition import Transition, plan_transition

__all__ = [
    "Board",
    "Demand",
    "Gpu",
    "GpuProfile",
    "Infeasible",
    "InputError",
    "InstanceInUse",
    "Layout",
    "Measurement",
    "MeasurementTable",
    "MigDevice",
    "MigperfError",
    "Node",
    "PlacedLayout",
    "Plan",
    "Simulator",
    "Study",
    "Transition",
    "board_names",
    "enumerate_layouts",
    "fragmentation",
    "load_board",
    "load_measurements",
    "paper_measurements",
    "plan",
    "plan_transition",
]
