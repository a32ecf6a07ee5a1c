"""Pretraining, search and training: clipping, masks, offsets, resuming after a kill."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from nasa import Architecture, SearchSpace, Supernet, runs
from nasa.data import LabelledImages, load_digits
from nasa.hw import Accelerator
from nasa.nn import AdderConv2d
from nasa.pretraining import ProgressivePretraining
from nasa.search import (
    DNAS,
    CostTable,
    Evaluated,
    Evaluator,
    Evolution,
    hypervolume,
    pareto_front,
    true_cost,
)
from nasa.search.dnas import restore, sample
from nasa.training import (
    Recipe,
    TrainingDivergedError,
    clip_gradients,
    evaluate,
    load_checkpoint,
    recalibrate_batch_norm,
    train_from_scratch,
    weight_statistics,
)
from torch import nn

SPACE = SearchSpace.from_yaml("digits")
MACHINE = Accelerator.from_yaml("nasa_45nm")


class StopError(Exception):
    """Stands for an interruption."""


@pytest.fixture(scope="module")
def digits():
    train, test = load_digits()
    return train.take(torch.arange(384)), test


def fresh(seed=0):
    torch.manual_seed(seed)
    return Supernet(SPACE, zero_last_gamma=True)


def test_global_clip_starves_convolutions_and_group_clip_does_not():
    """Adder gradients have norm 0.2 sqrt(k): together with them the others are scaled down."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), AdderConv2d(64, 64, 3), nn.BatchNorm2d(64))
    net(torch.randn(4, 3, 8, 8)).square().mean().backward()
    saved = [p.grad.clone() for p in net.parameters()]
    adder_norm = 0.2 * math.sqrt(net[1].weight.numel())
    assert clip_gradients(net, 5.0, "global") >= adder_norm > 5
    shrunk = net[0].weight.grad.norm() / saved[0].norm()
    assert shrunk < 5 / adder_norm * 1.01
    for p, g in zip(net.parameters(), saved, strict=True):
        p.grad.copy_(g)
    clip_gradients(net, 5.0, "group")
    assert math.isclose(net[1].weight.grad.norm(), adder_norm, rel_tol=1e-4)
    assert torch.equal(net[0].weight.grad, saved[0])


def test_stages_sample_and_freeze_what_they_name(digits):
    train, _ = digits
    schedule = ProgressivePretraining.progressive(SPACE, 6, Recipe(batch_size=128))
    names = [
        [str(SPACE.cells[0].candidates[i]) for i in s.allowed(SPACE.cells[0])]
        for s in schedule.stages
    ]
    assert names[0] == ["conv-e3-k3", "shift-e3-k3"]
    assert names[1] == ["conv-e1-k3", "conv-e3-k3", "shift-e1-k3", "shift-e3-k3", "skip"]
    assert "adder-e3-k3" in names[2]
    assert len(names[4]) == 7
    net = fresh()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    stages = [schedule.stages[2]]
    ProgressivePretraining(stages, Recipe(batch_size=128)).run(net, train)
    after = net.state_dict()
    frozen = [k for k in before if "blocks.conv_k3" in k and "norm" not in k]
    moved = [k for k in before if "blocks.conv_k3" in k and k.endswith("norm1.weight")]
    adders = [k for k in before if "blocks.adder_k3.expand.weight" in k]
    assert all(torch.equal(before[k], after[k]) for k in frozen)
    assert any(not torch.equal(before[k], after[k]) for k in moved)
    assert any(not torch.equal(before[k], after[k]) for k in adders)
    assert all(p.requires_grad for p in net.parameters())


def test_published_shares_of_the_epochs():
    """120 epochs: 20, 20, 20, 20, 40; 150: 25 each and 50."""
    for epochs, shares in ((120, [20, 20, 20, 20, 40]), (150, [25, 25, 25, 25, 50])):
        schedule = ProgressivePretraining.progressive(SearchSpace.hybrid_all(), epochs)
        assert [s.epochs for s in schedule.stages] == shares


