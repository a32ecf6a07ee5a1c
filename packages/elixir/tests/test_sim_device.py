"""Training on the strict device in C++, under its allocator's budget.

Oracle: plain PyTorch on the host, same seed, same AdamW kernel; equality of every bit.
"""

import random
import tempfile
from contextlib import nullcontext

import elixir
import pytest
import torch
from common import HARDWARE, assert_same, elixir_steps, gpt, gpt_batch, plain_steps
from elixir.models import MoE
from elixir.testing import AdversarialMover, sim
from sim_process import everything_freed, on_device
from torch import nn

pytestmark = pytest.mark.sim


def to_device(batch):
    return [t.to("sim") for t in batch]


def train(model, batches, plan, *, budget=None, accumulate=1, **options):
    """Train under the allocator's budget, from the first copy to the last; return what it counted.

    The order of a careful loop on a GPU: a batch and a loss are gone before the next ones come.
    """
    assert everything_freed()
    sim.set_budget(plan.device_budget if budget is None else budget)
    sim.reset()
    try:
        model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2, poison=True, **options)
        buffers = sum(b.nbytes for b in model.buffers())
        assert sim.live_bytes() == model._elixir_engine.arena.buffer.nbytes + buffers
        losses = []
        for i, batch in enumerate(batches):
            on_device = to_device(batch)
            with optimizer.no_sync() if (i + 1) % accumulate else nullcontext():
                loss = model(*on_device)
                loss.backward()
            losses.append(loss.item())
            del loss, on_device
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        state = {k: v.to("cpu", copy=True) for k, v in model.state_dict().items()}
        arena = model._elixir_engine.arena.buffer.nbytes
        optimizer.close()
        assert all(p.device.type == "cpu" for p in model.parameters())
        counted = {
            "peak": sim.peak_bytes(),
            "workspace": sim.workspace_bytes(),
            "refused": sim.refused(),
            "arena": arena,
        }
        return losses, state, counted
    finally:
        sim.set_budget(None)


def draw(seed):
    """Draw a model, a plan, a run."""
    r = random.Random(seed)
    model = {"dim": r.choice([16, 24, 32]), "layers": r.randint(1, 4), "tied": r.random() < 0.5}
    plan = {
        "recompute": r.choice(["none", "all", "auto"]),
        "offload": r.choice(["none", "all", "auto"]),
        "prefetch": r.randint(0, 3),
        "policy": r.choice(["elixir", "elixir", "paper"]),
        "disk": r.random() < 0.3,
        "dtype": r.choice([torch.float32, torch.float32, torch.bfloat16]),
    }
    run = {
        "accumulate": r.choice([1, 1, 2]),
        "clip": r.choice([None, 1e-3, 10.0]),
        "step_in_backward": r.random() < 0.5,
        "budget": r.choice([0.0, r.uniform(0, 1), r.uniform(0, 4)]),
        "mover": r.choice(["plain", "adversarial"]),
        "tier": r.choice([None, None, "device", "pinned", "disk"]),
    }
    if plan["dtype"] != torch.float32:
        run["clip"] = None  # the oracle would round the clipped gradient once more
    return model, plan, run


def check_case(case, steps=4):
    """Train a drawn case on the strict device; return the budget and what was counted."""
    model_options, plan_options, run = case
    if plan_options["recompute"] == "all" and plan_options["offload"] == "all":
        blocks = [f"blocks.{i}" for i in range(model_options["layers"])]
        plan_options |= {"recompute": blocks[::2], "offload": blocks[1::2]}
    batches = [gpt_batch(i) for i in range(steps)]

    def make():
        return gpt(heads=2, **model_options)

    expected = plain_steps(
        make().to(plan_options["dtype"]), batches, accumulate=run["accumulate"], clip=run["clip"]
    )
    model = make()
    roomy = elixir.plan(
        model, batches[0], device_budget="1GiB", hardware=HARDWARE, device="sim", **plan_options
    )
    plan = roomy._replan(device_budget=int(roomy.least_budget * (1 + run["budget"])))
    if run["tier"] and plan_options["policy"] == "elixir":
        if run["tier"] in ("device", "pinned"):
            plan = roomy.override("*", tier=run["tier"])
            plan = plan._replan(device_budget=plan.device_bytes)
        else:
            plan = plan.override("*", tier="disk")
    mover = AdversarialMover() if run["mover"] == "adversarial" else None
    with tempfile.TemporaryDirectory() as folder:
        losses, state, counted = train(
            model,
            batches,
            plan,
            accumulate=run["accumulate"],
            max_grad_norm=run["clip"],
            mover=mover,
            step_in_backward=run["step_in_backward"],
            disk_folder=folder,
        )
    assert_same(expected, (losses, state))
    assert counted["refused"] == 0
    assert counted["peak"] <= plan.device_budget
    return {"budget": plan.device_budget} | counted


