import numpy as np
import pytest
import torch
from backdoor_ft import InputError, LabeledData, models
from backdoor_ft.sequela import (
    AUDITS,
    adversarial_accuracy,
    barrier,
    calibration,
    existence_coefficient,
    expected_calibration_error,
    judge,
    linear_cka,
    lira,
    metric_attacks,
    path_losses,
    query_reactivation,
    reinjection_curve,
    retuning_attack,
    rmia,
    sequela,
    shadow_attacks,
    tpr_at,
    train_shadows,
)
from backdoor_ft.sequela.membership import balanced, confidence, modified_entropy
from backdoor_ft.sequela.reinjection import attacker_data
from scipy.stats import norm
from sklearn.metrics import roc_auc_score


def test_auc_and_rates_against_sklearn_and_by_hand():
    draw = np.random.default_rng(0)
    members = draw.random(400) < 0.5
    scores = draw.normal(size=400) + members
    found = judge("x", scores, members)
    assert found.auc == pytest.approx(roc_auc_score(members, scores), abs=1e-9)
    assert found.auc_interval[0] < found.auc < found.auc_interval[1]
    order = np.sort(scores[~members])[::-1]
    allowed = int(0.01 * len(order))
    assert found.tpr_at_1 == pytest.approx((scores[members] > order[allowed]).mean())
    assert tpr_at(scores, members, 1.0) == 1.0
    assert found.plot().axes
    with pytest.raises(InputError):
        judge("x", scores, np.ones(400, bool))


def test_lira_on_gaussians_reaches_the_analytic_roc():
    """In N(1, 1), out N(0, 1), known exactly: the likelihood-ratio test has AUC Phi(1/sqrt 2)."""
    draw = np.random.default_rng(1)
    n, shadows = 4000, 64
    inside = np.argsort(draw.random((shadows, n)), 0) < shadows // 2
    confidences = draw.normal(size=(shadows, n)) + inside
    members = draw.random(n) < 0.5
    target = draw.normal(size=n) + members
    auc = roc_auc_score(members, lira(target, confidences, inside, fixed_variance=True))
    assert auc == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.025)


def test_rmia_orders_by_likelihood_ratio():
    target = np.array([0.9, 0.5, 0.1])
    shadows = np.full((4, 3), 0.5)
    found = rmia(target, shadows, np.linspace(0.05, 0.95, 50), np.full((4, 50), 0.5))
    assert found[0] > found[1] > found[2]


def test_sets_are_balanced_by_class(digits):
    train, test = digits
    ordered = train.subset(torch.argsort(train.labels))
    i, j = balanced(ordered, test)
    assert (ordered.labels[i].bincount() == test.labels[j].bincount()).all()


def test_statistics_by_hand():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.z = torch.nn.Parameter(torch.log(torch.tensor([0.7, 0.2, 0.1])))

        def forward(self, x):
            return self.z.expand(len(x), 3)

    data = LabeledData(torch.zeros(1, 1, 2, 2), torch.tensor([0]), 3)
    assert confidence(Fixed(), data)[0] == pytest.approx(np.log(0.7 / 0.3), rel=1e-6)
    expected = -0.3 * np.log(0.7) - 0.2 * np.log(0.8) - 0.1 * np.log(0.9)
    assert modified_entropy(Fixed(), data)[0] == pytest.approx(expected, rel=1e-6)


def test_overfitted_model_is_found_by_every_attack(digits):
    train, test = digits
    small = train.subset(torch.arange(120))
    flip = torch.randint(10, (120,), generator=torch.Generator().manual_seed(0))
    small = LabeledData(small.inputs, torch.where(torch.rand(120) < 0.4, flip, small.labels), 10)
    others = test.subset(torch.arange(120))
    both = LabeledData(
        torch.cat((small.inputs, others.inputs)), torch.cat((small.labels, others.labels)), 10
    )
    torch.manual_seed(0)
    fresh = [models.SmallCNN() for _ in range(9)]
    from backdoor_ft.engine import fit

    target = fresh.pop()
    fit(target, small, steps=150, batch_size=32, rate=lambda s: 0.05)
    shadows = train_shadows(fresh, both, steps=150, batch_size=32, group=8)
    assert (shadows.members.sum(0) == 4).all()
    for found in [*metric_attacks(target, small, others),
                  *shadow_attacks(target, small, others, shadows)]:  # fmt: skip
        assert found.auc > 0.6, found
    with pytest.raises(InputError, match="even number"):
        train_shadows(fresh[:3], both)
    with pytest.raises(InputError, match="followed by"):
        shadow_attacks(target, small, test, shadows)


