"""The oracle of most tests: the same model trained by plain PyTorch with the same kernel."""

import elixir
import pytest
import torch
from elixir.models import GPT
from torch import nn
from torch.utils._pytree import tree_map

HARDWARE = elixir.Hardware()


def gpt_batch(seed=1, batch=2, length=16, vocab=64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (batch, length), generator=g) for _ in range(2)]


def gpt(seed=0, **kw):
    torch.manual_seed(seed)
    options = {"vocab": 64, "context": 16, "dim": 32, "layers": 3, "heads": 2}
    return GPT(**(options | kw))


LEAST = {}


def least_budget(model, batch, **kw):
    shapes = [tuple(p.shape) for p in model.parameters()]
    key = repr((model, shapes, tree_map(lambda t: t.shape, batch), kw))
    if key not in LEAST:
        with pytest.raises(elixir.InfeasiblePlanError) as caught:
            elixir.plan(model, batch, device_budget=1, hardware=HARDWARE, **kw)
        LEAST[key] = caught.value.least_budget
    return LEAST[key]


def call(model, batch):
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def default_loss(output):
    return output if output.dim() == 0 else output.square().mean()


def plain_steps(model, batches, *, lr=1e-2, accumulate=1, clip=None, loss=default_loss, **kw):
    """Train without elixir's memory management; same AdamW kernel, same clipping arithmetic."""
    import math

    optimizer = elixir.optim.AdamW(model.parameters(), lr=lr, **kw)
    losses = []
    for i, batch in enumerate(batches):
        value = loss(call(model, batch))
        value.backward()
        losses.append(value.item())
        if (i + 1) % accumulate:
            continue
        if clip is not None:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norm = math.sqrt(math.fsum(elixir.optim.square_sum(g)[0] for g in grads))
            coefficient = min(1.0, clip / (norm + 1e-6))
            for g in grads:
                g.mul_(coefficient)
        optimizer.step()
        optimizer.zero_grad()
    return losses, {k: v.clone() for k, v in model.state_dict().items()}


def elixir_steps(model, batches, plan, *, lr=1e-2, accumulate=1, loss=default_loss, cls=None, **kw):
    cls = cls or torch.optim.AdamW
    model, optimizer = elixir.initialize(model, cls, plan=plan, lr=lr, poison=True, **kw)
    losses = []
    for i, batch in enumerate(batches):
        if (i + 1) % accumulate:
            with optimizer.no_sync():
                value = loss(call(model, batch))
                value.backward()
        else:
            value = loss(call(model, batch))
            value.backward()
        losses.append(value.item())
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses, {k: v.clone() for k, v in model.state_dict().items()}, optimizer


def assert_same(first, second):
    assert first[0] == second[0]
    assert set(first[1]) == set(second[1])
    for key, value in first[1].items():
        assert torch.equal(value, second[1][key]), key


class Chain(nn.Module):
    """Equal layers: the trace of the 2n - k law."""

    def __init__(self, layers=6, dim=32):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(dim, dim, bias=False) for _ in range(layers)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean()