def test_pretraining_learns_and_resumes_to_the_same_bits(digits, tmp_path):
    train, _ = digits
    schedule = ProgressivePretraining.vanilla(SPACE, 3, Recipe(batch_size=64))
    whole = fresh()
    history = schedule.run(whole, train, seed=1)
    assert history.column("loss")[-1] < history.column("loss")[0]

    def stop(row):
        if row["epoch"] == 1:
            raise StopError

    with pytest.raises(StopError):
        schedule.run(fresh(), train, seed=1, checkpoint=tmp_path / "c.pt", progress=stop)
    resumed = fresh(99)
    schedule.run(resumed, train, seed=1, checkpoint=tmp_path / "c.pt")
    state = whole.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in resumed.state_dict().items())
    with pytest.raises(ValueError, match="seed=1, this run has 2"):
        schedule.run(fresh(), train, seed=2, checkpoint=tmp_path / "c.pt")


def test_masked_out_parameters_get_no_gradient_and_keep_their_probability():
    torch.manual_seed(0)
    alphas = [nn.Parameter(torch.randn(6))]
    source = torch.Generator().manual_seed(0)
    active, mixture = sample(alphas, 2, 2.0, "gumbel", source)
    (gradient,) = torch.autograd.grad(mixture[0][0], alphas)
    inactive = [i for i in range(6) if i not in active[0]]
    assert torch.equal(gradient[inactive], torch.zeros(4))
    assert gradient[active[0]].abs().sum() > 0
    assert math.isclose(mixture[0].sum().item(), 1, rel_tol=1e-6)
    before = [alphas[0].detach().clone()]
    with torch.no_grad():
        alphas[0] += torch.randn(6)
    restore(alphas, before, active, offset=True)
    old, new = before[0].softmax(0), alphas[0].detach().softmax(0)
    assert torch.allclose(old[inactive], new[inactive], atol=1e-7)
    assert not torch.allclose(old[active[0]], new[active[0]])


def test_samples_follow_the_probabilities():
    """The k largest of log-probability plus Gumbel noise are draws without replacement."""
    alphas = [nn.Parameter(torch.tensor([2.0, 1.0, 0.0]))]
    source = torch.Generator().manual_seed(0)
    counts = torch.zeros(3)
    for _ in range(4000):
        active, _ = sample(alphas, 1, 1.0, "raw", source)
        counts[active[0][0]] += 1
    assert torch.allclose(counts / 4000, alphas[0].detach().softmax(0), atol=0.03)


def test_differentiable_search_prefers_the_cheaper_and_resumes(digits, tmp_path):
    train, _ = digits
    costs = CostTable.build(SPACE, MACHINE, "flops")
    recipe = Recipe(epochs=3, batch_size=64)
    strategy = DNAS(recipe, architecture_rate=0.3, cost_weight=100.0)
    whole = strategy.run(fresh(), train, costs, seed=3)
    expected = whole.history.column("expected_cost")
    assert expected[-1] < 0.9 * expected[0]

    def stop(row):
        if row["epoch"] == 0:
            raise StopError

    with pytest.raises(StopError):
        strategy.run(fresh(), train, costs, seed=3, checkpoint=tmp_path / "s.pt", progress=stop)
    resumed = strategy.run(fresh(9), train, costs, seed=3, checkpoint=tmp_path / "s.pt")
    assert resumed.probabilities == whole.probabilities
    assert resumed.architecture == whole.architecture


def test_cost_table_counts_the_papers_proxy():
    """Conv / 1, shift / 8, adder / 5, summed over the network."""
    costs = CostTable.build(SPACE, MACHINE, "flops")
    for seed in range(5):
        architecture = Architecture.random(SPACE, seed)
        macs = architecture.workload().macs()
        proxy = macs["conv"] + macs["shift"] / 8 + macs["adder"] / 5
        assert math.isclose(costs.of(architecture), proxy / 1e6, rel_tol=1e-5)


def test_cost_table_ranks_like_the_mapper():
    costs = CostTable.build(SPACE, MACHINE, "energy")
    pairs = []
    for seed in range(30):
        architecture = Architecture.random(SPACE, seed)
        _, result = true_cost(architecture, MACHINE)
        if result is not None:
            pairs.append((costs.of(architecture), result.energy_mj))
    ranks = [
        torch.tensor(column).argsort().argsort().double() for column in zip(*pairs, strict=True)
    ]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.9


