import numpy as np
import pytest
import torch
from vitcod import AttentionStats, VisionTransformer


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return VisionTransformer(image=8, patch=2, channels=1, dim=32, depth=2, heads=4).eval()


@pytest.fixture
def images():
    return torch.rand(6, 1, 8, 8)


@pytest.fixture(scope="session")
def stats():
    """Averaged maps of DeiT-Tiny's shape, peaked like those of a trained model."""
    rng = np.random.default_rng(1)
    return AttentionStats([rng.dirichlet(np.full(197, 0.05), (3, 197)) for _ in range(4)], images=1)


def random_mask(heads, queries, keys, density, seed=0):
    """Random mask with at least one key per row."""
    rng = np.random.default_rng(seed)
    mask = rng.random((heads, queries, keys)) < density
    first = rng.integers(keys, size=(heads, queries, 1))
    np.put_along_axis(mask, first, True, 2)
    return mask
