"""Timing of the compiled kernels on this machine."""

from __future__ import annotations

import resource
import statistics
import time

import numpy as np

from .clock import IndependentClock
from .config import ExperimentConfig
from .schedule import exact_round
from .system import build_system


def timing_config(ues: int, participants: int, seed: int = 0) -> ExperimentConfig:
    """Timing-only experiment with 50 kHz per UE and 20.8 kbit uploads."""
    return ExperimentConfig.from_dict(
        {
            "ues": ues,
            "seed": seed,
            "schedule": {"participants": participants},
            "system": {"payload_bits": 20_800, "bandwidth_hz": 5e4 * ues},
        }
    )


def time_kernels(ues: int, rounds: int, repeats: int = 3) -> dict[str, float]:
    """Median seconds of the clock and of the exact scheduler.

    Returns
    -------
    dict
        ``clock_s``, ``updates_per_s``, ``exact_round_s`` and ``peak_memory_gib`` of the process.
    """
    participants = ues // 1000
    config = timing_config(ues, participants)
    IndependentClock(build_system(config), config).advance(1)
    clock, scheduler = [], []
    g = np.random.Generator(np.random.Philox(0))
    offset, snr = g.uniform(0.1, 5, ues), 1e8 * g.exponential(1.0, ues)
    exact_round(offset[:100], snr[:100], 640_000, 1e6, 10)
    for _ in range(repeats):
        start = time.perf_counter()
        IndependentClock(build_system(config), config).advance(rounds)
        clock.append(time.perf_counter() - start)
        start = time.perf_counter()
        exact_round(offset, snr, 640_000, 1e6, participants)
        scheduler.append(time.perf_counter() - start)
    return {
        "clock_s": statistics.median(clock),
        "updates_per_s": rounds * participants / statistics.median(clock),
        "exact_round_s": statistics.median(scheduler),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
