"""Oracle: plain PyTorch on the same seed, same AdamW kernel; equality of every bit."""

import elixir
import pytest
import torch
import torch.nn.functional as F
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
from elixir.testing import AdversarialMover, LiveBytes, StrictDevice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn


def draw_case(data, layers=(1, 3)):
    model = {
        "dim": data.draw(st.sampled_from([16, 24, 32])),
        "layers": data.draw(st.integers(*layers)),
        "tied": data.draw(st.booleans()),
    }
    plan = {
        "recompute": data.draw(st.sampled_from(["none", "all", "auto"])),
        "offload": data.draw(st.sampled_from(["none", "all", "auto"])),
        "prefetch": data.draw(st.integers(0, 3)),
        "policy": data.draw(st.sampled_from(["elixir", "elixir", "paper"])),
        "disk": data.draw(st.booleans()),
    }
    run = {
        "accumulate": data.draw(st.sampled_from([1, 1, 2])),
        "clip": data.draw(st.sampled_from([None, 1e-3, 10.0])),
        "step_in_backward": data.draw(st.booleans()),
        "budget": data.draw(st.floats(0, 3)),
        "mover": data.draw(st.sampled_from(["plain", "adversarial"])),
    }
    return model, plan, run


def check_case(case, tmp_path, steps=4):
    model_options, plan_options, run = case
    if plan_options["recompute"] == "all" and plan_options["offload"] == "all":
        # every block can do one of both: alternate
        blocks = [f"blocks.{i}" for i in range(model_options["layers"])]
        plan_options |= {"recompute": blocks[::2], "offload": blocks[1::2]}
    batches = [gpt_batch(i) for i in range(steps)]
    make = lambda: gpt(heads=2, **model_options)  # noqa: E731
    expected = plain_steps(make(), batches, accumulate=run["accumulate"], clip=run["clip"])
    model = make()
    roomy = elixir.plan(model, batches[0], device_budget="1GiB", hardware=HARDWARE, **plan_options)
    plan = roomy._replan(device_budget=int(roomy.least_budget * (1 + run["budget"])))
    if plan_options["disk"] and plan_options["policy"] == "elixir":
        plan = plan.override("*", tier="disk") if run["budget"] > 2 else plan
    mover = AdversarialMover() if run["mover"] == "adversarial" else None
    got = elixir_steps(
        model,
        batches,
        plan,
        accumulate=run["accumulate"],
        max_grad_norm=run["clip"],
        mover=mover,
        step_in_backward=run["step_in_backward"],
        disk_folder=tmp_path,
    )
    assert_same(expected, got)
    engine = model._elixir_engine
    outside = plan.activation_bytes + plan.offload_bytes + plan.gradient_bytes
    assert engine.arena.size + outside <= plan.device_budget
    got[2].close()


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_bit_equal_to_plain_training(tmp_path, data):
    check_case(draw_case(data), tmp_path)


@pytest.mark.stress
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_bit_equal_to_plain_training_500(tmp_path, data):
    check_case(draw_case(data, (1, 4)), tmp_path, steps=8)


@pytest.mark.parametrize("resident", [False, True])
def test_trains_under_a_hard_budget_on_a_strict_device(resident):
    """At the least budget, and where everything with its gradients just fits."""
    batches = [gpt_batch(i) for i in range(3)]
    expected = plain_steps(gpt(), batches)
    model = gpt()
    least = 1 << 30 if resident else least_budget(model, batches[0], recompute="none")
    plan = elixir.plan(model, batches[0], device_budget=least, hardware=HARDWARE, recompute="none")
    if resident:
        plan = plan.override("*", tier="device")
        plan = plan._replan(device_budget=plan.device_bytes)
        assert plan.cache_bytes == 0
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2, poison=True)
    losses = []
    for batch in batches:
        with StrictDevice(model._elixir_engine) as strict:
            for t in batch:
                strict.track(t)
            loss = model(*batch)
            loss.backward()
            loss = loss.detach()
        assert resident == bool(model._elixir_engine.gradients.held)
        assert strict.peak <= plan.device_budget
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses == expected[0]


