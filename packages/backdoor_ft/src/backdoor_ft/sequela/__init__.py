"""Sequela: what a repair changes in the model's vulnerability to other attacks."""

from backdoor_ft.sequela.audit import AUDITS, Sequela, sequela
from backdoor_ft.sequela.membership import (
    Membership,
    Shadows,
    judge,
    lira,
    metric_attacks,
    rmia,
    shadow_attacks,
    tpr_at,
    train_shadows,
)
from backdoor_ft.sequela.reactivation import (
    existence_coefficient,
    linear_cka,
    query_reactivation,
)
from backdoor_ft.sequela.reinjection import Curve, reinjection_curve, retuning_attack
from backdoor_ft.sequela.robustness import (
    adversarial_accuracy,
    barrier,
    calibration,
    expected_calibration_error,
    path_losses,
)

__all__ = [
    "AUDITS",
    "Curve",
    "Membership",
    "Sequela",
    "Shadows",
    "adversarial_accuracy",
    "barrier",
    "calibration",
    "existence_coefficient",
    "expected_calibration_error",
    "judge",
    "linear_cka",
    "lira",
    "metric_attacks",
    "path_losses",
    "query_reactivation",
    "reinjection_curve",
    "retuning_attack",
    "rmia",
    "sequela",
    "shadow_attacks",
    "tpr_at",
    "train_shadows",
]
