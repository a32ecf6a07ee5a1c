"""Instruments that make faults visible: a strict device, a byte tracker, an adversarial mover."""

from elixir.testing.adversary import AdversarialMover
from elixir.testing.strict_device import LiveBytes, StrictDevice

__all__ = ["AdversarialMover", "LiveBytes", "StrictDevice"]
