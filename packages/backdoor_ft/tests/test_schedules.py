import pytest
import torch
from backdoor_ft import InputError, SuperFineTuneLR
from backdoor_ft.schedules import (
    PRESETS,
    CosineConfig,
    SuperFineTuneConfig,
    dose,
    plot_schedule,
    preset,
)
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
    # inside a cycle the rate jumps with the phase: the first iteration of phase 2 has its peak
    inside = SuperFineTuneConfig(0.1, 1, 0.5, phase1=7, phase2=5, ramp=(2, 3))
    assert inside.learning_rate(6) == pytest.approx(0.1 + 0.9 / 2)
    assert inside.learning_rate(7) == 0.5


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


def test_defaults_of_the_scheduler_are_those_of_the_configuration():
    assert SuperFineTuneLR(sgd()).config == SuperFineTuneConfig(phase2=1)
    config = SuperFineTuneConfig()
    assert (config.lr_base, config.lr_max1, config.lr_max2) == (3e-4, 1.5, 0.1)
    assert (config.phase1, config.phase2, config.ramp) == (240, 60, (10, 10))


def test_scheduler_goes_on_from_an_iteration():
    """As torch's own do: `last_epoch` and the initial rates in the groups."""
    optimizer = sgd()
    full = rates(SuperFineTuneLR(optimizer, 0.1, 1.0, 0.3, 4, (2, 2)), optimizer, 8)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    late = SuperFineTuneLR(optimizer, 0.1, 1.0, 0.3, 4, (2, 2), last_epoch=4)
    assert rates(late, optimizer, 3) == pytest.approx(full[5:8])


def test_every_group_has_the_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 5.0)]
    optimizer = torch.optim.SGD(groups)
    schedule = SuperFineTuneLR(optimizer, 0.1, 1.1, 0.2, 10, (10, 10))
    optimizer.step(), schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.2, 0.2])


def test_cosine_against_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    config = CosineConfig(0.3, 7)
    found = [config.learning_rate(step) for step in range(8)]
    assert found == pytest.approx(rates(other, optimizer, 8), abs=1e-12)
    assert config.learning_rate(50) == pytest.approx(0, abs=1e-12)
    assert CosineConfig(0.3, 7, constant=True).learning_rate(5) == 0.3


@pytest.mark.parametrize("rate", ["lr_base", "lr_max1", "lr_max2"])
def test_refusals_name_argument_value_and_what_is_allowed(rate):
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=rf"^{rate}={value} is not allowed: a finite number"):
            SuperFineTuneConfig(**{rate: value})
    if rate != "lr_base":
        with pytest.raises(InputError, match=rf"^{rate}=0.1 is not allowed: at least lr_base=0.2$"):
            SuperFineTuneConfig(**{"lr_base": 0.2, "lr_max1": 1.0, "lr_max2": 1.0, rate: 0.1})
        SuperFineTuneConfig(**{"lr_base": 0.2, "lr_max1": 1.0, "lr_max2": 1.0, rate: 0.2})


def test_refusals_of_ramp_and_phases():
    for ramp in ((0, 3), (3, 0), (1, 2, 3), (1,)):
        with pytest.raises(
            InputError, match=r"^ramp=.* is not allowed: two integers of at least 1$"
        ):
            SuperFineTuneConfig(ramp=ramp)
    SuperFineTuneConfig(ramp=(1, 1))
    for phases in ((-1, 5), (5, -1), (0, 0)):
        with pytest.raises(
            InputError, match=r"^phase1=.* are not allowed: iterations, at least one"
        ):
            SuperFineTuneConfig(phase1=phases[0], phase2=phases[1])
    assert SuperFineTuneConfig(phase1=1, phase2=0).steps == 1
    assert SuperFineTuneConfig(phase1=0, phase2=1).steps == 1
    assert SuperFineTuneConfig(phase1=30, phase2=12).steps == 42


def test_aligned_keeps_everything_else():
    config = SuperFineTuneConfig(0.1, 1, 0.5, 25, 5, (3, 7), 0.8, 1e-3, 17)
    found = config.aligned()
    assert found == SuperFineTuneConfig(0.1, 1, 0.5, 30, 5, (3, 7), 0.8, 1e-3, 17)
    assert found.aligned() == found
    assert isinstance(found.ramp, tuple)


def test_dose_limits():
    assert dose([0.5, 0.25]) == 0.75
    assert dose([0.5, 0.25], 0.5) == 1.5
    assert dose([]) == 0
    for momentum in (-0.1, 1.0):
        with pytest.raises(InputError, match=rf"^momentum={momentum} is not allowed: 0 <= mom"):
            dose([0.1], momentum)
    with pytest.raises(
        InputError, match=r"^preset='none' is not allowed: one of paper, toolbox, too"
    ):
        preset("none")


def test_plot_shows_the_rates_the_change_of_phase_and_the_dose():
    config = SuperFineTuneConfig(0.1, 1, 0.5, 8, 4, (2, 2), momentum=0.5)
    figure = plot_schedule(config, "mine:")
    (axis,) = figure.axes
    curve, change = axis.lines
    assert list(curve.get_ydata()) == [config.learning_rate(step) for step in range(12)]
    assert list(change.get_xdata()) == [8, 8]
    assert change.get_linestyle() == "--"
    assert change.get_color() == "tab:red"
    assert curve.get_linewidth() < 1
    assert change.get_linewidth() < 1
    assert axis.get_yscale() == "log"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("iteration", "learning rate")
    assert axis.get_title() == f"mine: dose of phase 1: {8 * 0.55 / 0.5:.0f}"
    assert axis.title.get_fontsize() == 10
    assert plot_schedule(config).axes[0].get_title() == "dose of phase 1: 9"
    assert tuple(figure.get_size_inches()) == (8, 3)
    assert type(figure.get_layout_engine()).__name__ == "ConstrainedLayoutEngine"
