import backdoor_ft as bft
import pytest
import torch
from backdoor_ft import models

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    return bft.data.digits(0)


@pytest.fixture(scope="session")
def badnets(digits):
    """Train a victim of BadNets on digits; return it with its plan."""
    train, _ = digits
    plan = bft.poison(train, trigger=bft.triggers.BadNets(2, pattern="checker"), seed=0)
    victim = bft.train(models.SmallCNN, plan.dataset, recipe="digits", seed=0)
    return victim, plan


@pytest.fixture(scope="session")
def scratch(digits, badnets):
    return bft.defenses.Scratch(steps=300, batch_size=64).repair(badnets[0], digits[0]).model


@pytest.fixture(scope="session")
def repaired(digits, badnets):
    return bft.defenses.SuperFT().repair(badnets[0], digits[0]).model
