"""Policy gradients against exact enumeration."""

import itertools

import pytest
import torch
from p2c import NotFiniteError, SCSTLoss, TagTransformerCaptioner
from p2c.rl import kl_penalty
from p2c.vocabulary import PAD, SEP


def world():
    """Three words, an end token, captions up to three tokens: 1 + 3 + 9 + 27 = 40 outcomes."""
    torch.manual_seed(0)
    net = TagTransformerCaptioner(torch.randn(8, 8), 3, 1, 2, 3).double()
    outcomes = []
    for n in range(4):
        for body in itertools.product((5, 6, 7), repeat=n):
            line = list(body) + ([SEP] if n < 3 else [])
            outcomes.append(line + [PAD] * (3 - len(line)))
    ids = torch.tensor(outcomes)
    tags, regions = torch.tensor([[5, 6]]), torch.randn(1, 2, 3).double()
    rewards = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return net, ids, rewards, lambda: net.log_prob(net.encode(tags, regions), ids[None])[0]


def flat(net):
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def exact(net, logs, rewards):
    net.zero_grad()
    (-(logs().sum(-1).exp() * rewards).sum()).backward()
    return flat(net).clone()


def test_forty_outcomes_are_everything():
    _, ids, _, logs = world()
    assert len(ids) == 40
    assert float(logs().sum(-1).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("base", [0.0, 0.37])
def test_greedy_baseline_gives_the_exact_gradient(base):
    net, ids, rewards, logs = world()
    want = exact(net, logs, rewards)
    p = logs().sum(-1).exp().detach()
    net.zero_grad()
    scst, total = SCSTLoss("greedy"), 0.0
    line = logs()
    for k in range(40):
        one = scst(
            line[None, k : k + 1], (ids != PAD)[None, k : k + 1], rewards[None, k : k + 1],
            torch.tensor([base], dtype=torch.float64),
        )  # fmt: skip
        total = total + p[k] * one
    total.backward()
    assert float((flat(net) - want).abs().max()) < 1e-9
    assert float(want.abs().max()) > 1e-4


def test_leave_one_out_gives_the_exact_gradient():
    """Mean over all 1600 pairs of samples, weighted by their probability."""
    net, _, rewards, logs = world()
    want = exact(net, logs, rewards)
    line = logs()
    p = line.sum(-1).exp().detach()
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    pair = torch.stack([a, b], 1)
    net.zero_grad()
    advantage = SCSTLoss("loo").advantage(rewards[pair])
    weight = p[a] * p[b]
    (-(weight[:, None] * advantage * line.sum(-1)[pair]).sum() / 2).backward()
    assert float((flat(net) - want).abs().max()) < 1e-9


def test_baseline_lowers_the_variance():
    net, _, rewards, logs = world()
    p = logs().sum(-1).exp().detach()
    drawn = torch.multinomial(p, 400, replacement=True, generator=torch.Generator().manual_seed(0))
    spread = []
    for base in (0.0, float((p * rewards).sum())):
        rows = []
        for k in drawn[:60].tolist():
            net.zero_grad()
            (-(rewards[k] - base) * logs()[k].sum()).backward()
            rows.append(flat(net).clone())
        spread.append(float(torch.stack(rows).var(0).sum()))
    assert spread[1] < spread[0]


def test_mean_divides_by_tokens_with_the_end_token_and_without_padding():
    log = torch.tensor([[[-1.0, -2.0, 0.0]]])
    there = torch.tensor([[[True, True, False]]])
    reward, base = torch.tensor([[2.0]]), torch.tensor([0.0])
    assert float(SCSTLoss(normalize="sum")(log, there, reward, base)) == 6
    assert float(SCSTLoss(normalize="mean")(log, there, reward, base)) == 3


def test_group_is_loo_up_to_scale():
    rewards = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    group, loo = (SCSTLoss(b).advantage(rewards) for b in ("group", "loo"))
    ratio = group / loo
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_rewards_that_are_not_finite():
    log, there = torch.zeros(1, 2, 1), torch.ones(1, 2, 1, dtype=torch.bool)
    bad = torch.tensor([[torch.nan, 1.0]])
    assert torch.isfinite(SCSTLoss()(log, there, bad, torch.zeros(1)))
    with pytest.raises(NotFiniteError, match="none is finite"):
        SCSTLoss()(log, there, bad * torch.nan, torch.zeros(1))


def test_kl_is_never_negative_and_unbiased():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=g, dtype=torch.float64).log_softmax(0) for _ in range(2))
    want = float((p.exp() * (p - q)).sum())
    got = sum(
        float(p[i].exp() * kl_penalty(p[i].view(1, 1, 1), q[i].view(1, 1, 1))) for i in range(6)
    )
    assert got == pytest.approx(want)