def test_evolution_respects_the_budget_and_the_front_is_undominated(digits):
    train, _ = digits
    supernet = fresh()
    ProgressivePretraining.vanilla(SPACE, 2, Recipe(batch_size=64)).run(supernet, train)
    first, second = train.split(0.7, 0)
    evaluator = Evaluator(supernet, first, second, MACHINE, batches=3)
    budget = 8e-6
    found = Evolution(population=10, generations=3, parents=4, edp_budget=budget).run(evaluator)
    assert true_cost(found.architecture, MACHINE)[0] <= budget
    for point in found.pareto:
        better = [
            p for p in found.evaluated
            if p.edp <= point.edp and p.accuracy >= point.accuracy and p is not point
            and (p.edp < point.edp or p.accuracy > point.accuracy)
        ]  # fmt: skip
        assert not better
    again = Evolution(population=10, generations=3, parents=4, edp_budget=budget).run(
        Evaluator(supernet, first, second, MACHINE, batches=3)
    )
    assert again.architecture == found.architecture


def test_hypervolume_of_a_staircase():
    architecture = Architecture.random(SPACE, 0)
    points = [Evaluated(architecture, a, e) for a, e in ((0.5, 1.0), (0.8, 2.0), (0.7, 3.0))]
    assert [p.edp for p in pareto_front(points)] == [1.0, 2.0]
    assert math.isclose(hypervolume(points, 4.0), 0.5 * 1 + 0.8 * 2)


def test_training_learns_digits_and_resumes_to_the_same_bits(digits, tmp_path):
    train, test = digits
    architecture = Architecture(SPACE, (1, 3, 5, 1))
    recipe = Recipe(epochs=6, batch_size=64)
    net, history = train_from_scratch(architecture, train, test, recipe)
    assert history.rows[-1]["test_accuracy"] > 0.8

    def stop(row):
        if row["epoch"] == 2:
            raise StopError

    with pytest.raises(StopError):
        train_from_scratch(
            architecture, train, test, recipe, checkpoint=tmp_path / "t.pt", progress=stop
        )
    again, _ = train_from_scratch(architecture, train, test, recipe, checkpoint=tmp_path / "t.pt")
    state = net.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    other = Architecture(SPACE, (0, 0, 0, 0))
    with pytest.raises(ValueError, match="choices="):
        train_from_scratch(other, train, test, recipe, checkpoint=tmp_path / "t.pt")


def kill_and_resume(folder, delay):
    command = [
        sys.executable, "-m", "nasa", "train", str(folder / "arch.json"), "--out", str(folder),
        "--epochs", "4",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 60
    while not (folder / "training.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None or (folder / "training.pt").exists()
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = load_checkpoint(folder / "training.pt", "training", {})
    assert state is not None
    assert 1 <= state["epoch"] <= 4
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    return load_checkpoint(folder / "network.pt", "network", {})["model"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_training_continues_to_the_same_network(tmp_path):
    architecture = Architecture(SPACE, (0, 2, 4, 0))
    models = []
    for i in range(2):
        folder = tmp_path / str(i)
        architecture.save(folder / "arch.json")
        models.append(kill_and_resume(folder, 0.05 * i))
    assert all(torch.equal(v, models[1][k]) for k, v in models[0].items())


@pytest.mark.stress
def test_killed_training_continues_to_the_same_network_many_times(tmp_path):
    architecture = Architecture(SPACE, (0, 2, 4, 0))
    models = []
    for i in range(25):
        folder = tmp_path / str(i)
        architecture.save(folder / "arch.json")
        models.append(kill_and_resume(folder, 0.07 * i))
    for model in models[1:]:
        assert all(torch.equal(v, models[0][k]) for k, v in model.items())


def search_outputs(folder):
    names = ("arch.json", "search.json", "pretraining.json")
    return [(folder / name).read_text() for name in names]


def kill_search(folder, settings, delay, appears):
    """Start a search, kill it some time after a file appeared."""
    command = [sys.executable, "-m", "nasa", "search", "--out", str(folder)]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stderr=null, stdout=null, env=env)
    deadline = time.monotonic() + 120
    while not (folder / appears).exists() and time.monotonic() < deadline:
        assert process.poll() is None or (folder / appears).exists()
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


def resumed_search(folder):
    runs.search(folder, runs.SearchSettings.load(folder), lambda row: None)
    return search_outputs(folder)


SEARCH = {"strategy": "dnas", "pretraining_epochs": 6, "epochs": 3, "batch_size": 128}


def whole_search(folder, **changes):
    chosen = {**SEARCH, **changes}
    settings = runs.SearchSettings(
        space="digits", data="digits", accelerator="nasa_45nm", metric="edp",
        budget_edp=float("inf"), pretraining="progressive", learning_rate=0.1, size=None, seed=0,
        **chosen,
    )  # fmt: skip
    runs.search(folder, settings, lambda row: None)
    return search_outputs(folder)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("appears", ["pretraining.pt", "search.pt"])
def test_killed_search_continues_to_the_same_result(tmp_path, appears):
    kill_search(tmp_path / "killed", SEARCH, 0.1, appears)
    assert not (tmp_path / "killed" / "arch.json").exists()
    assert resumed_search(tmp_path / "killed") == whole_search(tmp_path / "whole")


@pytest.mark.stress
@pytest.mark.parametrize("strategy", ["dnas", "evolution"])
def test_search_killed_at_any_step_continues_to_the_same_result(tmp_path, strategy):
    expected = whole_search(tmp_path / "whole", strategy=strategy)
    for i in range(8):
        folder = tmp_path / str(i)
        kill_search(folder, {**SEARCH, "strategy": strategy}, 0.5 * i, "settings.json")
        assert resumed_search(folder) == expected


def test_infinite_loss_stops_with_epoch_and_checkpoint(digits, tmp_path):
    train, _ = digits
    recipe = Recipe(epochs=3, batch_size=64, learning_rate=1e30, clip="none")
    with pytest.raises(TrainingDivergedError, match="epoch"):
        train_from_scratch(
            Architecture(SPACE, (1, 1, 1, 1)), train, None, recipe, checkpoint=tmp_path / "c.pt"
        )


def test_recalibration_gives_the_statistics_of_the_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3))
    batches = [torch.randn(8, 3, 4, 4) * 3 + 1 for _ in range(5)]
    assert recalibrate_batch_norm(net, batches) == 5
    truth = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(net[0].running_mean, truth, atol=1e-5)
    assert net[0].momentum == 0.1


