"""Gloo ranks on this machine. Oracle: DistributedDataParallel and one rank on the whole batch."""

import multiprocessing
import socket
import traceback
from pathlib import Path

import pytest

# forkserver: the children share one import of torch
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "elixir"])


def launch(case, world, folder, timeout=150):
    """Run a case on ``world`` processes; return what each printed as losses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    queue = CONTEXT.Queue()
    children = [
        CONTEXT.Process(target=main, args=(case, rank, world, port, str(folder), queue))
        for rank in range(world)
    ]
    for c in children:
        c.start()
    try:
        outs = dict(queue.get(timeout=timeout) for _ in range(world))
    finally:
        for c in children:
            c.join(10)
            c.kill()
    assert all(isinstance(out, list) for out in outs.values()), "\n".join(map(str, outs.values()))
    return outs[0]


def main(case, rank, world, port, folder, queue):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": world}
    try:
        dist.init_process_group("gloo", **store)
        out = []
        for name in case.split(","):
            if name.startswith("moe"):
                routed(rank, world, int(name[3:] or 40), 10)
            else:
                out += globals()[f"case_{name}"](rank, world, folder) or []
        dist.barrier()
        dist.destroy_process_group()
        queue.put((rank, out))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
        raise


def case_ddp(rank, world, folder):
    """Losses and weights of three steps against DDP, relative 1e-6; ranks agree to the bit."""
    import elixir
    import torch
    import torch.distributed as dist
    from common import HARDWARE, gpt, gpt_batch

    for clip, budget in ((None, "1MiB"), (0.1, "64MiB")):
        model = gpt()
        plan = elixir.plan(model, gpt_batch(), device_budget=budget, hardware=HARDWARE, world=world)
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
    for step in range(2):
        for micro in range(2):
            batch = gpt_batch(10 * step + 2 * micro + rank)
            if micro == 0:
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


def test_two_ranks_equal_ddp(tmp_path):
    launch("ddp,accumulate,moe", 2, tmp_path)


def test_world_1_then_3_then_2_on_resume(tmp_path):
    """The three ranks also compare an uneven division with DDP."""
    import elixir
    from common import gpt

    losses = case_save(0, 1, tmp_path)
    losses += launch("save,ddp", 3, tmp_path)
    losses += launch("save", 2, tmp_path)
    model = gpt()
    reference = run(model, elixir.optim.AdamW(model.parameters(), lr=1e-2), range(6))
    assert losses == pytest.approx(reference, rel=1e-5)


@pytest.mark.stress
@pytest.mark.parametrize("world", [2, 4])
def test_thousand_randomly_routed_steps(tmp_path, world):
    launch("moe1000", world, tmp_path, timeout=900)
