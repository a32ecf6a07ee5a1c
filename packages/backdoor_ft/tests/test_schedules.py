import pytest
import torch
from backdoor_ft import InputError, SuperFineTuneLR
from backdoor_ft.schedules import PRESETS, SuperFineTuneConfig, dose, plot_schedule, preset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CyclicLR


def sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(schedule, optimizer, steps):
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


@settings(max_examples=30, deadline=None)
@given(
    st.floats(1e-5, 0.1), st.floats(0.1, 5), st.floats(0.1, 1), st.integers(1, 9), st.integers(1, 9)
)
def test_each_phase_equals_torch_cyclic_lr(base, peak1, peak2, up, down):
    period = up + down
    phase1, steps = 3 * period, 6 * period
    optimizer = sgd()
    found = rates(
        SuperFineTuneLR(optimizer, base, peak1, peak2, phase1, (up, down)), optimizer, steps
    )
    for peak, part in ((peak1, found[:phase1]), (peak2, found[phase1:])):
        other = sgd()
        cyclic = CyclicLR(
            other, base, peak, step_size_up=up, step_size_down=down, cycle_momentum=False
        )
        assert part == pytest.approx(rates(cyclic, other, phase1), abs=1e-12)
    closed = 3 * period * (base + peak1) / 2
    assert sum(found[:phase1]) == pytest.approx(closed, rel=1e-9)


def test_first_iteration_runs_at_the_rate_of_iteration_zero_and_there_is_no_lag():
    optimizer = sgd()
    found = rates(SuperFineTuneLR(optimizer, 0.1, 1.1, 0.2, 10, (10, 10)), optimizer, 3)
    assert found == pytest.approx([0.1, 0.2, 0.3])


def test_state_goes_through_weights_only(tmp_path):
    optimizer = sgd()
    schedule = SuperFineTuneLR(optimizer, 0.1, 1.0, 0.3, 7, (2, 3))
    rates(schedule, optimizer, 5)
    torch.save(schedule.state_dict(), tmp_path / "s.pt")
    other_optimizer = sgd()
    other = SuperFineTuneLR(other_optimizer)
    other.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    optimizer.step(), schedule.step(), other_optimizer.step(), other.step()
    assert other.get_last_lr() == schedule.get_last_lr()
    assert other.config == schedule.config


def test_phase_change_at_the_foot_of_a_cycle():
    config = SuperFineTuneConfig(0.1, 1, 0.5, phase1=25, phase2=5, ramp=(10, 10)).aligned()
    assert config.phase1 == 40
    assert config.learning_rate(40) == 0.1


def test_presets_and_their_doses():
    def first(name):
        c = PRESETS[name]
        return dose([c.learning_rate(i) for i in range(c.phase1)], c.momentum)

    assert first("toolbox") == pytest.approx(640 * 1.265, rel=1e-6)
    assert first("paper") == pytest.approx(588 * 0.05015 / 0.1, rel=0.35)
    assert preset("paper").lr_max1 == 0.1


@pytest.mark.parametrize(
    "values",
    [
        {"lr_base": 0.0},
        {"lr_max1": 1e-9},
        {"ramp": (0, 3)},
        {"phase1": -1},
        {"lr_max2": float("nan")},
    ],
)
def test_bad_settings(values):
    with pytest.raises(InputError):
        SuperFineTuneConfig(**values)


def test_unknown_preset_and_momentum():
    with pytest.raises(InputError, match="paper, toolbox"):
        preset("none")
    with pytest.raises(InputError):
        dose([0.1], 1.0)
    assert plot_schedule(preset("mini")).axes
