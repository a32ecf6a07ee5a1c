"""Triggers, one concept per file; every one is serialisable."""

from backdoor_ft.triggers.base import REGISTRY, Trigger
from backdoor_ft.triggers.blend import AdaptiveBlend, Blended
from backdoor_ft.triggers.frequency import CTRL, SIG, LowFrequency
from backdoor_ft.triggers.patch import BadNets, LabelConsistent, Pixels
from backdoor_ft.triggers.sample_specific import BPP, InputAware, SSBALike
from backdoor_ft.triggers.text import RareWord
from backdoor_ft.triggers.warp import WaNet

__all__ = [
    "BPP",
    "CTRL",
    "REGISTRY",
    "SIG",
    "AdaptiveBlend",
    "BadNets",
    "Blended",
    "InputAware",
    "LabelConsistent",
    "LowFrequency",
    "Pixels",
    "RareWord",
    "SSBALike",
    "Trigger",
    "WaNet",
]
