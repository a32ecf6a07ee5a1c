"""The Triton kernel's layout, in numpy; the kernel itself where there is a GPU."""

import numpy as np
import pytest
import torch
from conftest import random_mask
from vitcod import SparsityPlan, polarize, sparse_attention
from vitcod.cuda_ops import cuda_attention, cuda_available, gather_layout


@pytest.mark.parametrize("rows", [16, 64])
def test_layout_holds_every_entry_once(rows):
    plan = polarize(SparsityPlan.from_masks([random_mask(2, 101, 101, 0.1)])).layer(0)
    ptr, keys, words, order = gather_layout(plan, rows, 32)
    tiles = order.shape[1] // rows
    found = np.zeros_like(plan.keep)
    for h in range(2):
        for t in range(tiles):
            begin, end = ptr[h * tiles + t], ptr[h * tiles + t + 1]
            assert (end - begin) % 32 == 0
            bits = words[begin:end].view(np.uint64)
            for lane in range(rows):
                row = order[h, t * rows + lane]
                chosen = keys[begin:end][(bits >> np.uint64(lane)) & np.uint64(1) == 1]
                if row < 0:
                    assert len(chosen) == 0
                else:
                    found[h, row, chosen] = True
    assert np.array_equal(found, plan.keep)


def test_the_kernel_does_not_take_cpu_tensors():
    x = torch.zeros(1, 1, 4, 64, dtype=torch.bfloat16)
    assert not cuda_available(x, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_kernel_on_a_gpu():
    plan = polarize(SparsityPlan.from_masks([random_mask(3, 197, 197, 0.1)])).layer(0)
    q, k, v = (torch.randn(2, 3, 197, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = sparse_attention(q.double(), k.double(), v.double(), plan)
    assert (cuda_attention(q, k, v, plan, 0.125).double() - expected).abs().max() < 2e-2