def test_strict_device_refuses_what_exceeds_the_budget():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget=least_budget(model, batch), hardware=HARDWARE)
    model, _ = elixir.initialize(model, plan=plan)
    engine = model._elixir_engine
    with StrictDevice(engine, engine.arena.size + 1000), pytest.raises(elixir.BudgetExceededError):
        model(*batch)


def test_predicted_peak_of_activations_is_exact():
    model, batch = gpt(), gpt_batch()
    peaks = {}
    for choice in (
        {"recompute": "none"},
        {"recompute": "all"},
        {"offload": "all"},
        {"recompute": ["blocks.2"], "offload": ["blocks.0", "blocks.1"]},
    ):
        plan = elixir.plan(model, batch, device_budget="1GiB", hardware=HARDWARE, **choice)
        peaks[str(choice)] = plan.activation_bytes
        clone = gpt()
        fresh, optimizer = elixir.initialize(clone, plan=plan)
        fresh._elixir_engine.gradients._hold = lambda *_: None  # their bytes are counted apart
        with LiveBytes() as live:
            for t in batch:
                live.track(t)
            fresh(*batch).backward()
        assert live.peak == plan.activation_bytes
        optimizer.close()
    assert peaks["{'offload': 'all'}"] < peaks["{'recompute': 'none'}"]


def test_offloaded_activations_cross_once_each_way():
    """Traffic as traced, weights as plain, whichever copies come late; retain_graph reads twice."""
    batches = [gpt_batch(i) for i in range(3)]
    expected = plain_steps(gpt(), batches)
    for mover in (None, AdversarialMover()):
        model = gpt()
        plan = elixir.plan(
            model, batches[0], device_budget="1GiB", hardware=HARDWARE, offload="all"
        ).override("*", tier="device")
        assert plan.offload
        assert plan.predicted["offloaded_bytes"] == sum(row[3] for row in plan.offloads)
        got = elixir_steps(model, batches, plan, mover=mover)
        assert_same(expected, got)
        engine = model._elixir_engine
        assert engine.tape.carrier.moved == 3 * plan.predicted["offloaded_bytes"]
        loss = model(*batches[0])
        loss.backward(retain_graph=True)
        first = got[2].gradient(model.head.weight).clone()
        got[2].zero_grad()
        loss.backward()
        assert torch.equal(got[2].gradient(model.head.weight), first)
        got[2].close()


def test_the_planner_offloads_where_copies_are_fast_and_compute_is_slow():
    model, batch = gpt(), gpt_batch()
    fast = elixir.Hardware(h2d=1e12, d2h=1e12, latency=0.0, flops=1e8, device_stream=1e8)
    slow = elixir.Hardware(h2d=1e5, d2h=1e5, latency=0.0)
    budget = least_budget(model, batch) * 11 // 10
    plan = elixir.plan(model, batch, device_budget=budget, hardware=fast)
    assert plan.offload
    assert "modules offloaded" in plan.explain()
    plan = elixir.plan(model, batch, device_budget=budget, hardware=slow)
    assert plan.recompute
    assert not plan.offload


