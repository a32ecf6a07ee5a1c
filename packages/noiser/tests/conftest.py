import numpy as np
import pytest
from noiser import SelfRegressionModel


@pytest.fixture(scope="session")
def model():
    return SelfRegressionModel.initialise(channels=6, seed=3)


@pytest.fixture(scope="session")
def photograph():
    """Cut 96 x 112 pixels out of scikit-image's astronaut, uint8."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[40:136, 160:272])
