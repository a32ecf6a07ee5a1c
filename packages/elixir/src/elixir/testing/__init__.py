"""Instruments that make faults visible: strict devices, a byte tracker, an adversarial mover.

:mod:`elixir.testing.sim` is the strict device in C++, with memory of its own;
:class:`StrictDevice` watches the emulated one from Python.
"""

from elixir.testing.adversary import AdversarialMover
from elixir.testing.strict_device import LiveBytes, StrictDevice

__all__ = ["AdversarialMover", "LiveBytes", "StrictDevice"]