def test_shared_statistics_mislead_until_recalibrated(digits):
    """Pitfall: running statistics are a mixture over paths."""
    train, test = digits
    supernet = fresh()
    ProgressivePretraining.vanilla(SPACE, 8, Recipe(batch_size=64)).run(supernet, train)
    raw, calibrated = [], []
    for seed in range(6):
        net = supernet.extract(Architecture.random(SPACE, seed))
        raw.append(evaluate(net, test)[0])
        recalibrate_batch_norm(net, [x for x, _ in train.batches(64, 0)])
        calibrated.append(evaluate(net, test)[0])
    assert sum(calibrated) > sum(raw)


def test_weight_statistics_tell_gaussian_from_laplacian():
    torch.manual_seed(0)
    conv, adder = nn.Conv2d(64, 64, 5), AdderConv2d(64, 64, 5)
    nn.init.normal_(conv.weight)
    laplace = torch.distributions.Laplace(0.0, 1.0)
    adder.weight.data.copy_(laplace.sample(adder.weight.shape))
    found = weight_statistics(nn.Sequential(conv, adder))
    assert found["conv"]["gaussian"] > found["conv"]["laplacian"]
    assert found["adder"]["laplacian"] > found["adder"]["gaussian"]
    assert abs(found["conv"]["kurtosis"] - 3) < 0.2
    assert abs(found["adder"]["kurtosis"] - 6) < 0.6


def test_bad_settings_are_named(digits):
    train, _ = digits
    with pytest.raises(ValueError, match="epochs=0"):
        Recipe(epochs=0)
    with pytest.raises(ValueError, match="epochs=5"):
        ProgressivePretraining.progressive(SPACE, 5)
    with pytest.raises(ValueError, match="active=0"):
        DNAS(Recipe(), active=0)
    with pytest.raises(ValueError, match="metric='area'"):
        CostTable.build(SPACE, MACHINE, "area")
    with pytest.raises(ValueError, match="parents=1"):
        Evolution(parents=1)
    images = train.images.clone()
    images[5, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 384 hold NaN"):
        LabelledImages(images, train.labels, 10)


def test_damaged_checkpoints_are_refused(tmp_path):
    file = tmp_path / "c.pt"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(file, "training", {})
    torch.save({"kind": "search", "identity": {}}, file)
    with pytest.raises(ValueError, match="no training checkpoint"):
        load_checkpoint(file, "training", {})
