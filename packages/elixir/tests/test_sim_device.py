"""The strict device in C++: its own rules, and training on it under the allocator's budget.

Oracle: plain PyTorch on the host, same seed, same AdamW kernel; equality of every bit.

The device must be there before a process runs its first backward pass, so these tests run in a
process of their own: the body of a test marked ``on_device`` is sent there.
"""

import gc
import importlib
import inspect
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import elixir
import pytest
import torch
from common import HARDWARE, assert_same, elixir_steps, gpt, gpt_batch, plain_steps
from elixir.testing import AdversarialMover, sim
from torch import nn

pytestmark = pytest.mark.sim
needs_compiler = pytest.mark.skipif(sim.why_not() is not None, reason=str(sim.why_not()))


def _start():
    torch.set_num_threads(1)
    sim.load()


def _run(name, arguments):
    getattr(importlib.import_module(__name__), name).body(**arguments)


@pytest.fixture(scope="module")
def device():
    sim.build()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_start) as pool:
        yield lambda name, arguments: pool.submit(_run, name, arguments).result()


def on_device(body):
    """Run a test's body in the device's process."""

    def test(device, **arguments):
        device(body.__name__, arguments)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(body).parameters.values()
    test.__signature__ = inspect.Signature([inspect.Parameter("device", kind), *parameters])
    test.__name__, test.__doc__, test.body = body.__name__, body.__doc__, body
    return needs_compiler(test)


def everything_freed():
    """Return whether the device's memory comes back; autograd's thread lets go a little later."""
    gc.collect()
    for _ in range(5):
        if sim.live_bytes() == 0:
            return True
        time.sleep(0.05)
        gc.collect()
    return False


def to_device(batch):
    return [t.to("sim") for t in batch]


# ---- training ------------------------------------------------------------------------------------


def train(model, batches, plan, *, budget=None, accumulate=1, **options):
    """Train under the allocator's budget, from the first copy to the last; return what it counted.

    The order of a careful loop on a GPU: a batch and a loss are gone before the next ones come.
    """
    assert everything_freed()
    sim.set_budget(plan.device_budget if budget is None else budget)
    sim.reset()
    try:
        model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2, poison=True, **options)
        assert sim.live_bytes() == model._elixir_engine.arena.buffer.nbytes
        losses = []
        for i, batch in enumerate(batches):
            on_device = to_device(batch)
            with optimizer.no_sync() if (i + 1) % accumulate else _nothing():
                loss = model(*on_device)
                loss.backward()
            losses.append(loss.item())
            del loss, on_device
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        state = {k: v.clone() for k, v in model.state_dict().items()}
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


class _nothing:  # noqa: N801
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


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
        plan = elixir.plan(
            model, batches[0], device_budget="1GiB", hardware=HARDWARE, device="sim"
        )
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
def test_mixed_devices_raise_and_scalars_do_not():
    x = torch.randn(3, 3)
    y = x.to("sim")
    for mixed in (
        lambda: y + x,
        lambda: x + y,
        lambda: y @ x,
        lambda: torch.cat([x, y]),
        lambda: y.add_(x),
        lambda: torch.where(y > 0, x, y),
        lambda: nn.functional.linear(y, x),
        lambda: nn.functional.embedding(torch.tensor([1]), y),
        lambda: y.index_select(0, torch.tensor([1])),
        lambda: torch.add(y, y, out=x),
    ):
        with pytest.raises(RuntimeError, match="sim"):
            mixed()
    assert torch.equal((y + torch.tensor(2.0)).cpu(), x + 2)
    assert torch.equal((y * 2).cpu(), x * 2)
    with pytest.raises(TypeError):
        y.numpy()


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


# ---- the allocator -------------------------------------------------------------------------------


@on_device
def test_one_byte_over_the_budget_is_refused():
    assert everything_freed()
    sim.set_budget(1000)
    sim.reset()
    try:
        first = torch.empty(600, dtype=torch.uint8, device="sim")
        second = torch.empty(400, dtype=torch.uint8, device="sim")
        assert sim.live_bytes() == sim.peak_bytes() == sim.budget() == 1000
        del second
        with pytest.raises(torch.OutOfMemoryError, match=r"401 bytes; 600 of the budget of 1000"):
            torch.empty(401, dtype=torch.uint8, device="sim")
        assert sim.refused() == 1
        assert sim.live_bytes() == 600
        # a result counts as much as an empty tensor
        with pytest.raises(torch.OutOfMemoryError):
            torch.cat([first, first])
        with pytest.raises(torch.OutOfMemoryError):
            first + 1
        assert sim.live_bytes() == 600
        assert sim.blocks() == 1
        second = first[:400] + 1
        assert sim.live_bytes() == 1000
        del first, second
        assert everything_freed()
        assert sim.peak_bytes() == 1000
    finally:
        sim.set_budget(None)


