"""Linear maps divided by column and row. Oracle: one rank that trains the whole model."""

import copy
from pathlib import Path

import elixir
import pytest
import torch
from common import HARDWARE, gpt, gpt_batch, least_budget
from elixir.profile.operators import Operator
from elixir.runtime.divide import Link, install, resolve
from ranks import launch
from torch import nn

RULES = (
    ("blocks.*.up", "column"),
    ("blocks.*.down.weight", "row"),
    ("blocks.*.qkv", "column"),
    ("blocks.*.proj", "row"),
)
OPTIONS = {"device_budget": "1MiB", "hardware": HARDWARE}


def model():
    return gpt(tied=False)


def divide(plan):
    for pattern, kind in (*RULES, ("head", "column")):
        plan = plan.override(pattern, shard=kind)
    return plan


def save_plans(folder, world):
    """Plan once for all ranks."""
    for again in ("none", "all") if world == 2 else ("all",):
        options = OPTIONS | {"tensor_parallel": 2, "world": world // 2, "recompute": again}
        divide(elixir.plan(model(), gpt_batch(), **options)).save(folder / f"{again}{world}.json")


def initialize(world, folder, again, **training):
    from torch.distributed.device_mesh import init_device_mesh

    shape, names = ((2,), ("tp",)) if world == 2 else ((2, 2), ("dp", "tp"))
    plan = elixir.Plan.load(f"{folder}/{again}{world}.json")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    ours = gpt(tied=False, seed=torch.distributed.get_rank())  # the first rank's values count
    return elixir.initialize(ours, plan=plan, lr=1e-3, mesh=mesh, **training)


def numbers(step, data_ranks):
    return range(step * data_ranks, (step + 1) * data_ranks)


def alone(steps, data_ranks, clip):
    """Train the whole model on all batches of a step; return losses and weights."""
    whole = model()
    optimizer = elixir.optim.AdamW(whole.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        found = [whole(*gpt_batch(i)) for i in numbers(step, data_ranks)]
        (sum(found) / data_ranks).backward()
        losses.append([loss.item() for loss in found])
        nn.utils.clip_grad_norm_(whole.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return losses, whole.state_dict()


def case_train(rank, world, folder):
    """Losses, weights, the norm and what a rank holds; the checkpoint holds whole weights."""
    from elixir import checkpoint

    data_ranks, where = world // 2, rank // 2
    reference = {}
    for again in ("none", "all") if world == 2 else ("all",):
        training = {"max_grad_norm": 0.5, "loss_scale": 64.0}
        ours, optimizer = initialize(world, folder, again, **training)
        engine = ours._elixir_engine
        assert engine.world == data_ranks
        assert ours.blocks[0].up.weight.shape == (64, 32)
        assert ours.blocks[0].down.weight.shape == (32, 64)
        held = sum(c.plan.bytes for c in engine.chunks)
        assert held < 0.6 * 4 * sum(p.numel() for p in model().parameters())
        steps = 4
        losses, reference = alone(steps, data_ranks, 0.5)
        for step in range(steps):
            loss = ours(*gpt_batch(numbers(step, data_ranks)[where]))
            assert loss.item() == pytest.approx(losses[step][where], rel=1e-5)
            optimizer.scale(loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        state = ours.state_dict()
        for key, value in reference.items():
            assert state[key].shape == value.shape
            assert torch.allclose(state[key], value, atol=5e-6), key
        mine = [torch.empty_like(state["wte.weight"]) for _ in range(world)]
        torch.distributed.all_gather(mine, state["wte.weight"])
        assert all(torch.equal(m, mine[0]) for m in mine)
        checkpoint.save(Path(folder) / f"run{world}", optimizer, {"step": steps})
        ours.load_state_dict({k: v + 1 for k, v in state.items()})
        assert checkpoint.load(Path(folder) / f"run{world}", optimizer) == {"step": steps}
        for key, value in ours.state_dict().items():
            assert torch.equal(value, state[key]), key
        optimizer.close()
        assert ours.blocks[0].up.weight.shape == (128, 32)
        for key, value in ours.state_dict().items():
            assert torch.equal(value, state[key]), key
        assert "forward" not in ours.blocks[0].up.__dict__
    if rank == 0:
        torch.save(reference, Path(folder) / f"reference{world}.pt")
    if (other := Path(folder) / "one").exists():  # a checkpoint that one rank wrote
        ours, optimizer = initialize(world, folder, "all")
        checkpoint.load(other, optimizer)
        saved = torch.load(Path(folder) / "one.pt", weights_only=True)
        for key, value in ours.state_dict().items():
            assert torch.equal(value, saved[key]), key
        optimizer.close()


def case_sums(rank, world, folder):
    """Count the sums: one in each direction for a column followed by a row."""
    made = elixir.plan(model(), gpt_batch(), recompute="none", tensor_parallel=2, **OPTIONS)
    for pattern, kind in RULES[:2]:
        made = made.override(pattern, shard=kind)
    assert made.operators[0] == ("blocks.0.up", "column", False)
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    ours, optimizer = elixir.initialize(model(), plan=made, lr=1e-3, mesh=mesh)
    counts, total = [], [0]
    plain = Link.sum
    Link.sum = lambda link, t: (total.__setitem__(0, total[0] + 1), plain(link, t))[1]
    Link.join = None  # nothing is gathered
    loss = ours(*gpt_batch())
    counts.append(total[0])
    loss.backward()
    counts.append(total[0])
    assert counts == [3, 6]  # three blocks
    Link.sum = plain
    optimizer.zero_grad()


def resume(folder, world):
    """Load a checkpoint of divided operators on one rank."""
    from elixir import checkpoint

    plan = elixir.plan(model(), gpt_batch(), recompute="none", **OPTIONS)
    whole, optimizer = elixir.initialize(model(), plan=plan, lr=1e-3)
    checkpoint.load(folder / f"run{world}", optimizer)
    reference = torch.load(folder / f"reference{world}.pt", weights_only=True)
    for key, value in whole.state_dict().items():
        assert torch.allclose(value, reference[key], atol=5e-6), key
    count = checkpoint.export_safetensors(folder / f"run{world}", folder / "whole.safetensors")
    from safetensors.torch import load_file

    found = load_file(folder / "whole.safetensors")
    assert count == len(found) == len(reference)
    assert all(torch.equal(found[k], v) for k, v in whole.state_dict().items())
    checkpoint.reshard(folder / f"run{world}", folder / "three", 3)
    checkpoint.load(folder / "three", optimizer)
    assert all(torch.equal(found[k], v) for k, v in whole.state_dict().items())
    checkpoint.save(folder / "one", optimizer)
    torch.save(whole.state_dict(), folder / "one.pt")
    optimizer.close()


def test_two_ranks_then_one_then_two_by_two(tmp_path):
    save_plans(tmp_path, 2)
    launch("test_column_row:train,sums", 2, tmp_path)
    resume(tmp_path, 2)
    save_plans(tmp_path, 4)
    launch("test_column_row:train", 4, tmp_path)


@pytest.mark.peer
def test_conv1d_of_transformers():
    """Divide GPT-2's own layers; the parts make up what one rank computes."""
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 16}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    whole = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **none))
    tokens = gpt_batch()[0]
    rules = [("*.c_fc", "column"), ("*.mlp.c_proj", "row")]
    found = resolve(whole, {"input_ids": tokens, "labels": tokens}, rules, 2)
    assert [o.whole for o in found] == [False] * 4
    mlp, x = whole.transformer.h[0].mlp, torch.randn(2, 3, 32)
    expected, parts = mlp(x), []
    for rank in range(2):
        other, link = copy.deepcopy(mlp), Link(2, rank)
        install(other, [Operator("c_fc", "column", False), Operator("c_proj", "row", False)], link)
        parts.append(other(x) - other.c_proj.bias)
    assert torch.allclose(sum(parts) + mlp.c_proj.bias, expected, atol=1e-6)


class Gated(nn.Module):
    """A gated layer, as Llama's; ``kind`` puts something between the columns and the row."""

    def __init__(self, kind=""):
        super().__init__()
        self.kind = kind
        self.gate, self.up = nn.Linear(8, 16), nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(16)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x):
        gate, up = self.gate(x), self.up(x)
        size = 16 if self.kind == "constant" else gate.shape[-1]
        y = torch.nn.functional.silu(gate.reshape(-1, size)).view_as(gate) * up
        if self.kind == "norm":
            y = self.norm(y)
        elif self.kind == "scale":
            y = y * self.scale
        elif self.kind == "dropout":
            y = nn.functional.dropout(y, 0.5)
        elif self.kind == "used":
            return self.down(y).square().mean() + up.mean()
        return self.down(y).square().mean()


