"""Two processes (gloo) against one: the gate, the rewards, and a step of stage 1."""

import copy

import pytest
import torch
from p2c import Pipeline, PipelineConfig
from p2c.distributed import average_gradients, part
from p2c.rewards import sample_association
from p2c.stages import Batch

from .test_pipeline import TINY

# argmax proposals and one verb per caption: nothing in the step is drawn per process
CONFIG = {**TINY, "choose": "argmax", "proposals": 1, "margin": -1.0, "ablations": False,
          "judge_steps": 12, "lm_steps": 12, "xe_steps": 30}  # fmt: skip


def step(folder):
    """Return gate decisions and gradients of stage 1's loss for one batch, shared or not."""
    torch.set_num_threads(1)
    p = Pipeline(PipelineConfig.from_dict(CONFIG))
    p.train("xe", folder, resume=True)
    net = p._captioner()
    net.load_state_dict(p.state["done"]["VIVO + XE"]["net"])
    distil = p._distillation(net)
    g = torch.Generator().manual_seed(7)
    index = part(torch.arange(8))
    batch = p._batch("unpaired", index)
    greedy = net.generate(batch.encode(net), greedy=True).ids[:, 0]
    made = distil.propose(greedy, batch, copy.deepcopy(g))
    # as in stage 1, what all processes draw alike comes first: proposals draw per process
    shared = p._xe_batch(net, g, 8) + p._vivo_batch(net, g)
    loss = shared + distil.loss(net, batch, g)
    loss.backward()
    parameters = [q for q in net.parameters() if q.requires_grad]
    average_gradients(parameters)
    ids = torch.randint(5, 40, (8, 3, 6), generator=torch.Generator().manual_seed(1))
    reward = sample_association(p.judge, batch.vectors, part(ids))
    return {
        "before": made[3],
        "after": made[4],
        "accepted": (made[2] != 0).any(1),
        "reward": reward,
        "gradient": torch.cat(
            [(q.grad if q.grad is not None else q * 0).flatten() for q in parameters]
        ),
    }


def _worker(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.save(step(folder), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_step_of_one(tmp_path):
    Pipeline(PipelineConfig.from_dict(CONFIG)).train("xe", tmp_path)
    whole = step(tmp_path)
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    halves = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    assert bool(whole["accepted"].any())
    assert torch.equal(torch.cat([h["accepted"] for h in halves]), whole["accepted"])
    for name in ("before", "after", "reward"):
        gap = (torch.cat([h[name] for h in halves]) - whole[name]).abs().max()
        assert float(gap) < 1e-6, name
    assert torch.equal(halves[0]["gradient"], halves[1]["gradient"])
    assert float((halves[0]["gradient"] - whole["gradient"]).abs().max()) < 1e-6
    assert float(whole["gradient"].abs().max()) > 1e-3


def _train(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store2", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    Pipeline(PipelineConfig.from_dict(CONFIG)).train("stage2", folder, resume=True)
    torch.distributed.destroy_process_group()


def test_every_stage_trains_in_two_processes(tmp_path):
    Pipeline(PipelineConfig.from_dict(CONFIG)).train("xe", tmp_path)
    torch.multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)
    run = Pipeline(PipelineConfig.from_dict(CONFIG)).run(tmp_path, resume=True)
    assert len(run.captions["stage 2"]) == 20
    assert len(run.curves["stage 2"]) == TINY["stage2_steps"]


def test_a_process_without_a_verb_does_not_hold_up_the_other(monkeypatch):
    """In a group, a caption without a verb goes on unchanged instead of leaving the step."""
    p = Pipeline(PipelineConfig.from_dict({**CONFIG, "lm_steps": 1, "judge_steps": 1}))
    p._load_named()
    p._prepare()
    p._scorers(lambda _: None)
    distil = p._distillation(p._captioner())
    greedy = p.vocabulary.encode_all(["a zebra", "a bus"], 10)
    batch = Batch(torch.zeros(2, 2).long(), torch.zeros(2, 2, 70), p.vectors["unpaired"][:2])
    assert distil.propose(greedy, batch, torch.Generator()) is None
    monkeypatch.setattr("p2c.stages.world", lambda: (0, 2))
    made = distil.propose(greedy, batch, torch.Generator())
    assert torch.equal(made[1], greedy)
    assert not made[2].any()


def test_a_batch_must_be_shared_equally(monkeypatch):
    from p2c import InputError

    monkeypatch.setattr("p2c.distributed.world", lambda: (1, 2))
    assert part(torch.arange(4)).tolist() == [2, 3]
    with pytest.raises(InputError, match="batch = 5"):
        part(torch.arange(5))
