import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import pytest
import torch
from mlm_consistency import PairTable
from scipy.special import logsumexp

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def random_table(rng, a, b, scale=1.5, margins=True):
    """Two unrelated conditionals: an incompatible table."""
    first, second = rng.normal(size=(2, a, b)) * scale
    m_i, m_j = rng.normal(size=a), rng.normal(size=b)
    extra = (m_i - logsumexp(m_i), m_j - logsumexp(m_j)) if margins else (None, None)
    return PairTable(
        first - logsumexp(first, axis=0),
        second - logsumexp(second, axis=1, keepdims=True),
        *extra,
        gold=(0, 0),
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def mini():
    """Scorer and tokenizer of the bundled BERT-style miniature."""
    from mlm_consistency import load

    return load("mini-bert")


@pytest.fixture(scope="session")
def mini_t5():
    from mlm_consistency import load_infill

    return load_infill("mini-t5")
