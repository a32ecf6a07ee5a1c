import copy
from dataclasses import replace

import backdoor_ft as bft
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backdoor_ft import DivergedError, InputError, models
from backdoor_ft.defenses import (
    CLP,
    FT,
    NC,
    REGISTRY,
    BNRecalibration,
    FinePruning,
    HeadOnly,
    Scratch,
    SuperFT,
    make,
    masks,
)
from backdoor_ft.defenses.adversarial import hypergradient
from backdoor_ft.defenses.base import Context
from backdoor_ft.defenses.distillation import attention
from backdoor_ft.defenses.pruning import channel_lipschitz, norm_after
from backdoor_ft.defenses.sharpness import adaptive_ascent
from backdoor_ft.defenses.tuning import mixtures
from backdoor_ft.detect import activation_clusters, anomaly_index, spectral_scores
from backdoor_ft.metrics import accuracy, attack_success
from torch import nn
from torch.func import functional_call

# Few steps, for what must hold at any length.
SHORT = {
    "superft": {"phase1": 4, "phase2": 4, "ramp": (2, 2)},
    "unlearn": {"phase1": 4, "phase2": 4, "ramp": (2, 2), "search": 3}, "ft": {"steps": 6},
    "head_only": {"steps": 6}, "bn_recalibration": {"steps": 3}, "scratch": {"steps": 6},
    "ft_sam": {"steps": 4}, "pam": {"steps": 4}, "fst": {"steps": 4}, "d3": {"steps": 4},
    "nad": {"teacher_steps": 3, "steps": 3}, "fine_pruning": {"steps": 3}, "clp": {},
    "anp": {"steps": 3}, "rnp": {"unlearn_steps": 5, "recover_steps": 3},
    "ibau": {"rounds": 1, "inner_steps": 2, "outer_steps": 2}, "sau": {"steps": 2},
    "nc": {"inversion_steps": 3, "steps": 3},
    "abl": {"isolation_steps": 3, "steps": 3, "unlearn_steps": 2},
    "activation_clustering": {"steps": 3}, "spectral": {"steps": 3},
}  # fmt: skip


def values(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_short_settings_cover_every_defence():
    assert set(SHORT) == set(REGISTRY)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_protocol(name, digits, badnets):
    """Victim untouched, evaluation mode, one seed gives one model, plain report."""
    victim, plan = badnets
    clean, _ = digits[0].split(150, 0)
    before, modes = values(victim), [m.training for m in victim.modules()]
    defense = make(name, **SHORT[name])
    found = [defense.repair(victim, clean, poisoned=plan.dataset, seed=1) for _ in range(2)]
    assert all(torch.equal(v, before[k]) for k, v in victim.state_dict().items())
    assert modes == [m.training for m in victim.modules()]
    one, two = (values(f.model) for f in found)
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert not found[0].model.training
    assert found[0].to_json()["method"] == name
    assert found[0].cpu_seconds >= 0


FAMILIES = {
    "batch norm": lambda: models.build("cnn", 1, 10, 8),
    "residual": lambda: models.build("resnet8", 1, 10, 8),
    "group norm": lambda: models.build("cnn-gn", 1, 10, 8),
    "mlp": lambda: models.build("mlp", 1, 10, 8),
    "vit": lambda: models.build("vit", 1, 10, 8),
    "convnext": lambda: models.build("convnext", 1, 10, 8),
    "text transformer": lambda: models.build("text", 1, 4, 16),
    "bert": lambda: tiny_bert(),
}
FILTERS = {"abl", "activation_clustering", "spectral"}
PIXELS = {"ibau", "sau", "nc", "unlearn"}


def tiny_bert():
    transformers = pytest.importorskip("transformers", reason="extra hf is not there")
    config = transformers.BertConfig(
        vocab_size=82, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, num_labels=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return models.HuggingFaceLogits(transformers.BertForSequenceClassification(config))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(SHORT))
def test_conformance(name, family, digits):
    """Every defence on every family: a repair, or one clear line.

    The victim is untouched, the repair is finite, in evaluation mode, of the same architecture,
    with the same parameters to train, and one seed gives one model.
    """
    model = FAMILIES[family]()
    text = family in ("text transformer", "bert")
    clean = bft.data.toy_text(60) if text else digits[0].split(60, 0)[0]
    trigger = bft.triggers.RareWord() if text else bft.triggers.BadNets(2)
    poisoned = bft.poison(clean, trigger=trigger, ratio=0.2).dataset
    defense = make(name, **SHORT[name])
    before = values(model)
    asked = {"poisoned": poisoned, "seed": 1}
    if "batch_norm" in defense.needs and family not in ("batch norm", "residual"):
        with pytest.raises(InputError, match="batch normalisation"):
            defense.repair(model, clean, **asked)
        return
    if name in PIXELS and text:
        with pytest.raises(InputError, match="token ids"):
            defense.repair(model, clean, **asked)
        return
    one, two = (defense.repair(model, clean, **asked).model for _ in range(2))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in one.modules())
    assert {k: v.shape for k, v in one.state_dict().items()} == {
        k: v.shape for k, v in before.items()
    }
    assert all(p.requires_grad for p in one.parameters())
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert torch.isfinite(bft.engine.predict(one, clean.inputs)).all()


