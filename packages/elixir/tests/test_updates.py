"""The optimizer over chunks. Oracle: the same optimizer on a plain model, bit for bit."""

import elixir
import pytest
import torch
from common import (
    HARDWARE,
    assert_same,
    elixir_steps,
    gpt,
    gpt_batch,
    least_budget,
    plain_steps,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_fp32_masters(dtype):
    batches = [gpt_batch(i) for i in range(3)]
    reference = gpt().to(dtype)
    expected = plain_steps(reference, batches)
    model = gpt().to(dtype)
    plan = elixir.plan(
        model,
        batches[0],
        device_budget=least_budget(model, batches[0], dtype=dtype),
        hardware=HARDWARE,
        dtype=dtype,
    )
    got = elixir_steps(model, batches, plan)
    assert_same(expected, got)


def test_loss_scaling_skips_an_overflow_exactly():
    model, batch = gpt(), gpt_batch()
    plan = elixir.plan(model, batch, device_budget="4MiB", hardware=HARDWARE, step_in_backward=True)
    scaler = elixir.LossScaler(scale=65536.0, hysteresis=1)
    model, optimizer = elixir.initialize(model, plan=plan, lr=1e-2, loss_scale=scaler)
    before = model.state_dict()
    (optimizer.scale(model(*batch)) * float("inf")).backward()
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert optimizer.undone > 0
    assert scaler.scale == 32768.0
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    optimizer.zero_grad()
    optimizer.scale(model(*batch)).backward()
    optimizer.step()
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_stepping_in_backward_with_a_small_undo_budget():
    batches = [gpt_batch(i) for i in range(4)]
    expected = plain_steps(gpt(), batches, clip=0.5)
    model = gpt()
    plan = elixir.plan(
        model, batches[0], device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    got = elixir_steps(
        model, batches, plan, max_grad_norm=0.5, step_in_backward=True, undo_budget=50_000
    )
    assert_same(expected, got)
    assert got[2].undone > 0


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "NAdam"])
def test_any_torch_optimizer(name):
    cls = getattr(torch.optim, name)
    batches = [gpt_batch(i) for i in range(3)]
    reference = gpt()
    inner = cls(reference.parameters(), lr=1e-2)
    losses = []
    for batch in batches:
        loss = reference(*batch)
        loss.backward()
        losses.append(loss.item())
        inner.step()
        inner.zero_grad()
    model = gpt()
    plan = elixir.plan(
        model, batches[0], "other", device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    got = elixir_steps(model, batches, plan, cls=cls)
    assert got[0] == losses


def test_groups_and_schedulers_and_torch_state_dict():
    """Per-parameter options inside a chunk; the state loads into torch's own AdamW."""
    batches = [gpt_batch(i) for i in range(4)]

    def groups(model):
        decay = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() <= 1]
        return [
            {"params": decay, "weight_decay": 0.1},
            {"params": rest, "weight_decay": 0.0, "lr": 3e-3},
        ]

    reference = gpt()
    first = elixir.optim.AdamW(groups(reference), lr=1e-2)
    model = gpt()
    plan = elixir.plan(
        model, batches[0], device_budget=least_budget(model, batches[0]), hardware=HARDWARE
    )
    model, second = elixir.initialize(model, plan=plan, lr=1e-2, params=groups(model))
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (first, second)]
    for batch in batches:
        for m, o, s in zip((reference, model), (first, second), schedules):
            m(*batch).backward()
            o.step()
            o.zero_grad()
            s.step()
    for key, value in reference.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    theirs = torch.optim.AdamW(groups(gpt()), lr=1e-2)
    theirs.load_state_dict(second.state_dict())
    mine = {k: v["exp_avg"] for k, v in first.state_dict()["state"].items()}
    for key, entry in theirs.state_dict()["state"].items():
        assert torch.equal(entry["exp_avg"], mine[key])


def test_updates_without_room_for_gradients():
    batches = [gpt_batch(i) for i in range(4)]
    expected = plain_steps(gpt(), batches)
    model = gpt()
    options = {"hardware": HARDWARE, "step_in_backward": True, "recompute": "none"}
    kept = elixir.plan(model, batches[0], device_budget="64MiB", **options)
    plan = elixir.plan(model, batches[0], device_budget="64MiB", keep_gradients=False, **options)
    assert plan.resident_bytes < kept.resident_bytes
    half = plan.override("blocks.1.*", tier="host").override("blocks.0.*", tier="device")
    assert_same(expected, elixir_steps(model, batches, half))
    with pytest.raises(ValueError, match="keep_gradients=False"):
        elixir.initialize(gpt(), plan=plan, max_grad_norm=1.0)
    model, _ = elixir.initialize(gpt(), plan=plan)
    model(*batches[0]).backward()
    with pytest.raises(RuntimeError, match="keep_gradients=True"):
        model(*batches[0]).backward()
    with pytest.raises(ValueError, match="step_in_backward=True"):
        elixir.plan(gpt(), batches[0], device_budget="64MiB", keep_gradients=False)