@on_device
def test_memory_is_poisoned():
    x = torch.empty(100, device="sim")
    assert torch.isnan(x).all()
    x.fill_(1.0)
    seen = sim.window(x)
    assert torch.equal(seen, torch.ones(100))
    address = seen.data_ptr()
    assert address != x.data_ptr()
    del seen, x
    assert torch.isnan(torch.empty(100, device="sim")).all()


@on_device
def test_workspace_of_operators_is_counted_apart():
    """Sorting needs memory of its own; by request it is charged as well."""
    assert everything_freed()
    x = torch.randn(64, 64).to("sim")
    sim.reset()
    y = x.sum(0)
    assert sim.peak_bytes() == x.nbytes + y.nbytes
    q = torch.randn(1, 1, 64, 16).to("sim")
    sim.reset()
    out = nn.functional.scaled_dot_product_attention(q, q, q)
    workspace, peak = sim.workspace_bytes(), sim.peak_bytes()
    assert workspace > out.nbytes
    assert sim.peak_with_workspace_bytes() > peak
    del out
    live = sim.live_bytes()
    sim.load(peak, charge_workspace=True)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            nn.functional.scaled_dot_product_attention(q, q, q)
        assert sim.live_bytes() == live
    finally:
        sim.load(None)
    nn.functional.scaled_dot_product_attention(q, q, q)


# ---- the operators -------------------------------------------------------------------------------

OPERATORS = {
    "views": lambda x: (x.t(), x[1:, ::2], x.view(-1), x.unfold(0, 2, 1), x.expand(2, *x.shape)),
    "reshape": lambda x: (x.t().reshape(-1), x.flatten(), x.unsqueeze(1).squeeze(1)),
    "split": lambda x: (*x.split(2), *x.unbind(1), *x.chunk(3)),
    "stack": lambda x: (torch.stack([x, x]), torch.cat([x, x.t()], 1), torch.hstack([x, x])),
    "reduce": lambda x: (x.sum(), x.mean(0), x.std(1), x.amax(), *x.max(0), x.norm(), x.var()),
    "sort": lambda x: (*x.sort(), *x.topk(2), x.argsort(1), x.median(), x.detach().unique()),
    "index": lambda x: (x[x > 0], x[[0, 2]], x.nonzero(), x.index_add(0, (x[0] > 0).long(), x)),
    "scatter": lambda x: (x.scatter_add(0, (x > 0).long(), x), x.gather(1, (x > 0).long())),
    "in place": lambda x: (x.clone().add_(1).mul_(2)[1:].zero_(), x.clone().clamp_(min=0)),
    "out": lambda x: (
        torch.add(x, 1, out=torch.empty(0, device=x.device)),
        torch.mm(x, x, out=torch.empty_like(x)),
        torch.arange(5, out=torch.empty(0, dtype=torch.long, device=x.device)),
    ),
    "resize": lambda x: (x.clone().resize_(3).clone(), torch.zeros(2).to(x.device).resize_(1)),
    "complex": lambda x: (
        torch.view_as_real(torch.fft.fft(x).conj() * 2),
        torch.fft.fft(x).conj().imag.clone(),
        torch.fft.rfft(x).abs(),
    ),
    "types": lambda x: (x.half().float(), x.to(torch.bfloat16) + 1, x.long(), x.bool(), x.double()),
    "linear algebra": lambda x: (torch.linalg.inv(x @ x.t() + 9 * torch.eye(4).to(x.device)),),
    "foreach": lambda x: (*torch._foreach_add([x, x.t()], 1), *torch._foreach_norm([x, x])),
    "norms": lambda x: (
        nn.functional.layer_norm(x, (4,)),
        nn.functional.group_norm(x[None], 2),
        nn.functional.batch_norm(x, None, None, training=True),
    ),
    "convolution": lambda x: (nn.functional.conv2d(x[None, None], x[None, None, :2, :2]),),
    "attention": lambda x: (nn.functional.scaled_dot_product_attention(*[x[None, None]] * 3),),
    "loss": lambda x: (nn.functional.cross_entropy(x, (x > 0)[:, 0].long()), x.logsumexp(0)),
    "einsum": lambda x: (torch.einsum("ij,kj->ik", x, x), torch.tensordot(x, x)),
    "cumulative": lambda x: (x.cumsum(0), x.flip(0), x.roll(1), x.tril(), x.repeat(2, 1)),
    "set": lambda x: (torch.empty(0, device=x.device).set_(x.untyped_storage(), 1, (2,), (3,)),),
}


