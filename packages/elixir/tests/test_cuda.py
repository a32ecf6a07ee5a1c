"""The CUDA kernels: compiled wherever nvcc is; training on a GPU wherever there is one."""

import shutil
import subprocess
from pathlib import Path

import elixir
import pytest
import torch
from common import HARDWARE, gpt, gpt_batch

SOURCE = Path(__file__).parent.parent / "csrc" / "adamw_cuda.cu"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_compiles_for_hopper(tmp_path):
    target = tmp_path / "kernels.cubin"
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cubin", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_equal_for_every_budget_on_a_gpu(factor):
    losses = []
    for budget in (None, factor):
        model = gpt()
        plan = elixir.plan(
            model,
            gpt_batch(),
            device_budget="4GiB",
            hardware=HARDWARE,
            device="cuda",
            recompute="none",
        )
        if budget is not None:
            plan = plan._replan(device_budget=int(plan.least_budget * budget))
            plan = plan.override("*", tier="host")
        else:
            plan = plan.override("*", tier="pinned")
        model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2)
        found = []
        for i in range(4):
            loss = model(*[t.cuda() for t in gpt_batch(i)])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        losses.append(found)
        optimizer.close()
    assert losses[0] == losses[1]