def test_the_headline(digits, badnets, repaired):
    victim, plan = badnets
    train, test = digits
    assert attack_success(victim, test, plan) >= 0.98
    tuned = FT(batch_size=64, steps=200).repair(victim, train).model
    assert attack_success(tuned, test, plan) >= 0.9
    assert attack_success(repaired, test, plan) <= 0.01
    assert accuracy(repaired, test) >= accuracy(victim, test) - 0.005


def test_controls_fail_and_change_only_what_they_may(digits, badnets):
    victim, plan = badnets
    train, test = digits
    head = HeadOnly(steps=100, batch_size=64).repair(victim, train).model
    assert attack_success(head, test, plan) >= 0.9
    changed = {
        k for k, v in head.state_dict().items() if not torch.equal(v, victim.state_dict()[k])
    }
    assert changed <= {"head.weight", "head.bias"} | {
        k for k in changed if k.endswith("num_batches_tracked")
    }
    again = BNRecalibration(steps=20).repair(victim, train).model
    changed = {
        k for k, v in again.state_dict().items() if not torch.equal(v, victim.state_dict()[k])
    }
    assert changed
    assert all("running" in k or "num_batches" in k for k in changed)


def test_scratch_forgets_everything(badnets, digits):
    result = Scratch(steps=1, lr=1e-9).repair(badnets[0], digits[0])
    assert result.displacement > 0.5


def test_some_rivals_work_too(digits, badnets):
    victim, plan = badnets
    train, test = digits
    for name in ("fst", "d3"):
        model = make(name, steps=200, batch_size=64).repair(victim, train).model
        assert attack_success(model, test, plan) <= 0.05, name
        assert accuracy(model, test) >= 0.95


def test_anp_weakens_the_backdoor_and_keeps_the_task(digits, badnets):
    """Masks are trained on the statistics of the batch; with running ones the task is lost."""
    victim, plan = badnets
    anp = make("anp", steps=120)
    context = Context()
    model = anp.run(copy.deepcopy(victim), digits[0], context).eval()
    assert context.log[-1]["loss"] < 0.8
    assert attack_success(model, digits[1], plan) <= 0.8
    assert accuracy(model, digits[1]) >= 0.9


@pytest.mark.stress
def test_ibau_removes_the_backdoor(digits, badnets):
    victim, plan = badnets
    model = make("ibau").repair(victim, digits[0]).model
    assert attack_success(model, digits[1], plan) <= 0.2
    assert accuracy(model, digits[1]) >= 0.95


def test_pruning_silences_what_the_masks_silenced(digits, badnets):
    victim, _ = badnets
    held, x = digits[0].split(100, 0)[0], digits[1].inputs[:50]
    where = masks.owners(victim)
    draws = torch.Generator().manual_seed(0)
    found = [(torch.rand(len(m.weight), generator=draws) > 0.1).float() for _, m in where]
    one = [torch.ones_like(m) for m in found]
    assert not all(torch.equal(m, o) for m, o in zip(found, one))
    with torch.no_grad():
        wanted = functional_call(victim, masks.scaled(where, found, one), x)
        pruned = masks.prune_by_mask(copy.deepcopy(victim), found, held, 0.9, 1.0, Context())
        assert torch.equal(pruned(x), wanted)


def test_asam_step_on_a_quadratic():
    p = nn.Parameter(torch.tensor([2.0, -1.0]))
    (p.square() * torch.tensor([1.0, 3.0])).sum().backward()
    w, g = np.array([2.0, -1.0]), np.array([4.0, -6.0])
    expected = 0.5 * w**2 * g / np.linalg.norm(np.abs(w) * g)
    assert adaptive_ascent([p], 0.5)[0].numpy() == pytest.approx(expected, rel=1e-5)


def test_hypergradient_closed_form():
    """Inner 0.5 a (d - B t)^2, outer 0.5 |d|^2 + c t: d outer / d t = B^T B t + c."""
    b = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    t = torch.tensor([0.3, -0.7], dtype=torch.float64)
    c = torch.tensor([0.1, 0.2], dtype=torch.float64)

    def inner(d, theta):
        return (d - b @ theta[0]).square().sum()

    def outer(d, theta):
        return 0.5 * d.square().sum() + (c * theta[0]).sum()

    (found,) = hypergradient(inner, outer, b @ t, [t], lr=0.3, steps=60)
    assert found.numpy() == pytest.approx((b.T @ b @ t + c).numpy(), rel=1e-9)


