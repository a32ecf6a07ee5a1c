"""Gloo ranks on this machine. Oracle: DistributedDataParallel and one rank on the whole batch."""

import ctypes
import gc
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ranks import launch


def case_ddp(rank, world, folder):
    """Losses and weights of three steps against DDP, relative 1e-6; ranks agree to the bit."""
    import elixir
    import torch
    import torch.distributed as dist
    from common import HARDWARE, gpt, gpt_batch

    for clip, budget, again in ((None, "1MiB", "none"), (0.1, "64MiB", "auto")):
        model, options = gpt(), {"hardware": HARDWARE, "world": world, "recompute": again}
        plan = elixir.plan(model, gpt_batch(), device_budget=budget, **options)
        model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3, max_grad_norm=clip)
        reference = torch.nn.parallel.DistributedDataParallel(gpt())
        theirs = elixir.optim.AdamW(reference.parameters(), lr=1e-3)
        for step in range(3):
            batch = gpt_batch(step * world + rank)
            ours, other = model(*batch), reference(*batch)
            assert abs(ours.item() - other.item()) <= 1e-6 * abs(other.item()), (
                ours.item(),
                other.item(),
            )
            ours.backward()
            optimizer.step()
            optimizer.zero_grad()
            other.backward()
            if clip:
                norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
                assert abs(optimizer.last_norm - norm.item()) <= 1e-5 * norm.item()
            theirs.step()
            theirs.zero_grad()
        for (name, a), b in zip(model.state_dict().items(), reference.module.state_dict().values()):
            assert torch.allclose(a, b, atol=2e-6), (name, (a - b).abs().max())
            same = [torch.empty_like(a) for _ in range(world)]
            dist.all_gather(same, a)
            assert all(torch.equal(s, same[0]) for s in same), name
        optimizer.close()


def case_accumulate(rank, world, folder):
    import elixir
    import torch
    from common import HARDWARE, gpt, gpt_batch
    from torch.distributed.device_mesh import init_device_mesh

    model, reference = gpt(), torch.nn.parallel.DistributedDataParallel(gpt())
    plan = elixir.plan(
        model, gpt_batch(), device_budget="1MiB", hardware=HARDWARE, world=world, recompute="none"
    )
    plan = (
        plan.override("head*", shard="replicate")
        if "head.weight" in dict(model.named_parameters())
        else plan
    )
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("shard",))
    wrong = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicate", "shard"))
    with pytest.raises(ValueError, match="mesh: has 2 dimensions"):
        elixir.initialize(model, plan=plan, mesh=wrong)
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3, mesh=mesh)
    theirs = elixir.optim.AdamW(reference.parameters(), lr=1e-3)
    for step in range(3):
        for micro in range(2):
            batch = gpt_batch(10 * step + 2 * micro + rank)
            if micro == 0 and step < 2:  # in the last step both passes are reduced
                with optimizer.no_sync():
                    model(*batch).backward()
                with reference.no_sync():
                    reference(*batch).backward()
            else:
                model(*batch).backward()
                reference(*batch).backward()
        for o in (optimizer, theirs):
            o.step()
            o.zero_grad()
    for a, b in zip(model.state_dict().values(), reference.module.state_dict().values()):
        assert torch.allclose(a, b, atol=2e-6)
    optimizer.close()


def moe_model(experts=4):
    import torch
    from elixir.models import MoE

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), MoE(8, 16, experts), torch.nn.Linear(8, 4))


