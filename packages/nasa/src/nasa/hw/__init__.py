"""Accelerator model and mapper."""

from nasa.hw.accelerator import Accelerator
from nasa.hw.allocate import AllocationResult, allocate, area_of, search_allocation
from nasa.hw.dataflows import Dataflow, Memories, Tilings, tilings
from nasa.hw.layer import Layer, Workload
from nasa.hw.mapper import MappedLayer, MappingResult
from nasa.hw.mapper import map_workload as map
from nasa.hw.systolic import systolic_cycles
from nasa.hw.tables import InfeasibleMappingError, Point

__all__ = [
    "Accelerator",
    "AllocationResult",
    "Dataflow",
    "InfeasibleMappingError",
    "Layer",
    "MappedLayer",
    "MappingResult",
    "Memories",
    "Point",
    "Tilings",
    "Workload",
    "allocate",
    "area_of",
    "map",
    "search_allocation",
    "systolic_cycles",
    "tilings",
]
