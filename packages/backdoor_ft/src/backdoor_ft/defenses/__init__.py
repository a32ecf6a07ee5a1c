"""Defences under one protocol, one concept per file."""

from backdoor_ft.defenses.adversarial import IBAU, SAU
from backdoor_ft.defenses.base import REGISTRY, Defense, RepairResult, make
from backdoor_ft.defenses.departure import D3, FST
from backdoor_ft.defenses.distillation import NAD
from backdoor_ft.defenses.filtering import ABL, ActivationClustering, SpectralSignatures
from backdoor_ft.defenses.inversion import NC
from backdoor_ft.defenses.masks import ANP, RNP
from backdoor_ft.defenses.pruning import CLP, FinePruning
from backdoor_ft.defenses.sharpness import FTSAM, PAM
from backdoor_ft.defenses.tuning import FT, BNRecalibration, HeadOnly, Scratch, SuperFT
from backdoor_ft.defenses.unlearning import Unlearn, universal_patterns

__all__ = [
    "ABL",
    "ANP",
    "CLP",
    "D3",
    "FST",
    "FT",
    "FTSAM",
    "IBAU",
    "NAD",
    "NC",
    "PAM",
    "REGISTRY",
    "RNP",
    "SAU",
    "ActivationClustering",
    "BNRecalibration",
    "Defense",
    "FinePruning",
    "HeadOnly",
    "RepairResult",
    "Scratch",
    "SpectralSignatures",
    "SuperFT",
    "Unlearn",
    "make",
    "universal_patterns",
]
