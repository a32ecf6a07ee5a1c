"""Partitioners and loaders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perfeds2 import ExperimentConfig, InputError, Simulation, federate, load_data
from perfeds2.data import read_play, windows_by_speaker
from perfeds2.partition import PARTITIONERS, by_key, classes, manifest_hash, shards


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("classes", 3), ("dirichlet", 0.1), ("shards", 2), ("quantity_lognormal", 2.0)],
)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 30))
def test_partitions_are_disjoint_complete_and_never_empty(name, parameter, seed, ues):
    labels = np.random.default_rng(seed).integers(0, 10, 600)
    parts = PARTITIONERS[name](labels, ues, parameter, seed)
    assert len(parts) == ues
    assert min(map(len, parts)) >= 1
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(600))
    again = PARTITIONERS[name](labels, ues, parameter, seed)
    assert manifest_hash(parts) == manifest_hash(again)


def test_classes_gives_each_ue_exactly_its_labels():
    labels = np.repeat(np.arange(10), 80)
    parts = classes(labels, 20, 4, 0)
    assert [len(set(labels[p].tolist())) for p in parts] == [4] * 20


def test_shards_hold_few_labels():
    labels = np.repeat(np.arange(10), 100)
    assert max(len(set(labels[p].tolist())) for p in shards(labels, 20, 2, 0)) <= 4


def test_labels_without_an_owner_are_refused():
    with pytest.raises(InputError, match="labels_per_ue = 1"):
        classes(np.arange(10), 4, 1)


def test_by_key_takes_the_busiest():
    assert [len(p) for p in by_key(list("aabbbc"), 2)] == [3, 2]
    with pytest.raises(InputError, match="ues = 5"):
        by_key(list("aab"), 5)


def test_empty_ue_and_missing_label_are_named():
    x, y = np.zeros((10, 2)), np.arange(10) % 2
    with pytest.raises(InputError, match="UE 1 = '1 samples'"):
        federate(x, y, [np.arange(9), np.array([9])], 0.25, 0)
    y[4] = -1
    with pytest.raises(InputError, match="UE 0, sample 4: label -1"):
        federate(x, y, [np.arange(5), np.arange(5, 10)], 0.25, 0, classes=2)


def test_train_and_test_are_disjoint():
    x = np.arange(100.0)[:, None]
    data = federate(x, np.zeros(100, int), [np.arange(40), np.arange(40, 100)], 0.25, 0)
    train, test = set(data.train.x[:, 0].tolist()), set(data.test.x[:, 0].tolist())
    assert not train & test
    assert len(train | test) == 100
    assert data.test.size.tolist() == [10, 15]


def test_training_batches_never_hold_test_samples():
    """Every label of the test samples is changed; training must not notice."""
    config = ExperimentConfig.from_dict({"train": {"rounds": 3}})
    data = load_data(config)
    first = Simulation(config, dataset=data).run().weights
    data.test.y.copy_((data.test.y + 1) % 10)
    assert np.array_equal(first, Simulation(config, dataset=data).run().weights)


def test_evaluation_uses_the_adapted_model_not_the_global_one():
    sim = Simulation(ExperimentConfig.from_dict({"train": {"rounds": 3}, "method": {"alpha": 0.5}}))
    sim.run()
    adapted, _ = sim.evaluate()
    sim.method.config = sim.config.with_(method={"adapt_steps": 0}).method
    plain, _ = sim.evaluate()
    assert adapted < plain
    _, train, test = sim._padded[0]
    x, y, mask = (t[3] for t in train)
    keep = mask.bool()
    w = sim.weights - 0.5 * torch.func.grad(sim.model.loss)(sim.weights, (x[keep], y[keep]))
    x, y, mask = (t[3] for t in test)
    keep = mask.bool()
    sim.method.config = sim.config.method
    sim.evaluate()
    assert sim.ue_loss[3] == pytest.approx(float(sim.model.loss(w, (x[keep], y[keep]))), rel=1e-5)


def test_npz_of_images(tmp_path):
    g = np.random.default_rng(0)
    arrays = {}
    for ue in range(2):
        for part, count in (("train", 12), ("test", 5)):
            arrays[f"{part}_{ue}_x"] = g.integers(0, 256, (count, 4, 4), dtype=np.uint8)
            arrays[f"{part}_{ue}_y"] = g.integers(0, 3, count).astype(np.uint8)
    arrays["train_0_y"][0] = 2
    np.savez(tmp_path / "images.npz", **arrays)
    tables = {
        "ues": 2,
        "data": {"source": "npz", "path": str(tmp_path / "images.npz")},
        "schedule": {"participants": 1},
        "train": {"rounds": 2},
        "server": {"step": 0.1},
    }
    data = load_data(ExperimentConfig.from_dict(tables))
    assert data.features == 16
    assert float(data.train.x.max()) <= 1.0
    assert np.isfinite(Simulation(ExperimentConfig.from_dict(tables)).run().loss).all()
    tables["ues"] = 3
    tables["schedule"] = {"participants": 1}
    with pytest.raises(InputError, match=r"train_<ue>_x.*3 UEs"):
        load_data(ExperimentConfig.from_dict(tables))


def test_folder_with_one_file_per_ue(tmp_path):
    for ue in range(2):
        np.savez(tmp_path / f"{ue}.npz", x=np.ones((6, 3)), y=np.arange(6) % 2)
    tables = {"ues": 2, "data": {"source": "folder", "path": str(tmp_path)},
              "schedule": {"participants": 2}}  # fmt: skip
    data = load_data(ExperimentConfig.from_dict(tables))
    assert data.train.size.tolist() == [4, 4]
    (tmp_path / "1.npz").unlink()
    with pytest.raises(InputError, match=r"1\.npz"):
        load_data(ExperimentConfig.from_dict(tables))


PLAY = "Anna:\nWe wait for nobody, not for half.\n\nBert:\nThen who waits for us?\nNobody.\n\n" * 6


def test_play_is_split_by_speaker_and_a_gru_trains_on_it(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(PLAY * 10)
    speeches, speakers = read_play(path)
    assert speakers[:2] == ["Anna", "Bert"]
    x, y, parts, symbols = windows_by_speaker(speeches, speakers, 2, length=8, stride=4)
    alphabet = sorted(set("".join(s + "\n" for s in speeches)))
    assert symbols == len(alphabet)
    said = "".join(s + "\n" for s, who in zip(speeches, speakers) if who == "Anna")
    rows = [p for p in parts if "".join(alphabet[i] for i in x[p[0]]) == said[:8]]
    assert rows
    assert alphabet[y[rows[0][0]]] == said[8]
    tables = {
        "ues": 2,
        "data": {"source": "text", "path": str(path), "partition": "by_key"},
        "model": {"kind": "chargru", "hidden": 8},
        "schedule": {"participants": 1},
        "server": {"step": 0.5},
        "train": {"rounds": 25, "eval_every": 25},
        "method": {"inner_batch": 4, "outer_batch": 4, "hessian_batch": 4},
    }
    result = Simulation(ExperimentConfig.from_dict(tables)).run()
    assert result.loss[-1] < result.loss[0]
    path.write_text("no speaker here")
    with pytest.raises(InputError, match="allowed is a play"):
        read_play(path)


def test_by_key_without_text_is_refused():
    with pytest.raises(InputError, match="by_key"):
        load_data(ExperimentConfig.from_dict({"data": {"partition": "by_key"}}))
