"""What goes wrong for a user is refused by name, or the next step is clean."""

import elixir
import pytest
import torch
from common import (
    HARDWARE,
    Chain,
    assert_same,
    elixir_steps,
    gpt,
    gpt_batch,
    least_budget,
    plain_steps,
)
from torch import nn


def test_budget_one_byte_below_feasible_names_the_least():
    model, batch = gpt(), gpt_batch()
    least = least_budget(model, batch)
    elixir.plan(model, batch, device_budget=least, hardware=HARDWARE)
    with pytest.raises(elixir.InfeasiblePlanError, match=f"the least budget is {least} bytes"):
        elixir.plan(model, batch, device_budget=least - 1, hardware=HARDWARE)


def test_a_tensor_larger_than_the_budget_is_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4096, bias=False), nn.Flatten())
    with pytest.raises(elixir.InfeasiblePlanError, match=r"largest tensor, 1\.weight, takes 128"):
        elixir.plan(model, torch.randn(1, 8), device_budget="100KiB", hardware=HARDWARE)


class Branching(nn.Module):
    """Dynamic control flow, an unused parameter, a module used twice, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = (nn.Linear(16, 16) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(16))
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        x = self.norm(self.a(x) * self.scale)
        x = self.b(x) if x.sum() > 0 else torch.tanh(self.b(self.b(x)))
        return self.a(x).square().mean()


def test_dynamic_control_flow_unused_and_reused():
    batches = [torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    torch.manual_seed(0)
    expected = plain_steps(Branching(), batches)
    torch.manual_seed(0)
    model = Branching()
    plan = elixir.plan(
        model, batches[0], device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    got = elixir_steps(model, batches, plan)
    assert_same(expected, got)
    assert torch.equal(got[1]["unused.weight"], expected[1]["unused.weight"])


def test_in_place_edit_of_an_absent_parameter_is_refused_and_edit_takes_it():
    batches = [gpt_batch(i) for i in range(2)]
    expected_model = gpt()
    first = elixir.optim.AdamW(expected_model.parameters(), lr=1e-2)
    model = gpt()
    plan = elixir.plan(
        model, batches[0], device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2)
    for batch in batches:
        for m, o in ((expected_model, first), (model, optimizer)):
            m(*batch).backward()
            o.step()
            o.zero_grad()
        with torch.no_grad(), pytest.raises(RuntimeError, match="single memory location"):
            model.blocks[0].up.weight.mul_(0.5)
        with torch.no_grad(), optimizer.edit():
            model.blocks[0].up.weight.mul_(0.5)
        with torch.no_grad():
            expected_model.blocks[0].up.weight.mul_(0.5)
    for key, value in expected_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_exception_in_forward_then_a_clean_step():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = gpt()
            self.fail = False

        def forward(self, tokens, targets):
            if self.fail:
                self.net.blocks[0](self.net.wte(tokens))
                raise ArithmeticError("planned")
            return self.net(tokens, targets)

    batches = [gpt_batch(i) for i in range(3)]
    expected = plain_steps(Fragile(), batches)
    model = Fragile()
    plan = elixir.plan(
        model, batches[0], device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2, poison=True)
    losses = []
    for batch in batches:
        model.fail = True
        with pytest.raises(ArithmeticError):
            model(*batch)
        model.fail = False
        loss = model(*batch)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses == expected[0]
    assert all(pin == 0 for pin in model._elixir_engine.cache.pins)


def test_exception_in_backward_then_a_clean_step():
    class Bomb(torch.autograd.Function):
        armed = False

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            if Bomb.armed:
                raise ArithmeticError("planned")
            return g

    class Net(Chain):
        def forward(self, x):
            x = Bomb.apply(torch.tanh(self.layers[0](x)))
            return super().forward(x)

    x = torch.randn(4, 32)
    torch.manual_seed(0)
    expected = plain_steps(Net(), [x] * 2)
    torch.manual_seed(0)
    model = Net()
    plan = elixir.plan(model, x, device_budget=least_budget(model, x), hardware=HARDWARE)
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2, poison=True)
    losses = []
    for _ in range(2):
        Bomb.armed = True
        with pytest.raises(ArithmeticError):
            model(x).backward()
        Bomb.armed = False
        loss = model(x)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses == expected[0]


def test_weights_changed_between_forward_and_backward_are_noticed():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget=least_budget(model, batch), hardware=HARDWARE)
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2)
    model(*batch).backward()
    late = model(*batch)
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed"):
        late.backward()


def test_a_larger_batch_than_planned_still_trains():
    small, large = gpt_batch(), gpt_batch(batch=6)
    expected = plain_steps(gpt(), [large] * 2)
    model = gpt()
    plan = elixir.plan(model, small, device_budget=least_budget(model, small), hardware=HARDWARE)
    with pytest.warns(RuntimeWarning, match="planned"):
        got = elixir_steps(model, [large] * 2, plan)
    assert_same(expected, got)


def test_second_backward_after_an_update_in_backward_is_refused():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="4MiB", hardware=HARDWARE)
    model, _ = elixir.initialize(model, plan=plan, step_in_backward=True)
    model(*batch).backward()
    with pytest.raises(RuntimeError, match="no_sync"):
        model(*batch).backward()


def test_unsupported_optimizers_are_refused():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="4MiB", hardware=HARDWARE)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for cls, kw in ((torch.optim.LBFGS, {}), (torch.optim.AdamW, {"amsgrad": True})):
        with pytest.raises(elixir.UnsupportedOptimizerError):
            elixir.initialize(model, cls, plan=plan, **kw)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