@pytest.mark.parametrize("kind", ["", "constant", "norm", "scale", "dropout", "used"])
def test_where_activations_join(kind):
    """Only element-wise operators may lie between a column and a row."""
    rules = [("gate", "column"), ("up", "column"), ("down", "row")]
    found = resolve(Gated(kind), torch.zeros(2, 3, 8), rules, 2)
    whole = bool(kind)
    assert found == (
        Operator("gate", "column", whole),
        Operator("up", "column", whole),
        Operator("down", "row", whole),
    )
    only = resolve(Gated(kind), torch.zeros(2, 3, 8), rules[1:], 2)
    assert all(o.whole for o in only)  # up's divided output would meet gate's whole one


def test_plan_divides_and_explains(tmp_path):
    batch = gpt_batch()
    whole = elixir.plan(model(), batch, recompute="none", tensor_parallel=2, **OPTIONS)
    ours = model()
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    plan = divide(elixir.plan(ours, batch, recompute="none", tensor_parallel=2, **OPTIONS))
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
    assert plan.fingerprint == whole.fingerprint
    assert plan.least_budget < least_budget(model(), batch, recompute="none")
    assert "divided over 2 ranks: 7 column (4 gather their output), 6 row (3 cut" in plan.explain()
    plan.save(tmp_path / "plan.json")
    assert elixir.Plan.load(tmp_path / "plan.json").operators == plan.operators


def test_refused():
    batch, options = gpt_batch(), OPTIONS | {"recompute": "none"}
    plan = elixir.plan(gpt(), batch, **options)
    with pytest.raises(ValueError, match="shard='column' needs a plan made with tensor_parallel"):
        plan.override("blocks.*.up", shard="column")
    with pytest.raises(ValueError, match="tensor_parallel=0: must be at least 1"):
        elixir.plan(gpt(), batch, tensor_parallel=0, **options)
    plan = elixir.plan(gpt(), batch, tensor_parallel=3, **options)
    with pytest.raises(ValueError, match=r"blocks.0.up has 128 outputs, which 3 ranks do not"):
        plan.override("blocks.*.up", shard="column")
    with pytest.raises(ValueError, match=r"'norm\*' matches no operator that shard='row' can"):
        plan.override("norm*", shard="row")
    with pytest.raises(ValueError, match=r"head.weight is tied"):
        plan.override("head", shard="column")
    with pytest.raises(ValueError, match="give tier= by itself"):
        plan.override("blocks.*.up", shard="column", tier="host")
    with pytest.raises(ValueError, match="shard='colum': allowed are replicate, shard, expert, co"):
        plan.override("blocks.*.up", shard="colum")
    with pytest.raises(ValueError, match="mesh: the plan divides operators over 3 ranks"):
        elixir.initialize(gpt(), plan=plan)
