"""Clean a backdoored model by super-fine-tuning, prove it, and measure what remains."""

from backdoor_ft import attacks, data, defenses, models, schedules, triggers
from backdoor_ft.auto import repair
from backdoor_ft.data import LabeledData
from backdoor_ft.defenses import RepairResult
from backdoor_ft.engine import Recipe, train
from backdoor_ft.errors import DivergedError, InputError
from backdoor_ft.metrics import Evaluation, evaluate, implanted
from backdoor_ft.poison import PoisonPlan, poison
from backdoor_ft.schedules import SuperFineTuneLR
from backdoor_ft.sequela import sequela

__all__ = [
    "DivergedError",
    "Evaluation",
    "InputError",
    "LabeledData",
    "PoisonPlan",
    "Recipe",
    "RepairResult",
    "SuperFineTuneLR",
    "attacks",
    "data",
    "defenses",
    "evaluate",
    "implanted",
    "models",
    "poison",
    "repair",
    "schedules",
    "sequela",
    "train",
    "triggers",
]
