"""The strict device itself: allocator, operators, building and loading.

Oracle of the operators: the same call on the host; equality of every bit, shape and stride.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import elixir
import pytest
import torch
from common import HARDWARE, gpt, gpt_batch
from elixir.testing import sim
from sim_process import everything_freed, needs_compiler, on_device
from torch import nn

pytestmark = [pytest.mark.sim, pytest.mark.native]


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
        total = sum(f.square().sum() for f in found if f.requires_grad and f.is_floating_point())
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
def test_a_second_build_compiles_nothing(monkeypatch, strict_device):
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
    with pytest.raises(sim.SimUnavailableError, match=r"compiler|Linux"):
        sim.load()
    assert not sim.loaded()
    with pytest.raises(sim.SimUnavailableError, match="not loaded"):
        sim.live_bytes()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sim.SimUnavailableError, match=r"compiled into .*ELIXIR_SIM_CACHE"):
        sim.build(tmp_path / "file" / "cache")


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
def test_loading_too_late_and_reading_through_a_pointer(strict_device):
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
    assert done.returncode != 0  # by the signal, or by ASan, which sees the access next
    assert "host code touched memory of the sim device" in done.stderr