def test_reinjection_against_a_never_backdoored_model(digits, badnets, repaired, scratch):
    victim, plan = badnets
    train, test = digits
    curves = {
        name: reinjection_curve(m, name, train, test, plan, steps=20)
        for name, m in (("victim", victim), ("repaired", repaired), ("reference", scratch))
    }
    assert curves["victim"].half == 0
    assert curves["repaired"].attack_success[0] < 0.05
    assert curves["repaired"].steps[-1] == 20
    data = attacker_data(train, plan, 20, 180)
    assert len(data) == 200
    assert int((data.labels[:20] == plan.target).sum()) == 20
    with pytest.raises(InputError, match="poisons"):
        attacker_data(train, plan, 5000, 1)
    assert retuning_attack(victim, train, test, plan) > 0.9


def test_reactivation_of_the_victim_is_complete(digits, badnets, repaired, scratch):
    victim, plan = badnets
    train, test = digits
    flags = [p.requires_grad for p in repaired.parameters()]
    woken = query_reactivation(victim, victim, train, test, plan, steps=30)
    assert woken > 0.95
    assert query_reactivation(repaired, victim, train, test, plan, steps=30) < woken
    assert flags == [p.requires_grad for p in repaired.parameters()]
    assert existence_coefficient(victim, victim, scratch, test, plan) == pytest.approx(1)
    assert existence_coefficient(scratch, victim, scratch, test, plan) == pytest.approx(0, abs=1e-9)


def test_cka_is_invariant_to_rotation():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(60, 4))
    q, _ = np.linalg.qr(draw.normal(size=(4, 4)))
    assert linear_cka(a, 3 * a @ q) == pytest.approx(1)
    assert linear_cka(a, draw.normal(size=(60, 4))) < 0.5


def test_connectivity(digits):
    model = models.build("mlp", 1, 10, 8, seed=0)
    from backdoor_ft.engine import fit

    fit(model, digits[0], steps=150, batch_size=64, rate=lambda s: 0.1)
    test = digits[1]
    assert barrier(path_losses(model, model, test)) == pytest.approx(0, abs=1e-6)
    permuted = models.build("mlp", 1, 10, 8, seed=0)
    permuted.load_state_dict(model.state_dict())
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        permuted[1].weight.copy_(model[1].weight[order])
        permuted[1].bias.copy_(model[1].bias[order])
        permuted[3].weight.copy_(model[3].weight[:, order])
    losses = path_losses(model, permuted, test)
    assert losses[0] == pytest.approx(losses[-1], rel=1e-4)
    assert barrier(losses) > 0.05


def test_calibration_and_robustness(digits, repaired):
    p = np.tile([0.8, 0.2], (10, 1))
    labels = np.array([0] * 8 + [1] * 2)
    assert expected_calibration_error(p, labels) == pytest.approx(0)
    assert 0 <= calibration(repaired, digits[1]) < 0.1
    clean = adversarial_accuracy(repaired, digits[1], epsilon=1e-9, steps=1)
    assert clean == pytest.approx(float((repaired(digits[1].inputs).argmax(1) == digits[1].labels)
                                        .float().mean()))  # fmt: skip
    assert adversarial_accuracy(repaired, digits[1], epsilon=0.2) < clean


def test_all_audits(digits, badnets, repaired, scratch):
    victim, plan = badnets
    cheap = [a for a in AUDITS if a != "mia.lira"]
    part = digits[1].subset(torch.arange(200))
    found = sequela(
        before=victim, after=repaired, reference=scratch, plan=plan, test=part, audits=cheap
    )
    assert set(found.values) == {"retuning", "qra", "bec", "adversarial", "calibration"}
    assert [c.name for c in found.curves] == ["before", "after", "reference"]
    assert found.plot().axes
    assert found.to_json()["schema_version"] == 1
    with pytest.raises(InputError, match=r"mia\.lira"):
        sequela(before=victim, after=repaired, reference=scratch, plan=plan, test=digits[1],
                audits=["nothing"])  # fmt: skip


def test_the_report_says_by_itself_when_the_backdoor_sleeps(digits, badnets, scratch):
    victim, plan = badnets
    found = sequela(before=victim, after=victim, reference=scratch, plan=plan, test=digits[1],
                    audits=["reinject", "retuning"])  # fmt: skip
    assert any(n.startswith("retuning") for n in found.notes)
    assert any(n.startswith("reinject") for n in found.notes)