@pytest.mark.parametrize("name", OPERATORS)
@on_device
def test_operators_equal_the_cpus(name):
    """Same bits, shapes and strides as on the host, for results and gradients."""
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    results = []
    for where in ("cpu", "sim"):
        leaf = x.to(where).requires_grad_(name not in ("out", "resize", "set"))
        found = OPERATORS[name](leaf)
        total = sum(
            f.square().sum() for f in found if f.requires_grad and f.is_floating_point()
        )
        gradient = torch.autograd.grad(total, leaf)[0] if isinstance(total, torch.Tensor) else x
        assert all(f.device.type == where for f in found)
        results.append([t.detach() for t in (*found, gradient)])
    for host, there in zip(*results, strict=True):
        assert host.stride() == there.stride()
        assert host.dtype == there.dtype
        assert torch.equal(host, there.cpu())


@on_device
def test_random_numbers_come_from_the_hosts_generator():
    found = []
    for where in ("cpu", "sim"):
        torch.manual_seed(3)
        found.append([torch.rand(5, device=where), torch.randn(5, device=where)])
    for host, there in zip(*found, strict=True):
        assert torch.equal(host, there.cpu())


@on_device
def test_checkpointing_of_torch_on_the_device():
    """torch.utils.checkpoint asks the device's module for its random state."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    layer = layer.to("sim")
    y = torch.utils.checkpoint.checkpoint(layer, x.to("sim"), use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.square().sum(), layer.weight)[0].cpu(), expected)


# ---- building and loading ------------------------------------------------------------------------


@needs_compiler
def test_a_second_build_compiles_nothing(monkeypatch, device):
    first = sim.build()
    before = first.stat().st_mtime_ns
    assert sim.build() == first
    assert first.stat().st_mtime_ns == before
    monkeypatch.setattr(torch, "__version__", "0.0")
    monkeypatch.setenv("CXX", "true")
    with tempfile.TemporaryDirectory() as folder:
        other = sim.build(folder)
        assert other.parent == Path(folder)
        assert other.name != first.name
        assert [p.name for p in Path(folder).iterdir()] == [other.name]


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    reason = sim.why_not()
    assert reason is not None
    assert "\n" not in reason
    with pytest.raises(sim.SimUnavailableError, match="compiler|Linux"):
        sim.load()
    assert not sim.loaded()
    with pytest.raises(sim.SimUnavailableError, match="not loaded"):
        sim.live_bytes()


@needs_compiler
def test_a_compiler_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(sim.SimUnavailableError, match="does not compile") as caught:
        sim.build(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_planning_for_a_device_that_is_not_loaded():
    with pytest.raises(ValueError, match=r"device='sim'.*elixir.testing.sim.load"):
        elixir.plan(gpt(), gpt_batch(), device_budget="1GiB", hardware=HARDWARE, device="sim")


SCRIPT = """
import ctypes, torch
from elixir.testing import sim
x = torch.ones(3, requires_grad=True)
(x * 2).sum().backward()
try:
    sim.load()
except sim.SimUnavailableError as error:
    print(error)
y = torch.ones(3, device="sim")
print(y.sum().item(), flush=True)
ctypes.string_at(y.data_ptr(), 4)
print("was read")
"""


@needs_compiler
def test_loading_too_late_and_reading_through_a_pointer(device):
    """A late load is refused; host code that reads device memory ends with a reason."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "before the first plan or backward pass" in done.stdout
    assert "3.0" in done.stdout
    assert "was read" not in done.stdout
    assert done.returncode == -11
    assert "host code touched memory of the sim device" in done.stderr
