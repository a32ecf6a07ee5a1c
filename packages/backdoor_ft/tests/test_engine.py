import copy
import functools
import os
import pickle

import backdoor_ft as bft
import pytest
import torch
import torch.multiprocessing as mp
from backdoor_ft import DivergedError, InputError, models
from backdoor_ft.augment import Augment
from backdoor_ft.ckpt import load_model, read_state, save_model
from backdoor_ft.engine import batches, evaluating, fit, predict
from backdoor_ft.metrics import accuracy
from backdoor_ft.stacked import fit_stacked
from torch import nn


def state(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


def test_same_seed_same_bytes(digits):
    def run(seed):
        recipe = bft.Recipe(steps=25, augment=Augment(pad=1))
        return state(bft.train(models.SmallCNN, digits[0], recipe=recipe, seed=seed))

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_batches_are_permutations_and_go_on_anywhere():
    order = batches(10, 3, seed=1, start=0)
    found = [next(order) for _ in range(9)]
    for epoch in range(3):
        assert len(set(torch.cat(found[3 * epoch : 3 * epoch + 3]).tolist())) == 9
    later = batches(10, 3, seed=1, start=4)
    assert torch.equal(next(later), found[4])


def test_resume_gives_the_same_weights(digits, tmp_path):
    def make():
        return models.build("cnn", 1, 10, 8, seed=0)

    def run(model, steps):
        path = tmp_path / "state.pt"
        return fit(
            model, digits[0], steps=steps, batch_size=64, rate=lambda s: 0.05 / (s + 1), seed=2,
            augment=Augment(pad=1), checkpoint=path, checkpoint_every=10,
        )  # fmt: skip

    whole = make()
    fit(whole, digits[0], steps=30, batch_size=64, rate=lambda s: 0.05 / (s + 1), seed=2,
        augment=Augment(pad=1))  # fmt: skip
    run(make(), 20)
    again = make()
    log = run(again, 30)
    assert torch.equal(state(whole), state(again))
    assert [row["step"] for row in log] == list(range(30))
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="remove it"):
        run(make(), 30)


def test_modes_are_put_back(digits):
    model = nn.Sequential(models.SmallCNN(), nn.Dropout())
    model.train()
    model[0].features[1].eval()
    before = [m.training for m in model.modules()]
    predict(model, digits[0].inputs[:4])
    assert [m.training for m in model.modules()] == before
    with evaluating(model):
        assert not model.training


