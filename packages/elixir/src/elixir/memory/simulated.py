"""What the runtime needs to know of a device that is simulated on the CPU.

:mod:`elixir.testing.sim` registers its device here when it is loaded; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SimulatedDevice:
    """A device whose memory the process could reach, but must not.

    Attributes
    ----------
    window
        Shows a device tensor's memory as a CPU tensor.
    place
        ``place(tensor, value)`` does what ``tensor.data = value`` does, between host and device.
    """

    window: Callable[[Tensor], Tensor]
    place: Callable[[Tensor, Tensor], None]


DEVICES: dict[str, SimulatedDevice] = {}
"""By device type."""


def window(tensor: Tensor) -> Tensor:
    """Return a tensor as the kernels, which take CPU pointers, may use it.

    A kernel of a real device runs on its memory in place; so does ours on a simulated device's.
    """
    device = DEVICES.get(tensor.device.type)
    return tensor if device is None else device.window(tensor)


def place(tensor: Tensor, value: Tensor) -> None:
    """Give a parameter or buffer other memory, also on another device: ``tensor.data = value``.

    PyTorch refuses that between the host and backends that are not its own.
    """
    kinds = {tensor.device.type, value.device.type}
    if len(kinds) == 2 and (known := kinds & DEVICES.keys()):
        DEVICES[known.pop()].place(tensor, value)
    else:
        tensor.data = value