def test_channel_lipschitz_against_numpy_svd():
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, -1, 1)
    found = channel_lipschitz(conv, norm)
    for k in range(5):
        matrix = conv.weight[k].detach().numpy().reshape(3, 9)
        scale = abs(float(norm.weight[k])) / (float(norm.running_var[k]) + norm.eps) ** 0.5
        top = np.linalg.svd(matrix, compute_uv=False)[0]
        assert float(found[k]) == pytest.approx(top * scale, rel=1e-5)


def test_norms_are_paired_by_data_flow_not_by_order():
    model = models.build("resnet8", 1, 10, 8)
    pairs = norm_after(model, torch.rand(2, 1, 8, 8))
    block = model.features[1]
    assert pairs[block.conv1] is block.bn2
    assert block.conv2 not in pairs  # its output is added first
    assert len(pairs) == 4


def test_clp_prunes_a_planted_channel(digits):
    torch.manual_seed(2)
    model = models.SmallCNN()
    with torch.no_grad():
        model.features[3].weight[7] *= 60
    expected = 0  # by numpy's decomposition; a fresh norm scales by 1 / sqrt(1 + eps)
    for conv in norm_after(model, digits[0].inputs[:2]):
        matrices = conv.weight.detach().numpy().reshape(conv.out_channels, conv.in_channels, -1)
        bounds = np.array([np.linalg.svd(m, compute_uv=False)[0] for m in matrices])
        expected += int((bounds > bounds.mean() + 3 * bounds.std(ddof=1)).sum())
    result = CLP().repair(model, digits[0])
    assert float(result.model.features[4].weight[7]) == 0
    assert result.notes == (f"{expected} channels pruned",)


def test_fine_pruning_keeps_channels_pruned(digits, badnets):
    result = FinePruning(steps=20).repair(badnets[0], digits[0])
    count = int(result.notes[0].split()[0])
    owner = result.model.features[7]
    assert int((owner.weight == 0).sum()) == count > 0


def test_attention_is_normalised():
    found = attention(torch.rand(2, 5, 4, 4))
    assert found.norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.stress
def test_neural_cleanse_flags_the_target(digits, badnets):
    result = NC(steps=50).repair(badnets[0], digits[0])
    assert "class 0" in result.notes[-1]


def test_detectors_find_planted_clusters():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(200, 8))
    features[:20] += 8
    labels = np.zeros(200, dtype=int)
    flagged = activation_clusters(features, labels)
    assert flagged[:20].all()
    assert not flagged[20:].any()
    assert set(np.argsort(spectral_scores(features, labels))[-20:]) == set(range(20))
    # as many poisons as own samples, in one class of five
    labels = np.repeat(np.arange(5), 80)
    features = draw.normal(size=(400, 8))
    features[:40] += 4
    flagged = activation_clusters(features, labels)
    assert flagged[:80].sum() == 40
    assert not flagged[80:].any()
    assert anomaly_index(np.array([9.0, 10.0, 11.0, 2.0])).argmax() == 3


def test_little_data_and_bad_data(digits, badnets):
    victim, _ = badnets
    one = digits[0].subset(torch.tensor([3]))
    with pytest.raises(InputError, match="at least 2"):
        SuperFT().repair(victim, one)
    SuperFT(phase1=2, phase2=2).repair(victim, digits[0].subset(torch.arange(2)))
    with pytest.raises(InputError, match="num_classes"):
        SuperFT().repair(victim, replace(digits[0], num_classes=12))
    colour = bft.LabeledData(torch.rand(4, 3, 8, 8), torch.arange(4), 10)
    with pytest.raises(InputError, match="does not fit the model"):
        SuperFT().repair(victim, colour)
    with pytest.raises(InputError, match="poisoned"):
        make("abl").repair(victim, digits[0])
    with pytest.raises(InputError, match="superft"):
        make("nothing")
    with pytest.raises(InputError, match="no such parameter"):
        make("ft", colour=1)


def test_divergence_backs_off_and_then_fails_cleanly(digits):
    model = models.build("mlp", 1, 10, 8)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        FT(lr=1e9, steps=60).repair(model, digits[0])


