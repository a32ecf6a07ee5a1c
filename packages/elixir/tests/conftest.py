import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Networks this small only lose time to a second thread."""
    torch.set_num_threads(1)