def routed(rank, world, steps, check_every):
    """Random routing, experts without tokens, other ones on each rank: no hang, DDP's weights."""
    import elixir
    import torch
    from common import HARDWARE

    model = moe_model()
    x = torch.randn(6, 8)
    made = elixir.plan(
        model,
        x,
        device_budget="64KiB",
        hardware=HARDWARE,
        world=world,
        loss_fn=lambda out, _: out.square().mean(),
    )
    plan = made.override("1.experts.*", shard="expert", tier="host")
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3)
    reference = torch.nn.parallel.DistributedDataParallel(moe_model(), find_unused_parameters=True)
    theirs = elixir.optim.AdamW(reference.parameters(), lr=1e-3)
    engine = model._elixir_engine
    for step in range(steps):
        g = torch.Generator().manual_seed(1000 * step + rank)
        x = torch.randn(1 + step % 3, 8, generator=g)  # one to three tokens for four experts
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step < check_every:
            reference(x).square().mean().backward()
            theirs.step()
            theirs.zero_grad()
        if step == check_every - 1:
            for (name, a), b in zip(
                model.state_dict().items(), reference.module.state_dict().values()
            ):
                assert torch.allclose(a, b, atol=1e-5), (name, (a - b).abs().max())
    assert engine.unplanned_fetches >= 0
    optimizer.close()


def case_moe(rank, world, folder, steps=40):
    routed(rank, world, steps, 10)


def trained(world, budget):
    import elixir
    from common import HARDWARE, gpt, gpt_batch

    model = gpt()
    plan = elixir.plan(
        model, gpt_batch(), device_budget=budget, hardware=HARDWARE, world=world, recompute="none"
    )
    return elixir.initialize(model, plan=plan, lr=1e-2)


def run(model, optimizer, numbers):
    from common import gpt_batch

    losses = []
    for i in numbers:  # every rank sees the same batch: any world size trains the same model
        loss = model(*gpt_batch(i))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def case_save(rank, world, folder):
    from elixir import checkpoint

    model, optimizer = trained(world, "1MiB")
    step = 0
    if Path(f"{folder}/run/manifest.json").exists():
        step = checkpoint.load(f"{folder}/run", optimizer)["step"]
    losses = run(model, optimizer, range(step, step + 2))
    checkpoint.save(f"{folder}/run", optimizer, {"step": step + 2})
    optimizer.close()
    return losses


def pss(name=None):
    """Proportional bytes of this process: all but files, or of mappings of that name."""
    if name is None:
        text = Path("/proc/self/smaps_rollup").read_text()
        return 1024 * sum(int(text.split(f"\nPss_{k}:")[1].split()[0]) for k in ("Anon", "Shmem"))
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            here = name in line
        elif here and line.startswith("Pss:"):
            found += 1024 * int(line.split()[1])
    return found


def case_host(rank, world, folder):
    """Find the parameters once per machine, without a name, as the plan counts them."""
    import elixir
    import torch
    import torch.distributed as dist
    from common import HARDWARE, gpt, gpt_batch

    if not Path("/proc/self/smaps_rollup").exists():
        return  # this kernel does not count them

    def train(layers):
        model = gpt(dim=256, layers=layers)
        plan = elixir.plan(
            model,
            gpt_batch(),
            device_budget="12MiB",
            hardware=HARDWARE,
            world=world,
            dtype=torch.bfloat16,
            recompute="none",
        )
        model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3)
        run(model, optimizer, range(2))
        dist.barrier()
        return model, optimizer, plan

    train(1)[1].close()  # what the first step of a process takes for good
    settle = lambda: gc.collect() + ctypes.CDLL(None).malloc_trim(0)  # noqa: E731
    settle()  # a closed engine is a cycle, and the allocator keeps what is freed
    dist.barrier()
    before = pss()
    model, optimizer, plan = train(6)
    engine = model._elixir_engine
    parameters = sum(c.plan.bytes for c in engine.chunks)
    one = pss("memfd:elixir")
    dist.barrier()
    assert parameters / world <= one <= 1.02 * parameters / world + 4096, (one, parameters)
    home = engine.shared.data
    end = home.data_ptr() + home.nbytes
    assert all(home.data_ptr() <= c.host.data_ptr() < end for c in engine.chunks)
    assert os.fstat(engine.shared._descriptor).st_nlink == 0
    settle()
    taken = pss() - before  # the emulated device is host memory too
    bounds = 0.95 * plan.host_bytes, 1.05 * (plan.host_bytes + plan.device_budget)
    assert bounds[0] < taken < bounds[1], (taken, bounds)
    dist.barrier()
    optimizer.close()