class Brittle(nn.Module):
    """Not finite once its weight has moved further than a small step takes it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        out = self.head(x.flatten(1))
        return out / (self.head.weight.abs().max() < 0.06).float()


def test_back_off_is_noted(digits):
    found = FT(lr=0.5, steps=2, constant=True, weight_decay=0).repair
    for lr in (0.05, 0.1, 0.2, 0.4, 0.8):
        found = FT(lr=lr, steps=2, constant=True, weight_decay=0)
        try:
            result = found.repair(Brittle(), digits[0])
        except DivergedError:
            continue
        if result.notes:
            assert "scaled by" in result.notes[0]
            return
    pytest.fail("no rate between that backs off once")


def test_averaged_weights_are_the_mean_of_the_cycles_ends(digits):
    model = models.build("mlp", 1, 10, 8, seed=1)
    seen = {}
    keep = {"on_step": lambda step, m, lr, loss: seen.setdefault(step + 1, values(m))}
    defense = SuperFT(phase1=8, phase2=4, ramp=(2, 2), average=0.5)
    found = defense.repair(model, digits[0], seed=4, **keep).model
    ends = [8, 12]  # of the cycles after half of phase 1
    for name, value in found.state_dict().items():
        mean = torch.stack([seen[step][name] for step in ends]).mean(0)
        assert torch.allclose(value, mean, atol=1e-6)


def test_averaging_estimates_the_statistics_anew(digits, badnets):
    victim, _ = badnets
    clean = digits[0]
    defense = SuperFT(phase1=40, phase2=20, ramp=(5, 5), average=0.0)
    found = defense.repair(victim, clean).model
    again = BNRecalibration(steps=36, batch_size=64).repair(found, clean).model
    for (name, one), other in zip(found.named_buffers(), again.buffers()):
        if one.is_floating_point():
            assert torch.allclose(one, other, rtol=0.05, atol=0.02), name


def test_clipping_keeps_a_network_without_batch_norm_alive(digits):
    train, test = digits
    model = bft.train(models.build("cnn-gn", 1, 10, 8), train, recipe="digits")
    plain = SuperFT(lr_max1=1.5, phase1=60, phase2=60)
    assert accuracy(plain.repair(model, train).model, test) < 0.5
    clipped = replace(plain, clip=1.0)
    assert accuracy(clipped.repair(model, train).model, test) > 0.8


def test_distillation_asks_for_the_victims_answers(digits, badnets):
    """With the whole loss on the victim's answers, wrong labels do not matter in phase 2."""
    victim, _ = badnets
    wrong = replace(digits[0], labels=(digits[0].labels + 1) % 10)
    only = SuperFT(phase1=0, phase2=20, lr_max2=0.01)
    assert accuracy(replace(only, distill=1.0).repair(victim, wrong).model, digits[1]) > 0.95
    assert accuracy(only.repair(victim, wrong).model, digits[1]) < 0.9


def test_mixtures_against_their_formula():
    x, y = torch.rand(6, 2, 3, 3), torch.arange(6)
    mixed, other, share = mixtures(x, y, torch.Generator().manual_seed(3))
    assert ((share >= 0) & (share < 1)).all()
    for k in range(6):
        wanted = share[k] * x[k] + (1 - share[k]) * x[other[k]]
        assert torch.allclose(mixed[k], wanted)
    assert sorted(other.tolist()) == list(range(6))


def test_presets_of_others_are_not_mixed_and_words_cannot_be():
    assert SuperFT().mixup
    assert SuperFT.from_preset("mini") == SuperFT()
    assert not SuperFT.from_preset("paper").mixup
    assert not SuperFT.from_preset("toolbox").mixup
    clean = bft.data.toy_text(40)
    model = models.build("text", 1, 4, 16)
    one, two = (
        SuperFT(phase1=4, phase2=4, ramp=(2, 2), lr_max1=0.1, mixup=m).repair(model, clean).model
        for m in (True, False)
    )
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters()))


@pytest.mark.parametrize("option", [{"average": 2.0}, {"clip": 0.0}, {"distill": 1.5}])
def test_options_of_super_fine_tuning_are_checked(option):
    with pytest.raises(InputError, match=next(iter(option))):
        SuperFT(**option)


def test_scheduler_and_defence_agree(digits):
    """The defence equals a loop that a user writes with SuperFineTuneLR."""
    model = models.build("cnn-gn", 1, 10, 8, seed=1)
    defense = SuperFT(
        phase1=8,
        phase2=4,
        ramp=(2, 2),
        batch_size=32,
        lr_max1=0.1,
        lr_max2=0.05,
        average=None,
        mixup=False,
    )
    found = defense.repair(model, digits[0], seed=4)
    own = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(own.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    schedule = bft.SuperFineTuneLR(optimizer, 3e-4, 0.1, 0.05, 8, (2, 2))
    order = bft.engine.batches(len(digits[0]), 32, 4, 0)
    for _ in range(12):
        index = next(order)
        optimizer.zero_grad()
        F.cross_entropy(own(digits[0].inputs[index]), digits[0].labels[index]).backward()
        optimizer.step()
        schedule.step()
    for p, q in zip(own.parameters(), found.model.parameters()):
        assert torch.allclose(p, q, atol=1e-6)
    assert found.dose == pytest.approx(sum(r["lr"] for r in found.log) / 0.1)
