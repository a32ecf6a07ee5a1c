"""Share the energy of a GPU among its instances.

NVML counts energy for the whole GPU only, so every figure per instance is an estimate. What is
exact is the sum: the shares and the unattributed rest add up to the counter's change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .boards import Board
from .errors import InputError

__all__ = ["Attribution", "InstanceActivity", "attribute_energy"]


@dataclass(frozen=True)
class InstanceActivity:
    """What is known of an instance over a window.

    Parameters
    ----------
    name : str
        Key in the result.
    profile : str
        Profile name.
    activity : float
        Mean graphics engine or SM activity over the window, 0 to 1.
    """

    name: str
    profile: str
    activity: float


@dataclass(frozen=True)
class Attribution:
    """Energy of a window, shared.

    Parameters
    ----------
    joules : dict of str to float
        Estimated share of each instance, J.
    unattributed : float
        Idle energy of the slices that no instance holds, J.
    total : float
        Change of the counter, J.
    """

    joules: Mapping[str, float]
    unattributed: float
    total: float
    estimate: bool = True

    @property
    def imbalance(self) -> float:
        """Relative difference between the sum of the parts and the counter."""
        if self.total == 0:
            return 0.0
        return abs(math.fsum([*self.joules.values(), self.unattributed]) - self.total) / self.total


def attribute_energy(
    board: Board, instances: Sequence[InstanceActivity], total_joules: float, seconds: float
) -> Attribution:
    """Share the counter's change among instances.

    The idle energy (idle power times the window, at most the total) is shared by memory slices,
    the rest by activity times multiprocessors. Slices without an instance keep their idle share as
    unattributed; so does everything dynamic when all activities are zero.

    Parameters
    ----------
    board : Board
        Geometry and idle power.
    instances : sequence of InstanceActivity
        All instances of the GPU.
    total_joules : float
        Change of the energy counter over the window, J.
    seconds : float
        Length of the window.

    Examples
    --------
    >>> from migperf.boards import load_board
    >>> parts = [InstanceActivity("a", "3g.40gb", 1.0), InstanceActivity("b", "4g.40gb", 0.5)]
    >>> shares = attribute_energy(load_board("a100-80gb"), parts, 3000.0, 10.0)
    >>> round(shares.joules["a"]), round(shares.joules["b"]), shares.unattributed
    (1745, 1255, 0.0)
    """
    if not (total_joules >= 0 and seconds > 0):
        raise InputError.of("total_joules, seconds", (total_joules, seconds), ">= 0 and > 0")
    names = [i.name for i in instances]
    if len(set(names)) < len(names):
        raise InputError.of("instances", names, "each name once")
    for i in instances:
        if not 0 <= i.activity <= 1:
            raise InputError.of(f"activity of {i.name}", i.activity, "a ratio from 0 to 1")
    idle = min(total_joules, board.idle_power_watts * seconds)
    slices = {i.name: board.profile(i.profile).size for i in instances}
    if sum(slices.values()) > board.memory_slices:
        raise InputError.of("instances", names, f"at most {board.memory_slices} memory slices")
    weights = {i.name: i.activity * board.profile(i.profile).multiprocessors for i in instances}
    weight = math.fsum(weights.values())
    dynamic = total_joules - idle
    joules = {}
    for name in names:
        share = dynamic * weights[name] / weight if weight > 0 else 0.0
        joules[name] = idle * slices[name] / board.memory_slices + share
    free = board.memory_slices - sum(slices.values())
    rest = idle * free / board.memory_slices + (0.0 if weight > 0 else dynamic)
    return Attribution(joules, rest, total_joules)
