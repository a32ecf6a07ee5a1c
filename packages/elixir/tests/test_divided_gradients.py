"""Each rank keeps its own part of the gradients. Oracle: DistributedDataParallel."""

from itertools import pairwise

import pytest
from ranks import launch


def pair(world, model, batch, options, **training):
    """Return a model under a plan, the same one under DDP, and both optimizers."""
    import elixir
    import torch

    plan = elixir.plan(model(), batch, world=world, recompute="none", **options)
    ours, optimizer = elixir.initialize(model(), plan=plan, lr=1e-2, **training)
    reference = torch.nn.parallel.DistributedDataParallel(model(), find_unused_parameters=True)
    return ours, optimizer, reference, elixir.optim.AdamW(reference.parameters(), lr=1e-2), plan


def assert_equal(model, reference):
    import torch

    for (name, a), b in zip(model.state_dict().items(), reference.module.state_dict().values()):
        assert torch.allclose(a, b, atol=1e-5), (name, (a - b).abs().max())


def case_bytes(rank, world, folder):
    """Count what a rank holds, which is what the plan counts."""
    import elixir
    from common import HARDWARE, gpt, gpt_batch

    options = {"device_budget": "2MiB", "hardware": HARDWARE}
    held = {}
    for ranks in (1, 2, 3):
        planned = elixir.plan(
            gpt(dim=64, layers=6), gpt_batch(), world=ranks, recompute="none", **options
        )
        held[ranks] = planned.host_bytes
    assert held[1] > held[2] > held[3], held
    ours, optimizer, *_, plan = pair(world, lambda: gpt(dim=64, layers=6), gpt_batch(), options)
    for step in range(2):
        ours(*gpt_batch(step * world + rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
    chunks, reduction = ours._elixir_engine.chunks, ours._elixir_engine.gradients.reduction
    parts = sum(c.gradient.nbytes for c in chunks)
    sizes = [c.host.nbytes for c in chunks]
    assert parts * world == sum(sizes)
    assert reduction._buffer.nbytes == max(a + b for a, b in pairwise(sizes))
    assert reduction.beyond == 0
    assert all(c.transit is None for c in chunks)
    states = 8 * sum(c.plan.trainable for c in chunks)
    found = (sum(sizes) + states) / world + parts + reduction._buffer.nbytes
    assert found == pytest.approx(plan.host_bytes, rel=0.01)
    optimizer.close()


def case_sums(rank, world, folder):
    """Accumulate with and without no_sync, clip, and read whole gradients."""
    import torch
    from common import HARDWARE, gpt, gpt_batch

    options = {"device_budget": "1MiB", "hardware": HARDWARE}
    found = pair(world, gpt, gpt_batch(), options, max_grad_norm=0.2)
    model, optimizer, reference, theirs, _ = found
    for step, silent in enumerate((False, True, False)):
        for micro in range(3):
            batch = gpt_batch(10 * step + 3 * rank + micro)
            if silent and micro < 2:
                with optimizer.no_sync():
                    model(*batch).backward()
            else:
                model(*batch).backward()
            reference(*batch).backward()
        for mine, other in zip(model.parameters(), reference.parameters()):
            whole = optimizer.gradient(mine)
            assert whole.shape == other.shape
            assert torch.allclose(whole, other.grad, atol=1e-6)
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.2)
        for o in (optimizer, theirs):
            o.step()
            o.zero_grad()
        assert optimizer.last_norm == pytest.approx(norm.item(), rel=1e-5)
        assert optimizer.gradient(next(model.parameters())) is None
    assert_equal(model, reference)
    optimizer.close()


def case_overflow(rank, world, folder):
    """Skip the step on all ranks where one rank's gradient overflows; the next is a clean one."""
    import elixir
    import torch
    from common import HARDWARE, gpt, gpt_batch

    options = {"device_budget": "1MiB", "hardware": HARDWARE}
    scaler = elixir.LossScaler(scale=2.0**10, hysteresis=1)
    found = pair(world, gpt, gpt_batch(), options, loss_scale=scaler)
    model, optimizer, reference, theirs, _ = found
    before = {k: v.clone() for k, v in model.state_dict().items()}
    factor = float("inf") if rank == world - 1 else 1.0
    optimizer.scale(model(*gpt_batch(rank)) * factor).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.skipped_steps == 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for step in range(2):
        optimizer.scale(model(*gpt_batch(step * world + rank))).backward()
        reference(*gpt_batch(step * world + rank)).backward()
        for o in (optimizer, theirs):
            o.step()
            o.zero_grad()
    assert_equal(model, reference)
    optimizer.close()


def chain():
    import torch

    class Chain(torch.nn.Module):
        """Layers in an order, and a choice of layers, that differ from call to call."""

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(8))
            self.order = range(8)

        def forward(self, x):
            for index in self.order:
                x = torch.tanh(self.layers[index](x))
            return x.square().mean()

    torch.manual_seed(0)
    return Chain()


ORDERS = [[range(8)] * 3, [range(7, -1, -1), range(8)], [(0, 5, 2), (7, 1), (0, 6)], [(1,), (4, 3)]]


def case_order(rank, world, folder):
    """Gradients out of order, missing and late, other ones on each rank: DDP's weights."""
    import elixir
    import torch
    from common import HARDWARE

    x, options = torch.randn(4, 16), {"device_budget": "16KiB", "hardware": HARDWARE}
    made = elixir.plan(chain(), x, world=world, recompute="none", **options)
    for plan in (made, made.override("layers.3.*", shard="replicate")):
        model, optimizer = elixir.initialize(chain(), plan=plan, lr=1e-2)
        ddp = torch.nn.parallel.DistributedDataParallel
        reference = ddp(chain(), find_unused_parameters=True)
        theirs = elixir.optim.AdamW(reference.parameters(), lr=1e-2)
        assert len(plan.chunks) >= 4
        for step, orders in enumerate(ORDERS):
            model.order = reference.module.order = orders[rank % len(orders)]
            x = torch.randn(4, 16, generator=torch.Generator().manual_seed(10 * step + rank))
            for _ in range(2):
                model(x).backward()
                reference(x).backward()
            for o in (optimizer, theirs):
                o.step()
                o.zero_grad()
            assert_equal(model, reference)
        reduction = model._elixir_engine.gradients.reduction
        assert reduction.started > 2 * len(ORDERS) * len(plan.chunks)  # there were late ones
        optimizer.close()


@pytest.mark.parametrize("world", [2, 3])
def test_divided(tmp_path, world):
    launch("test_divided_gradients:bytes,sums,overflow,order", world, tmp_path)
