"""C++ exceptions; apart from test_native.py, because ASan wants the C++ library preloaded."""

import numpy as np
import pytest
from noiser import native


def test_the_bindings_check_what_they_are_given(photograph):
    kernels = native._native
    total, products = native.new_sums(photograph.dtype)
    with pytest.raises(ValueError, match="band misses rows"):
        kernels.patch_sums(photograph[:5], 0, 96, 0, 20, products, total, False, 1, "")
    with pytest.raises(ValueError, match="27 x 27"):
        kernels.patch_sums(photograph, 0, 96, 0, 9, total, total, False, 1, "")
    with pytest.raises(ValueError, match="same size"):
        kernels.lookup(photograph, np.zeros((3, 256), np.uint8), np.zeros(3, np.uint8), 1)
