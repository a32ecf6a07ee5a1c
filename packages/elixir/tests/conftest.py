import pytest
import torch
from sim_process import process


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Networks this small only lose time to a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def strict_device():
    """Run bodies of tests where the strict device is; see sim_process."""
    with process() as run:
        yield run
