"""Everything follows the model's device.

The tests without a GPU put the model on the device "meta", whose tensors have no values, and leave
the data on the CPU: a batch that is not moved, or a tensor that a defence makes anywhere but on the
model's device, cannot be combined with the weights. What reads values is given a constant.
"""

import pytest
import torch
import torch.fx.experimental._config
from backdoor_ft import Recipe, models
from backdoor_ft.attacks.encoder import EncoderClassifier, badencoder, simclr
from backdoor_ft.attacks.resistant import fisher_diagonal
from backdoor_ft.attacks.standalone import adversarial_base, train_input_aware
from backdoor_ft.attacks.transfer import with_head
from backdoor_ft.defenses import make
from backdoor_ft.defenses.base import Context
from backdoor_ft.engine import predict
from backdoor_ft.sequela import query_reactivation
from backdoor_ft.stacked import fit_stacked
from backdoor_ft.triggers import BadNets
from test_defenses import SHORT

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture
def valueless(monkeypatch):
    """Let tensors of the device "meta" be read, as ones."""
    plain = {name: getattr(torch.Tensor, name) for name in ("item", "__float__", "__bool__", "cpu")}
    constants = {"item": 1.0, "__float__": 1.0, "__bool__": True}
    for name, method in plain.items():

        def read(self, *args, name=name, method=method, **options):
            if self.device.type != "meta":
                return method(self, *args, **options)
            if name == "cpu":
                return torch.ones(self.shape, dtype=self.dtype, device="cpu")
            return constants[name]

        monkeypatch.setattr(torch.Tensor, name, read)
    with torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


@pytest.mark.usefixtures("valueless")
@pytest.mark.parametrize(
    ("name", "family"), [*((name, "cnn") for name in sorted(SHORT)), ("anp", "mlp"), ("rnp", "mlp")]
)
def test_defences_make_nothing_elsewhere(name, family, digits, badnets):
    _, plan = badnets
    clean, _ = digits[0].split(150, 0)
    model = models.build(family, 1, 10, 8).to("meta")
    defense = make(name, **SHORT[name])
    context = Context(seed=0, poisoned=plan.dataset.split(200, 0)[0])
    defense.run(model, clean, context)
    assert all(p.device.type == "meta" for p in model.parameters())


def test_the_check_can_fail(valueless, digits):
    model = models.build("cnn", 1, 10, 8).to("meta")
    with pytest.raises(RuntimeError):
        model(digits[0].inputs[:2])
    with pytest.raises(RuntimeError):
        model(digits[0].inputs[:2].to("meta")) + torch.zeros(2, 10)


@pytest.mark.usefixtures("valueless")
def test_stacked_training_follows_the_model(digits):
    networks = [models.build("mlp", 1, 10, 8, seed=k).to("meta") for k in range(2)]
    members = torch.ones(2, len(digits[0]), dtype=torch.bool)
    found = fit_stacked(networks, digits[0], members, steps=2, batch_size=16, rate=lambda _: 0.1)
    assert all(p.device.type == "meta" for m in found for p in m.parameters())


@pytest.mark.usefixtures("valueless")
def test_reactivation_follows_the_model(digits, badnets):
    victim, plan = badnets
    model = models.build("cnn", 1, 10, 8).to("meta")
    clean, _ = digits[0].split(64, 0)
    assert 0 <= query_reactivation(model, victim, clean, digits[1], plan, steps=2) <= 1


@pytest.mark.usefixtures("valueless")
def test_attacks_follow_the_model(digits):
    """Input-aware, SimCLR, BadEncoder, its classifier, PGD, Fisher and a new head."""
    few, brief = digits[0].split(40, 0)[0], Recipe(steps=2, batch_size=20)
    model = models.build("cnn", 1, 10, 8).to("meta")
    found, plan = train_input_aware(model, few, recipe=brief, ratio=0.2)
    assert found is model
    assert plan.trigger.apply(few.inputs).device.type == "cpu"
    encoder = simclr(model.features, few, steps=2, batch_size=20)
    bad = badencoder(encoder, few, few.inputs[:3], BadNets(2), steps=2, batch_size=20)
    classifier = EncoderClassifier(bad, 64, 10)
    hard = adversarial_base(model, few, steps=2)
    assert hard.inputs.device.type == "cpu"
    fisher = fisher_diagonal(model, few.subset(torch.arange(3)))
    assert {t.device.type for t in fisher} == {"meta"}
    for network in (found, encoder, bad, classifier, with_head(model, 5)):
        assert all(p.device.type == "meta" for p in network.parameters())


@needs_gpu
@pytest.mark.parametrize("name", sorted(SHORT))
def test_defences_on_a_gpu(name, digits, badnets):
    """The victim's outputs are the CPU's, and the repair stays on the GPU."""
    victim, plan = badnets
    clean, test = digits[0].split(150, 0)[0], digits[1]
    moved = models.SmallCNN().cuda()
    moved.load_state_dict(victim.state_dict())
    assert torch.allclose(predict(moved, test.inputs), predict(victim, test.inputs), atol=1e-3)
    found = make(name, **SHORT[name]).repair(moved, clean, poisoned=plan.dataset, seed=1)
    assert all(p.device.type == "cuda" for p in found.model.parameters())


@needs_gpu
def test_stacked_training_on_a_gpu(digits):
    networks = [models.build("cnn", 1, 10, 8, seed=k).cuda() for k in range(2)]
    members = torch.ones(2, len(digits[0]), dtype=torch.bool)
    found = fit_stacked(networks, digits[0], members, steps=2, batch_size=16, rate=lambda _: 0.1)
    assert all(p.device.type == "cuda" for m in found for p in m.parameters())
