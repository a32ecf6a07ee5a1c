"""Attacks by scenario: standalone, transfer, encoder, and attackers who expect to be tuned."""

from backdoor_ft.attacks.encoder import EncoderClassifier, badencoder, nt_xent, simclr
from backdoor_ft.attacks.resistant import fisher_diagonal, sbl, sft_aware
from backdoor_ft.attacks.standalone import (
    PRESETS,
    adversarial_base,
    attack,
    plan_attack,
    train_input_aware,
)
from backdoor_ft.attacks.transfer import (
    TransferResult,
    classes_of,
    transfer,
    transfer_attack,
    with_head,
)

__all__ = [
    "PRESETS",
    "EncoderClassifier",
    "TransferResult",
    "adversarial_base",
    "attack",
    "badencoder",
    "classes_of",
    "fisher_diagonal",
    "nt_xent",
    "plan_attack",
    "sbl",
    "sft_aware",
    "simclr",
    "train_input_aware",
    "transfer",
    "transfer_attack",
    "with_head",
]
