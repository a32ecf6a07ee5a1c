"""The engine: stale weights, exact limits, determinism, checkpoints, faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from perfeds2 import DivergedError, ExperimentConfig, InputError, Simulation
from perfeds2.config import ServerConfig
from perfeds2.data import federate
from perfeds2.server import aggregate
from torch import nn


def config_of(**tables):
    base = {"train": {"rounds": 6}, "server": {"step": 2.0}}
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table} if isinstance(table, dict) else table
    return ExperimentConfig.from_dict(base)


def test_gradients_are_taken_at_the_version_that_was_sent():
    """A trap: the weights each UE computes with are recorded and compared with w at its version."""
    sim = Simulation(config_of(schedule={"participants": 3}, train={"rounds": 15}))
    history = {0: sim.weights}
    seen = []
    inner = sim.method.updates

    def trap(weights, *rest):
        seen.append(weights.clone())
        return inner(weights, *rest)

    sim.method.updates = trap
    for _ in range(15):
        closed = sim.clock.next_round()
        sim.train_round(closed)
        history[closed.index + 1] = sim.weights
        order = np.argsort(closed.ues, kind="stable")
        for row, version in zip(seen[-1], closed.versions[order]):
            assert torch.equal(row, history[int(version)])
    assert max(len(set(c.versions.tolist())) for c in sim._log) > 1  # the test saw stale weights


def test_synchronous_is_plain_per_fedavg_bit_for_bit():
    """A = n against Per-FedAvg written as the textbook loop over the same batches."""
    config = config_of(schedule={"participants": 20})
    sim = Simulation(config)
    found = sim.run().weights
    plain = Simulation(config)
    w = plain.model.initial()
    for k in range(6):
        everybody = np.arange(20)
        inner, outer, hess = plain.batches(everybody, np.full(20, k))
        batches = [(x[:, 0], y[:, 0]) for x, y in (inner, outer, hess)]
        g = plain.method.meta(w.expand(20, -1), *batches)
        total = torch.zeros_like(w)
        for row in g:
            total = total + row
        w = w - (config.server.step / 20) * total
    assert np.array_equal(found, w.numpy())


@pytest.mark.parametrize("participants", [1, 3, 7])
def test_staleness_zero_is_synchronous_bit_for_bit(participants):
    every = Simulation(config_of(schedule={"participants": 20})).run()
    bounded = Simulation(config_of(schedule={"participants": participants, "staleness": 0})).run()
    assert np.array_equal(every.weights, bounded.weights)
    assert np.array_equal(every.close_s, bounded.close_s)


def test_one_participant_is_asynchronous():
    result = Simulation(config_of(schedule={"participants": 1}, train={"rounds": 40})).run()
    assert (result.counts == 1).all()
    assert (np.diff(result.arrival_s) >= 0).all()
    assert np.array_equal(result.arrival_s, result.close_s)


def test_alpha_zero_is_semi_synchronous_sgd():
    meta = Simulation(config_of(method={"alpha": 0.0})).run()
    sgd = Simulation(config_of(method={"name": "fedavg", "alpha": 0.0})).run()
    assert np.array_equal(meta.weights, sgd.weights)


def test_fedbuff_with_one_slot_equals_asynchronous():
    """With a buffer of one, restarting on arrival and at the close are the same."""
    runs = [
        Simulation(
            config_of(schedule={"participants": 1, "restart": r}, train={"rounds": 30})
        ).run()
        for r in ("close", "arrival")
    ]
    assert np.array_equal(runs[0].weights, runs[1].weights)


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_same_bits_for_any_chunk_and_thread_count(kind):
    def run(chunk, threads):
        torch.set_num_threads(threads)
        try:
            return Simulation(config_of(model={"kind": kind}, train={"chunk": chunk})).run().weights
        finally:
            torch.set_num_threads(1)

    first = run(64, 1)
    for chunk, threads in ((1, 1), (3, 2), (7, 1), (64, 2)):
        assert np.array_equal(first, run(chunk, threads))


def test_two_runs_with_one_seed_are_equal_and_seeds_differ():
    a, b = (Simulation(config_of(seed=3)).run() for _ in range(2))
    assert np.array_equal(a.weights, b.weights)
    assert np.array_equal(a.loss, b.loss)
    assert not np.array_equal(a.weights, Simulation(config_of(seed=4)).run().weights)


@pytest.mark.parametrize("method", ["perfedavg", "ditto"])
@pytest.mark.parametrize("bandwidth", ["equal", "processor_sharing"])
def test_resume_after_any_event_is_bitwise_equal(tmp_path, bandwidth, method):
    schedule = {"participants": 4, "bandwidth": bandwidth, "staleness": 6}
    config = config_of(schedule=schedule, method={"name": method}, system={"failure_rate": 0.1})
    whole = Simulation(config).run()
    sim = Simulation(config)
    events = 0
    while True:
        events += 1
        assert events < 500
        result = sim.run(max_events=1, checkpoint=tmp_path / "c.npz")
        if result.stop == "rounds":
            break
        sim = Simulation.load(tmp_path / "c.npz")
    assert np.array_equal(whole.weights, result.weights)
    assert np.array_equal(whole.loss, result.loss)
    assert np.array_equal(whole.close_s, result.close_s)
    assert np.array_equal(whole.ues, result.ues)
    assert np.array_equal(whole.ue_accuracy, result.ue_accuracy)


SLOW = """
import sys, time
from perfeds2 import ExperimentConfig, Simulation
config = ExperimentConfig.from_dict({"train": {"rounds": 40, "checkpoint_every": 1}})
sim = Simulation(config)
print("started", flush=True)
sim.run(checkpoint=sys.argv[1], progress=lambda *a: time.sleep(0.02))
"""


@pytest.mark.parametrize("after", [0.15, 0.6])
def test_kill_and_resume(tmp_path, after):
    """Kill -9 at an arbitrary moment: the checkpoint is whole, and the end is the same."""
    path = tmp_path / "c.npz"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    limit = time.monotonic() + 60
    while not path.exists() and time.monotonic() < limit:
        os.sched_yield()
    until = time.monotonic() + after
    while time.monotonic() < until:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed = Simulation.load(path)
    found = resumed.run()
    config = ExperimentConfig.from_dict({"train": {"rounds": 40, "checkpoint_every": 1}})
    assert np.array_equal(found.weights, Simulation(config).run().weights)


def test_divergence_names_ue_and_round_and_leaves_a_checkpoint(tmp_path):
    config = config_of(server={"step": 1e38}, train={"rounds": 30})
    with pytest.raises(DivergedError, match=r"UE \d+ in round \d+") as caught:
        Simulation(config).run(checkpoint=tmp_path / "c.npz")
    again = Simulation.load(tmp_path / "c.npz")
    assert again.clock.round_index == caught.value.round_index
    with pytest.raises(DivergedError) as second:
        again.run()
    assert second.value.ue == caught.value.ue


def test_nan_loss_of_a_single_ue_is_named():
    x = np.random.default_rng(0).normal(size=(40, 3))
    y = np.arange(40) % 2
    x[25, 0] = np.nan
    parts = [np.arange(20), np.arange(20, 40)]
    config = config_of(ues=2, schedule={"participants": 2}, train={"rounds": 40})
    sim = Simulation(config, dataset=federate(x, y, parts, 0.25, 0))
    with pytest.raises(DivergedError) as caught:
        sim.run()
    assert caught.value.ue == 1


def test_inverse_participation_weights_by_hand_and_after_resume(tmp_path):
    """Equal updates of UEs served 1 and 3 times count 3 : 1, with mean weight 1."""
    config = ServerConfig(step=1.0, participation_weighted=True)
    w, updates = torch.zeros(2), torch.eye(2)
    one, served = np.ones(2, dtype=np.int64), np.array([1, 3])
    found = aggregate(w, updates, updates, 0 * one, one, config, served)
    torch.testing.assert_close(found, -torch.tensor([0.75, 0.25]))
    tables = {
        "ues": 8,
        "schedule": {"participants": 2},
        "server": {"step": 1.0, "participation_weighted": True},
        "train": {"rounds": 20, "eval_every": 20},
    }
    experiment = ExperimentConfig.from_dict(tables)
    whole = Simulation(experiment).run()
    plain = Simulation(experiment.with_(server={"participation_weighted": False})).run()
    assert not np.array_equal(whole.weights, plain.weights)
    Simulation(experiment).run(rounds=9, checkpoint=tmp_path / "c.npz")
    again = Simulation.load(tmp_path / "c.npz").run()
    assert np.array_equal(again.weights, whole.weights)


def test_versions_kept_are_those_in_flight():
    sim = Simulation(config_of(schedule={"participants": 2}, train={"rounds": 60}))
    sim.run()
    live = {int(v) for v in sim.clock.version} | {sim.clock.round_index}
    assert {v for v, _ in sim.store.items()} == live
    assert len(live) <= 21


def test_ue_with_one_label_and_unequal_amounts_train():
    g = np.random.default_rng(0)
    y = np.array([0] * 4 + [1] * 30 + [0, 1, 2] * 10)
    x = g.normal(size=(64, 5)) + y[:, None]
    data = federate(x, y, [np.arange(4), np.arange(4, 34), np.arange(34, 64)], 0.25, 0)
    config = config_of(ues=3, schedule={"participants": 2}, server={"step": 0.5})
    result = Simulation(config, dataset=data).run()
    assert np.isfinite(result.loss).all()


def test_own_model_and_loss():
    module = nn.Linear(64, 10)
    config = config_of(server={"step": 0.02})
    result = Simulation(
        config, model=module, loss=lambda out, y: ((out - torch.eye(10)[y]) ** 2).sum(-1)
    ).run()
    assert result.loss[-1] < result.loss[0]


def test_dataset_of_another_size_is_refused():
    data = federate(np.zeros((8, 2)), np.zeros(8, int), [np.arange(4), np.arange(4, 8)], 0.5, 0)
    with pytest.raises(InputError, match="ues = 20"):
        Simulation(config_of(), dataset=data)


def test_time_limit_and_target_stop():
    result = Simulation(config_of(train={"rounds": 500, "max_time_s": 0.5})).run()
    assert result.stop == "time"
    assert result.close_s[-1] <= 0.5
    result = Simulation(config_of(train={"rounds": 500}, server={"step": 4.0})).run(target_loss=0.8)
    assert result.stop == "target"
    assert result.time_to(0.8) == result.eval_s[-1]


def test_result_round_trip(tmp_path):
    from perfeds2 import RunResult

    result = Simulation(config_of()).run()
    result.save(tmp_path / "run.npz")
    again = RunResult.load(tmp_path / "run.npz")
    assert again.summary() == result.summary()
    assert again.config == result.config
    assert again.to_frame().dtype.names == ("round", "seconds", "loss", "accuracy")