def test_divergence_is_reported(digits):
    with pytest.raises(DivergedError):
        fit(models.build("mlp", 1, 10, 8), digits[0], steps=200, batch_size=64, rate=lambda s: 1e6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_in_full_precision_weights(digits, precision):
    train, test = digits
    factory = functools.partial(models.build, "mlp", 1, 10, 8)
    recipe = bft.Recipe(steps=80, precision=precision)
    model = bft.train(factory, train, recipe=recipe, seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert accuracy(model, test) >= 0.8
    plain = bft.train(factory, train, recipe=bft.Recipe(steps=80), seed=0)
    assert not torch.equal(model[-1].weight, plain[-1].weight)


def test_unknown_precision(digits):
    with pytest.raises(InputError, match="precision"):
        bft.train(models.SmallCNN, digits[0], recipe=bft.Recipe(steps=1, precision="int4"))


def test_unknown_recipe(digits):
    with pytest.raises(InputError, match="digits"):
        bft.train(models.SmallCNN, digits[0], recipe="none")


@pytest.mark.parametrize("spec", ["cnn", "cnn-gn", "mlp"])
def test_stacked_training_equals_a_loop(digits, spec):
    data = digits[0].subset(torch.arange(300))
    members = torch.rand(3, 300, generator=torch.Generator().manual_seed(0)) < 0.5
    nets = [models.build(spec, 1, 10, 8, seed=k) for k in range(3)]
    rate = lambda step: 0.05  # noqa: E731
    found = fit_stacked(nets, data, members, steps=8, batch_size=32, rate=rate, seeds=[5, 6, 7])
    for k in range(3):
        alone = copy.deepcopy(nets[k])
        fit(alone, data.subset(members[k]), steps=8, batch_size=32, rate=rate, seed=5 + k)
        assert torch.allclose(state(alone), state(found[k]), atol=2e-3)


def test_stacked_bad_members(digits):
    with pytest.raises(InputError, match="shape"):
        fit_stacked([models.SmallCNN()], digits[0], torch.ones(2, 3, dtype=torch.bool), steps=1,
                    batch_size=4, rate=lambda s: 0.1)  # fmt: skip


def _worker(rank, port, queue, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    train, _ = bft.data.digits()
    for shard in (False, True):
        model = models.build("cnn-gn", 1, 10, 8, seed=0)
        parts: list[int] = []
        fit(model, train, steps=5, batch_size=64, rate=lambda s: 0.05, seed=1, shard=shard,
            on_step=lambda step, m, lr, loss, parts=parts: parts.append(local_size(m)))  # fmt: skip
        queue.put((rank, shard, state(model).numpy(), parts[-1] / local_size(model)))
    # stopped after 3 steps and gone on from the checkpoint, which one process wrote
    for steps in (3, 5):
        model = models.build("cnn-gn", 1, 10, 8, seed=0)
        log = fit(model, train, steps=steps, batch_size=64, rate=lambda s: 0.05, seed=1, shard=True,
                  checkpoint=folder / "c.pt", checkpoint_every=3)  # fmt: skip
    queue.put((rank, "resumed", state(model).numpy(), len(log)))
    torch.distributed.destroy_process_group()


def local_size(model):
    """Return how many weights this process holds."""
    own = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return sum(p.numel() for p in own)


def test_two_processes_give_the_weights_of_one(digits, tmp_path):
    """Whole on each process (DDP), or sharded over both (FSDP2), which then hold half of it."""
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    port = 20000 + os.getpid() % 20000
    workers = [context.Process(target=_worker, args=(r, port, queue, tmp_path)) for r in range(2)]
    for w in workers:
        w.start()
    found = {(r, shard): (weights, share) for r, shard, weights, share in
             (queue.get() for _ in range(6))}  # fmt: skip
    for w in workers:
        w.join()
    alone = models.build("cnn-gn", 1, 10, 8, seed=0)
    fit(alone, digits[0], steps=5, batch_size=64, rate=lambda s: 0.05, seed=1)
    for shard, share in ((False, 1.0), (True, 0.5)):
        assert (found[0, shard][0] == found[1, shard][0]).all()
        assert state(alone).numpy() == pytest.approx(found[0, shard][0], abs=1e-5)
        assert found[0, shard][1] == pytest.approx(share, abs=0.1)
    for rank in range(2):
        assert found[rank, "resumed"][0] == pytest.approx(found[0, True][0], abs=1e-6)
        assert found[rank, "resumed"][1] == 5
    # the checkpoint is whole: one process goes on from it
    other = models.build("cnn-gn", 1, 10, 8, seed=9)
    fit(other, digits[0], steps=5, batch_size=64, rate=lambda s: 0.05, seed=1,
        checkpoint=tmp_path / "c.pt")  # fmt: skip
    assert state(other).numpy() == pytest.approx(state(alone).numpy(), abs=1e-5)


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))


def test_checkpoints(tmp_path):
    model = models.build("cnn", 1, 10, 8, seed=1)
    save_model(model, tmp_path / "m.safetensors")
    other = load_model(models.build("cnn", 1, 10, 8, seed=2), tmp_path / "m.safetensors")
    assert torch.equal(state(model), state(other))
    wrapped = {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}
    torch.save(wrapped, tmp_path / "m.pt")
    assert set(read_state(tmp_path / "m.pt")) == set(model.state_dict())
    with pytest.raises(InputError, match="does not fit"):
        load_model(models.build("mlp", 1, 10, 8), tmp_path / "m.safetensors")


def test_pickled_checkpoints_are_refused(tmp_path):
    torch.save(models.SmallCNN(), tmp_path / "whole.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, tmp_path / "evil2.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\x00")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("whole.pt", "evil.pt", "evil2.pt"):
        with pytest.raises(InputError, match="refused"):
            read_state(tmp_path / name)
    for name in ("bad.safetensors", "list.pt", "missing.pt"):
        with pytest.raises(InputError):
            read_state(tmp_path / name)


def test_model_factories(digits):
    for spec in ("cnn", "cnn-gn", "mlp", "vit", "resnet8"):
        model = models.build(spec, 1, 10, 8, seed=3)
        assert predict(model, digits[0].inputs[:3]).shape == (3, 10)
        assert torch.equal(state(model), state(models.build(spec, 1, 10, 8, seed=3)))
    own = models.build("backdoor_ft.models:SmallCNN", 3, 7, 8)
    assert own.head.out_features == 7
    for bad in ("none", "backdoor_ft.models:Nothing", "no.such:thing", "backdoor_ft.models:build"):
        with pytest.raises((InputError, TypeError)):
            models.build(bad, 1, 10, 8)
    with pytest.raises(InputError, match="no linear layer"):
        models.head_of(nn.Conv2d(1, 1, 1))


def test_many_networks_are_stacked_unless_they_convolve_on_a_processor(monkeypatch):
    from backdoor_ft import stacked

    for name in ("fit_stacked", "fit_loop"):
        monkeypatch.setattr(stacked, name, lambda models, name=name, **options: [name, options])
    dense = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    assert stacked.fit_many([dense], steps=3) == ["fit_stacked", {"steps": 3}]
    assert stacked.fit_many([models.SmallCNN()], steps=3) == ["fit_loop", {"steps": 3}]
    assert stacked.fit_many([models.SmallCNN().to("meta")], steps=3)[0] == "fit_stacked"