@pytest.mark.parametrize("seed", range(12))
@on_device
def test_drawn_plans_stay_within_the_allocators_budget(seed):
    check_case(draw(seed))


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(100, 400))
@on_device
def test_drawn_plans_stay_within_the_allocators_budget_300(seed):
    check_case(draw(seed), steps=8)


@on_device
def test_state_ten_times_the_device_trains():
    """Parameters, gradients and AdamW's moments are ten times what the allocator hands out."""
    batches = [gpt_batch(i, batch=1, length=4) for i in range(4)]
    make = lambda: gpt(dim=64, layers=12, context=8)  # noqa: E731
    model = make()
    budget = 16 * sum(p.numel() for p in model.parameters()) // 10
    plan = elixir.plan(
        model, batches[0], device_budget=budget, hardware=HARDWARE, device="sim", recompute="all"
    )
    assert plan.device_budget == budget
    expected = plain_steps(make(), batches)
    losses, state, counted = train(model, batches, plan)
    assert_same(expected, (losses, state))
    assert counted["refused"] == 0
    assert counted["peak"] <= budget


@pytest.mark.parametrize("tier", ["host", "device"])
@on_device
def test_the_predicted_peak_is_the_allocators_to_the_byte(tier):
    """Beside the arena, the allocator's peak is the trace's peak of live bytes."""
    batches = [gpt_batch(i) for i in range(3)]
    for choice in ({"recompute": "none"}, {"recompute": "all"}):
        model = gpt()
        options = {"device_budget": "1GiB", "hardware": HARDWARE, "device": "sim"}
        plan = elixir.plan(model, batches[0], **options, **choice).override("*", tier=tier)
        _, _, counted = train(model, batches, plan)
        assert counted["peak"] == counted["arena"] + plan.activation_bytes


