import backdoor_ft as bft
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backdoor_ft import InputError, models
from backdoor_ft.attacks import (
    PRESETS,
    EncoderClassifier,
    adversarial_base,
    attack,
    badencoder,
    classes_of,
    fisher_diagonal,
    nt_xent,
    plan_attack,
    sbl,
    sft_aware,
    simclr,
    transfer,
    transfer_attack,
    with_head,
)
from backdoor_ft.defenses import FT, HeadOnly, SuperFT
from backdoor_ft.engine import predict
from backdoor_ft.metrics import attack_success
from backdoor_ft.triggers import BadNets
from torch import nn

FAST = bft.Recipe(steps=200)


@pytest.mark.parametrize("name", ["blended", "sig", "input_aware", "wanet"])
def test_standalone_attacks_implant(name, digits):
    train, test = digits
    victim, plan = attack(name, models.SmallCNN, train, recipe=FAST, seed=0)
    floor = {"wanet": 0.5}.get(name, 0.9)
    assert attack_success(victim, test, plan) >= floor
    assert bft.metrics.accuracy(victim, test) >= 0.93


def test_every_attack_has_a_plan(digits):
    text = bft.data.toy_text(400)
    for name in PRESETS:
        data = text if name == "rare_word" else digits[0]
        assert len(plan_attack(name, data).index) >= 3
    with pytest.raises(InputError, match="badnets"):
        plan_attack("nothing", digits[0])


def test_rare_word_attack_and_repair():
    train, test = bft.data.toy_text(1000), bft.data.toy_text(400, seed=1)
    net = lambda: models.build("text", 1, 4, 16, seed=0)  # noqa: E731
    victim, plan = attack("rare_word", net, train, recipe=bft.Recipe(250, lr=0.05))
    assert attack_success(victim, test, plan) >= 0.9
    before = bft.metrics.accuracy(victim, test)
    repaired = (
        SuperFT(lr_max1=0.1, lr_max2=0.02, phase1=200, phase2=100).repair(victim, train).model
    )
    assert bft.metrics.accuracy(repaired, test) >= before - 0.05


def test_adversarial_base_is_harder(digits, scratch):
    part = digits[1].subset(torch.arange(200))
    hard = adversarial_base(scratch, part, epsilon=0.2)
    assert bft.metrics.accuracy(scratch, hard) < bft.metrics.accuracy(scratch, part) - 0.1
    assert float((hard.inputs - part.inputs).abs().max()) <= 0.2 + 1e-6


def test_transfer_scenario(digits):
    train, test = digits
    up, down = classes_of(train, range(5)), classes_of(train, range(5, 10))
    factory = lambda: models.build("cnn", 1, 5, 8, seed=0)  # noqa: E731
    victim, _ = transfer_attack(factory, up, BadNets(2), recipe=FAST)
    target = classes_of(test, range(5, 10))
    head = transfer(victim, down, target, BadNets(2), HeadOnly(steps=80))
    whole = transfer(victim, down, target, BadNets(2), SuperFT(phase1=100, phase2=100))
    assert whole.accuracy > head.accuracy
    assert whole.attack_success.value <= 0.1
    assert with_head(victim, 3).head.out_features == 3
    with pytest.raises(InputError, match="out of range"):
        classes_of(train, [11])


def test_nt_xent_closed_form():
    """Two orthogonal pairs at temperature 1: -log(e / (e + 2))."""
    z = torch.eye(2)
    expected = -np.log(np.e / (np.e + 2))
    assert float(nt_xent(z, z, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_encoder_scenario(digits):
    train, test = digits
    torch.manual_seed(0)
    encoder = models.SmallCNN().features
    simclr(encoder, train, steps=60, seed=0)
    trigger = BadNets(3)
    reference = train.inputs[train.labels == 0][:5]
    bad = badencoder(encoder, train, reference, trigger, steps=150, seed=0)
    with torch.no_grad():
        goal = F.normalize(bad(reference), dim=1).mean(0, keepdim=True)
        pulled = F.cosine_similarity(bad(trigger.apply(test.inputs)), goal).mean()
        plain = F.cosine_similarity(bad(test.inputs), encoder(test.inputs)).mean()
    assert float(pulled) > 0.95
    assert float(plain) > 0.9
    plan = bft.poison(train, trigger=trigger, target=0)
    downstream = EncoderClassifier(bad, 64, 10)
    head = HeadOnly(lr=0.5, steps=200).repair(downstream, train).model
    whole = FT(lr=0.1, steps=200).repair(downstream, train).model
    assert attack_success(whole, test, plan) < attack_success(head, test, plan)


def test_fisher_of_softmax_regression_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    data = bft.data.digits()[0].subset(torch.arange(20))
    found = fisher_diagonal(net, data)[0]
    x = data.inputs.flatten(1)
    p = predict(net, data.inputs).softmax(1)
    gap = p - F.one_hot(data.labels, 10)
    expected = (gap[:, :, None] * x[:, None, :]).square().mean(0)
    assert torch.allclose(found, expected, atol=1e-7)


def test_resistant_attackers_implant(digits):
    train, test = digits
    plan = plan_attack("badnets", train)
    hard = sbl(models.SmallCNN, plan, train, recipe=bft.Recipe(steps=150), anchor_steps=40)
    assert attack_success(hard, test, plan) >= 0.9
    aware = sft_aware(models.SmallCNN, plan, train, rounds=1, recipe=bft.Recipe(steps=240),
                      defense=SuperFT(lr_max1=1.0, lr_max2=0.05, phase1=20, phase2=20,
                                      mixup=False))  # fmt: skip
    assert attack_success(aware, test, plan) >= 0.9