def weights(world, rank, layout, plan):
    """Train with a layout of ranks on machines; return the weights."""
    import elixir
    import torch
    from common import gpt, gpt_batch

    os.environ["ELIXIR_MACHINE"] = layout[rank]
    model = gpt(seed=rank)  # other values on other ranks: the first rank's count
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-3)
    shared = model._elixir_engine.shared
    assert len(shared.machines) == len(set(layout))
    assert shared.shared == (layout.count(layout[rank]) > 1)
    for step in range(2):
        model(*gpt_batch(step * world + rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = model.state_dict()
    with optimizer.edit():  # every rank doubles what it sees: doubled once
        for p in model.parameters():
            p.data.mul_(2)
    for key, value in model.state_dict().items():
        assert torch.equal(value, 2 * before[key]), key
    model(*gpt_batch(9)).backward()
    optimizer.step()
    found = torch.cat([v.float().flatten() for v in model.state_dict().values()])
    optimizer.close()
    del os.environ["ELIXIR_MACHINE"]
    return found


def case_machines(rank, world, folder):
    """Ranks on one machine, on several, without shared memory: the same weights to the bit."""
    import elixir
    import torch
    from common import HARDWARE, gpt, gpt_batch

    options = {"device_budget": "1MiB", "hardware": HARDWARE, "world": world}
    options |= {"dtype": torch.bfloat16, "recompute": "none"}
    plan = elixir.plan(gpt(), gpt_batch(), **options)
    expected = weights(world, rank, "abc"[:world], plan)  # a copy on every rank
    for layout in ("aab", "aba") if world == 3 else ("aa",):
        assert torch.equal(weights(world, rank, layout, plan), expected), layout
    if rank == 0:
        os.memfd_create = lambda name: (_ for _ in ()).throw(OSError("refused"))
        with pytest.warns(RuntimeWarning, match="every rank keeps its own copy.*refused"):
            assert_alone(world, rank)
    else:
        assert_alone(world, rank)


def assert_alone(world, rank):
    from elixir.memory.shared import SharedHost

    host = SharedHost(64, None)
    assert host.machines == [[r] for r in range(world)]
    host.close()


def case_endless(rank, world, folder):
    model, optimizer = trained(world, "1MiB")
    for step in range(10**6):
        run(model, optimizer, [step])
        Path(f"{folder}/{rank}").write_text(f"{os.getpid()} {step}")


def test_two_ranks_equal_ddp(tmp_path):
    launch("test_distributed:ddp,accumulate,moe,host,machines", 2, tmp_path)


def test_killed_rank_ends_the_others(tmp_path):
    """SIGKILL of one rank: the other raises, and no memory is left that has a name."""
    marks = [tmp_path / "0", tmp_path / "1"]
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(launch, "test_distributed:endless", 2, tmp_path, 60, dead=(1,))
        while not all(m.exists() and m.read_text() for m in marks):
            time.sleep(0.05)
            assert not outcome.done(), outcome.result()
        os.kill(int(marks[1].read_text().split()[0]), signal.SIGKILL)
        with pytest.raises(AssertionError, match="RuntimeError"):
            outcome.result()
    assert not list(Path("/dev/shm").glob("*elixir*"))


def test_world_1_then_3_then_2_on_resume(tmp_path):
    """The three ranks also compare an uneven division with DDP."""
    import elixir
    from common import gpt

    losses = case_save(0, 1, tmp_path)
    losses += launch("test_distributed:save,ddp,machines", 3, tmp_path)
    losses += launch("test_distributed:save", 2, tmp_path)
    model = gpt()
    reference = run(model, elixir.optim.AdamW(model.parameters(), lr=1e-2), range(6))
    assert losses == pytest.approx(reference, rel=1e-5)


@pytest.mark.stress
@pytest.mark.parametrize("world", [2, 4])
def test_thousand_randomly_routed_steps(tmp_path, world):
    launch("test_distributed:moe@1000", world, tmp_path, timeout=900)