def test_state_ten_times_the_device():
    batch = gpt_batch(batch=1, length=4)
    make = lambda: gpt(dim=64, layers=12, context=8)  # noqa: E731
    model = make()
    least = least_budget(model, batch, recompute="all")
    state = 16 * sum(p.numel() for p in model.parameters())
    assert state >= 10 * least
    expected = plain_steps(make(), [batch] * 2)
    options = {"device_budget": state // 10, "hardware": HARDWARE, "recompute": "all"}
    plan = elixir.plan(model, batch, **options)
    assert_same(expected, elixir_steps(model, [batch] * 2, plan))


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_loads_follow_2n_minus_k(blocks):
    """Closed form: 2n - k loads, less one: the first layer's backward needs no weight."""
    model, x = Chain(), torch.randn(4, 32)
    size = 32 * 32 * 4
    plan = elixir.plan(
        model, x, device_budget="1MiB", hardware=HARDWARE, prefetch=0, recompute="none"
    )
    from dataclasses import replace

    chunks = tuple(
        elixir.planner.ChunkPlan((f"layers.{i}.weight",), (0,), size, 1024) for i in range(6)
    )
    steps = tuple((i,) for i in [*range(6), *range(5, 0, -1)])
    plan = replace(
        plan,
        chunks=chunks,
        steps=steps,
        forward_steps=6,
        cache_bytes=blocks * size,
        resident_bytes=0,
    )
    model, optimizer = elixir.initialize(model, plan=plan)
    model(x).backward()
    assert model._elixir_engine.cache.loads == elixir.planner.belady_loads(steps, blocks)
    assert elixir.planner.belady_loads(steps, blocks) == max(2 * 6 - blocks - (blocks < 6), 6)
    optimizer.close()


def test_attention_reads_its_childs_weight():
    """nn.MultiheadAttention reads out_proj.weight without calling out_proj."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.out = nn.Linear(16, 4)

        def forward(self, x):
            return self.out(self.attention(x, x, x, need_weights=False)[0]).square().mean()

    x = torch.randn(2, 5, 16)
    torch.manual_seed(0)
    expected = plain_steps(Net(), [x] * 3)
    torch.manual_seed(0)
    model = Net()
    plan = elixir.plan(model, x, device_budget=least_budget(model, x), hardware=HARDWARE)
    assert_same(expected, elixir_steps(model, [x] * 3, plan))


@pytest.mark.parametrize("reentrant", [False, True])
def test_users_own_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList(
                nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(4)
            )

        def forward(self, x):
            for block in self.inner:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x.square().mean()

    x = torch.randn(4, 16, requires_grad=True)
    torch.manual_seed(0)
    expected = plain_steps(Net(), [x] * 3)
    torch.manual_seed(0)
    model = Net()
    budget = 2 * least_budget(model, x, recompute="none")
    plan = elixir.plan(model, x, device_budget=budget, hardware=HARDWARE, recompute="none")
    assert_same(expected, elixir_steps(model, [x] * 3, plan))


def test_frozen_parameters_stay_and_cost_no_states():
    def make():
        model = gpt()
        for name, p in model.named_parameters():
            p.requires_grad_("norm" in name or "head" in name or "wte" in name)
        return model

    batches = [gpt_batch(i) for i in range(3)]
    expected = plain_steps(make(), batches)
    model = make()
    plan = elixir.plan(
        model, batches[0], device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    assert sum(c.trainable for c in plan.chunks) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert_same(expected, elixir_steps(model, batches, plan))


def test_model_state_dict_round_trip_and_close():
    model, batch = gpt(), gpt_batch()
    other = gpt(seed=5).state_dict()
    plan = elixir.plan(model, batch, device_budget=least_budget(model, batch), hardware=HARDWARE)
    model, optimizer = elixir.initialize(model, plan=plan)
    model.load_state_dict(other)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other[key])
    optimizer.close()
    assert torch.equal(model.blocks[0].up.weight, other["blocks.0.up.weight"])
    reference = gpt(seed=5)
    assert model(*batch).item() == reference(*batch).item()


def test_evaluation_between_steps():
    batches = [gpt_batch(i) for i in range(3)]
    expected = plain_steps(gpt(), batches)
    model = gpt()
    plan = elixir.plan(
        model, batches[0], device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2, poison=True)
    losses = []
    for batch in batches:
        with torch.no_grad():
            value = model(*batch).item()
        loss = model(*batch)
        assert loss.item() == value
        loss.backward()
        losses.append(value)
        optimizer.step()
        optimizer.zero_grad()
    assert losses == expected[0]


def test_convolutions_keep_their_memory_format():
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
        )
        return net.to(memory_format=torch.channels_last)

    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = plain_steps(make(), [x] * 3)
    model = make()
    plan = elixir.plan(model, x, device_budget=least_budget(model, x), hardware=HARDWARE)
    assert_same(expected, elixir_steps(model, [x] * 3, plan))


def test_functional_linear_on_a_weight_view_backward():
    """Saved views and transposes of weights are recognised by address."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return F.linear(self.inner(x), torch.eye(8)).square().mean()

    x = torch.randn(3, 8)
    torch.manual_seed(0)
    expected = plain_steps(Net(), [x] * 2)
    torch.manual_seed(0)
    model = Net()
    plan = elixir.plan(model, x, device_budget=least_budget(model, x), hardware=HARDWARE)
    assert_same(expected, elixir_steps(model, [x] * 2, plan))
