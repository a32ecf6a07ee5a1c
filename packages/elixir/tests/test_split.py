"""Weights larger than the device in tiles. Oracle: the same model trained in memory."""

import elixir
import pytest
import torch
from common import HARDWARE, assert_same, elixir_steps, least_budget, plain_steps
from elixir import checkpoint
from elixir.models import GPT
from elixir.runtime.tile import find
from ranks import launch
from torch import nn

VOCAB = 4096


def gpt(*, tied=True):
    torch.manual_seed(0)
    model = GPT(vocab=VOCAB, context=4, dim=64, layers=2, heads=2, tied=tied)
    if not tied:
        model.head = nn.Linear(64, VOCAB)
    return model


def batches(count, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [[torch.randint(0, VOCAB, (1, 4), generator=g) for _ in range(2)] for _ in range(count)]


def planned(model, budget="512KiB", **options):
    options = {"recompute": "none", "split": "64KiB", "hardware": HARDWARE} | options
    return elixir.plan(model, batches(1)[0], device_budget=budget, **options)


@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_larger_than_the_budget_trains(tied):
    """The token embedding takes 1 MiB, the device has less than half."""
    whole = least_budget(gpt(tied=tied), batches(1)[0], recompute="none")
    plan = planned(gpt(tied=tied), budget=(largest := gpt().wte.weight.nbytes) // 2)
    assert plan.device_bytes <= largest // 2 < largest < whole
    assert plan.least_budget < whole / 4
    modules = {m for names, _ in plan.splits for m in names}
    assert modules == {"wte", "head"}
    assert "wte.weight" in plan.explain()
    assert "256 rows a tile" in plan.explain()
    # the gradient of a key's bias is zero but for rounding: a larger eps keeps it from mattering
    expected = plain_steps(gpt(tied=tied), batches(4), clip=1.0, eps=1e-4)
    model = gpt(tied=tied)
    names = list(model.state_dict())
    got = elixir_steps(model, batches(4), plan, max_grad_norm=1.0, eps=1e-4)
    engine = model._elixir_engine
    assert engine.arena.size <= largest // 2
    assert plan.cache_bytes < largest // 4
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    assert set(got[1]) == set(expected[1])
    for key, value in got[1].items():
        assert torch.allclose(value, expected[1][key], atol=2e-5), key
    got[2].close()
    assert list(model.state_dict()) == names
    assert isinstance(model.wte.weight, nn.Parameter)
    assert (model.head.weight is model.wte.weight) == tied
    for key, value in model.state_dict().items():
        assert torch.equal(value, got[1][key]), key
    assert not any("tile" in name for name, _ in model.named_modules())
    model(*batches(1)[0]).backward()  # an ordinary model again
    assert model.wte.weight.grad.shape == (VOCAB, 64)


@pytest.mark.parametrize(
    ("options", "run"),
    [
        ({"recompute": "all"}, {"step_in_backward": True}),
        ({"offload": "all"}, {}),
        ({"disk": True}, {"step_in_backward": True}),
    ],
)
def test_tiles_with_everything_else(options, run):
    """A tied weight in tiles beside recomputation, offload, disk, accumulation, early updates."""
    expected = plain_steps(gpt(), batches(4), eps=1e-4, accumulate=2)
    plan = planned(gpt(), budget="1MiB", **options)
    assert plan.splits
    got = elixir_steps(gpt(), batches(4), plan, eps=1e-4, accumulate=2, **run)
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    for key, value in got[1].items():
        assert torch.allclose(value, expected[1][key], atol=2e-5), key
    got[2].close()


def test_an_embedding_alone_is_exact():
    """Tiles of an embedding look up and update the same rows: equal to the bit."""

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(1024, 16, padding_idx=700), nn.Linear(16, 4))

    x = [torch.randint(0, 1024, (4, 9), generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    x[0][0, :4] = 700
    options = {"recompute": "none", "hardware": HARDWARE, "split": "8KiB"}
    plan = elixir.plan(make(), x[0], device_budget="64KiB", **options)
    assert plan.splits == ((("0",), 128),)
    assert_same(plain_steps(make(), x), elixir_steps(make(), x, plan))


def test_state_dict_checkpoint_and_gradient_are_whole(tmp_path):
    model, plain = gpt(tied=False), gpt(tied=False)
    model, optimizer = elixir.initialize(model, plan=planned(gpt(tied=False)), lr=1e-3)
    state = plain.state_dict()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    model.load_state_dict({k: v + 1 for k, v in state.items()})
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key] + 1), key
    with pytest.raises(ValueError, match=r"wte.weight: has 5 rows, the model 4096"):
        model.load_state_dict({**state, "wte.weight": torch.zeros(5, 64)})
    model.load_state_dict(state)
    batch = batches(1)[0]
    model(*batch).backward()
    plain(*batch).backward()
    optimizer.step()
    checkpoint.save(tmp_path / "run", optimizer, {"step": 1})
    expected = model.state_dict()
    again, other = elixir.initialize(
        gpt(), plan=elixir.plan(gpt(), batch, device_budget="8MiB", hardware=HARDWARE)
    )
    with pytest.raises(elixir.CorruptCheckpointError, match="of another model"):
        checkpoint.load(tmp_path / "run", other)
    other.close()
    undivided = elixir.plan(gpt(tied=False), batch, device_budget="8MiB", hardware=HARDWARE)
    again, other = elixir.initialize(gpt(tied=False), plan=undivided, lr=1e-3)
    assert checkpoint.load(tmp_path / "run", other) == {"step": 1}
    for key, value in again.state_dict().items():
        assert torch.equal(value, expected[key]), key
    again(*batch).backward()
    other.step()
    checkpoint.save(tmp_path / "whole", other)
    assert checkpoint.load(tmp_path / "whole", optimizer) == {}
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    moments = optimizer.states.slots["wte.tile3.weight"]
    assert moments.step == 2
    optimizer.close()


def test_gradient_of_a_split_weight():
    model, plain = gpt(), gpt()
    weight = model.wte.weight
    groups = [{"params": [p], "weight_decay": 0.1} for p in model.parameters()]
    model, optimizer = elixir.initialize(model, plan=planned(gpt()), lr=1e-3, params=groups)
    assert len(optimizer.param_groups[0]["params"]) == 16
    for batch in batches(2):
        model(*batch).backward()
        plain(*batch).backward()
    whole = optimizer.gradient(weight)
    assert torch.allclose(whole, plain.wte.weight.grad, atol=1e-6)
    optimizer.close()


def test_what_is_split():
    model = nn.Sequential(nn.Embedding(64, 8, sparse=True), nn.Embedding(64, 8, max_norm=1.0))
    model.append(nn.Linear(8, 64)).append(nn.Bilinear(8, 8, 64)).append(nn.Linear(64, 2))
    assert [s.modules for s in find(model, 600, 4)] == [("2",)]
    assert find(model, 600, 4, skip=["2"]) == ()
    assert {m for s in find(gpt(), 65536, 4) for m in s.modules} == {"wte", "head"}
    assert find(gpt(), 65536, 4, tied=False) == ()


class Reader(nn.Module):
    """Reads a weight outside of its module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 64)

    def forward(self, x):
        return (x @ self.layer.weight.t()).mean()


def test_refused():
    with pytest.raises(ValueError, match="split: a weight of layer is read outside its module"):
        elixir.plan(Reader(), torch.zeros(2, 8), device_budget="1MiB", split="1KiB")
    with pytest.raises(elixir.InfeasiblePlanError, match="split='auto' cuts linear maps"):
        planned(gpt(), "64KiB", split=None)
    plan = planned(gpt(), "1280KiB", split="auto")
    assert plan.splits[0][1] * 64 * 4 <= plan.device_budget // 4


def case_ranks(rank, world, folder):
    """Split weights over several ranks: DistributedDataParallel's weights."""
    plan = planned(gpt(tied=False), world=world)
    assert plan.splits
    model, optimizer = elixir.initialize(gpt(tied=False), plan=plan, lr=1e-3, eps=1e-4)
    reference = torch.nn.parallel.DistributedDataParallel(gpt(tied=False))
    theirs = elixir.optim.AdamW(reference.parameters(), lr=1e-3, eps=1e-4)
    for step in range(2):
        batch = batches(1, seed=10 * step + rank)[0]
        model(*batch).backward()
        reference(*batch).backward()
        for o in (optimizer, theirs):
            o.step()
            o.zero_grad()
    for (key, a), b in zip(model.state_dict().items(), reference.module.state_dict().values()):
        assert torch.allclose(a, b, atol=5e-6), key
    assert model._elixir_engine.gradients.reduction.beyond == 0
    optimizer.close()
    assert planned(gpt(), "8MiB", world=world).splits == ()  # a tied weight stays in one piece


def test_two_ranks(tmp_path):
    launch("test_split:ranks", 2, tmp_path)