@on_device
def test_a_budget_below_the_plans_is_refused():
    """A plan for more than the device has stops at the allocator, and a wider budget goes on."""
    batch = gpt_batch()
    model = gpt()
    plan = elixir.plan(model, batch, device_budget="1GiB", hardware=HARDWARE, device="sim")
    plan = plan.override("*", tier="device")
    with pytest.raises(torch.OutOfMemoryError, match="sim out of memory"):
        train(model, [batch], plan, budget=plan.device_bytes // 2)


@on_device
def test_values_between_steps():
    """Edits, state dicts, loading and checkpoints of both carry on bit for bit."""
    batches = [gpt_batch(i) for i in range(4)]
    expected = plain_steps(gpt(), batches)

    def start(model):
        plan = elixir.plan(model, batches[0], device_budget="1GiB", hardware=HARDWARE, device="sim")
        plan = plan._replan(device_budget=plan.least_budget * 3 // 2)
        return elixir.initialize(model, plan=plan, lr=1e-2, poison=True)

    def step(model, optimizer, batch):
        loss = model(*to_device(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    model, optimizer = start(gpt())
    losses = [step(model, optimizer, b) for b in batches[:2]]
    kept = model.state_dict(), optimizer.state_dict()
    assert all(v.device.type == "cpu" for v in kept[0].values())
    with optimizer.edit():
        assert model.norm.weight.device.type == "cpu"
        model.norm.weight.data.mul_(3.0)
    step(model, optimizer, batches[2])
    optimizer.close()
    model, optimizer = start(gpt(seed=9))
    model.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    losses += [step(model, optimizer, b) for b in batches[2:]]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer.close()
    assert_same(expected, (losses, state))


class Images(nn.Module):
    """Convolutions, batch norm with buffers, channels-last weights."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.out = nn.Linear(8, 4)

    def forward(self, x, _):
        return self.out(self.layers(x).mean((2, 3))).square().mean()


class Routed(nn.Module):
    """Experts chosen by the data, some without tokens."""

    def __init__(self):
        super().__init__()
        self.first, self.moe = nn.Linear(8, 8), MoE(8, 16, 4)

    def forward(self, x, _):
        return self.moe(self.first(x)).square().mean()


@pytest.mark.parametrize("kind", ["images", "routed", "dropout", "checkpoint"])
@on_device
def test_other_models_under_their_plans_budget(kind):
    shape = (2, 3, 8, 8) if kind == "images" else (3, 8)
    batches = [[torch.randn(shape), torch.zeros(1)] for _ in range(3)]

    def make():
        torch.manual_seed(5)
        return {"images": Images, "routed": Routed}.get(kind, lambda: Noisy(kind))()

    torch.manual_seed(7)
    expected = plain_steps(make(), batches)
    model = make()
    options = {"hardware": HARDWARE, "device": "sim"}
    plan = elixir.plan(model, batches[0], device_budget="1GiB", **options)
    plan = plan._replan(device_budget=plan.least_budget)
    # buffers are not in the plan
    beside = sum(b.nbytes for b in model.buffers())
    torch.manual_seed(7)
    losses, state, counted = train(model, batches, plan, budget=plan.device_budget + beside)
    if kind == "dropout":  # the device's own kernel draws other masks
        assert losses != expected[0]
    else:
        assert_same(expected, (losses, state))
    assert counted["refused"] == 0


class Noisy(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x, _):
        for layer in self.layers:
            if self.kind == "checkpoint":
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).tanh()
            else:
                x = nn.functional.dropout(layer(x), 0.5)
        return x.square().mean()


@on_device
def test_an_optimizer_of_torch_runs_on_the_host():
    batches = [gpt_batch(i) for i in range(3)]
    options = {"device_budget": "1GiB", "hardware": HARDWARE}
    found = []
    for where in ("cpu", "sim"):
        model = gpt()
        plan = elixir.plan(model, batches[0], optimizer="sgd", device=where, **options)
        sent = batches if where == "cpu" else [to_device(b) for b in batches]
        cls = torch.optim.SGD
        found.append(elixir_steps(model, sent, plan, cls=cls, momentum=0.9))
        found[-1][2].close()
    assert_same(*found)


# ---- what a forgotten .to() does -----------------------------------------------------------------


@on_device
def test_a_batch_that_was_never_moved_raises_and_training_goes_on():
    batches = [gpt_batch(i) for i in range(2)]
    expected = plain_steps(gpt(), batches)
    model = gpt()
    plan = elixir.plan(model, batches[0], device_budget="1GiB", hardware=HARDWARE, device="sim")
    plan = plan._replan(device_budget=plan.least_budget)
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2)
    losses = []
    for batch in batches:
        with pytest.raises(RuntimeError, match=r"same device.*sim:0 and cpu.*index") as caught:
            model(*batch)
        assert 'move it with .to("sim")' in str(caught.value)
        loss = model(*to_device(batch))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer.close()
    assert_same(expected, (losses, state))


@on_device
def test_a_tensor_that_the_model_forgot_to_move_raises():
    class Net(nn.Module):
        def __init__(self, moved):
            super().__init__()
            self.layer, self.moved = nn.Linear(4, 4), moved

        def forward(self, x):
            mask = torch.ones(4, device=x.device if self.moved else None)
            return (self.layer(x) * mask).square().mean()

    for moved in (True, False):
        model, x = Net(moved), torch.randn(2, 4)
        # neither the trace nor the emulated device can tell the two models apart
        plan = elixir.plan(model, x, device_budget="1MiB", hardware=HARDWARE, device="sim")
        model, optimizer = elixir.initialize(model, plan=plan)
        if moved:
            model(x.to("sim")).backward()
        else:
            with pytest.raises(RuntimeError, match="same device"):
                model(x.to("sim"))
        optimizer.close()


@on_device
def test_a_parameter_that_is_not_on_the_device_cannot_be_read():
    """An evicted weight has no memory there: reading it is an error, not NaN."""
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="1GiB", hardware=HARDWARE, device="sim")
    plan = plan.override("*", tier="host")
    model, optimizer = elixir.initialize(model, plan=plan)
    weight = model.blocks[0].up.weight
    assert weight.device.type == "sim"
    assert weight.untyped_storage().nbytes() == 0
    with pytest.raises(RuntimeError, match="was given up"):
        weight.sum()
    optimizer.close()
