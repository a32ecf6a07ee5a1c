"""Learning-rate schedules: super-fine-tuning as an ordinary scheduler, and its dose."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from backdoor_ft.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SuperFineTuneConfig:
    """Two phases of a triangular cycle; the unit is the iteration.

    Attributes
    ----------
    lr_base : rate at the foot of every cycle
    lr_max1 : peak rate of the first phase, which forgets the trigger
    lr_max2 : peak rate of the second phase, which restores accuracy
    phase1, phase2 : iterations of the phases
    ramp : iterations up, iterations down
    momentum, weight_decay, batch_size : of the SGD that runs under the schedule
    """

    lr_base: float = 3e-4
    lr_max1: float = 1.5
    lr_max2: float = 0.1
    phase1: int = 240
    phase2: int = 60
    ramp: tuple[int, int] = (10, 10)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("lr_base", "lr_max1", "lr_max2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value} is not allowed: a finite number above 0")
        for name in ("lr_max1", "lr_max2"):
            if getattr(self, name) < self.lr_base:
                raise InputError(
                    f"{name}={getattr(self, name)} is not allowed: at least lr_base={self.lr_base}"
                )
        if len(self.ramp) != 2 or min(self.ramp) < 1:
            raise InputError(f"ramp={self.ramp} is not allowed: two integers of at least 1")
        if self.phase1 < 0 or self.phase2 < 0 or self.phase1 + self.phase2 < 1:
            raise InputError(
                f"phase1={self.phase1}, phase2={self.phase2} are not allowed:"
                " iterations, at least one in total"
            )

    @property
    def steps(self) -> int:
        """Iterations of both phases."""
        return self.phase1 + self.phase2

    def learning_rate(self, step: int) -> float:
        """Rate of iteration `step`, counted from 0 (spec 1.2, the paper's two-phase cycle)."""
        up, down = self.ramp
        position = step % (up + down)
        peak = self.lr_max1 if step < self.phase1 else self.lr_max2
        share = position / up if position < up else (up + down - position) / down
        return self.lr_base + (peak - self.lr_base) * share

    def aligned(self) -> SuperFineTuneConfig:
        """Round phase1 up to whole cycles: the peak then changes at the foot of a cycle."""
        period = sum(self.ramp)
        values = asdict(self)
        values["ramp"] = tuple(self.ramp)
        values["phase1"] = math.ceil(self.phase1 / period) * period
        return SuperFineTuneConfig(**values)


PRESETS: dict[str, SuperFineTuneConfig] = {
    # A third-party implementer's guide written from the paper: 3 + 3 epochs of 50,000 images,
    # cycles of two epochs. The body of the paper itself was not reachable.
    "paper": SuperFineTuneConfig(
        3e-4, 0.1, 1e-3, phase1=588, phase2=588, ramp=(196, 196), batch_size=256
    ),
    # backdoor-toolbox, CIFAR-10: plain SGD, 40 + 60 epochs of 2,000 images.
    "toolbox": SuperFineTuneConfig(
        3e-2, 2.5, 0.05, phase1=640, phase2=960, momentum=0.0, weight_decay=0.0
    ),
    # backdoor-toolbox, GTSRB.
    "toolbox-gtsrb": SuperFineTuneConfig(
        3e-3, 0.25, 5e-3, phase1=640, phase2=960, momentum=0.0, weight_decay=0.0
    ),
    # Ours: short, with a dose of the order of the paper's on the full data set.
    "mini": SuperFineTuneConfig(),
}


def preset(name: str) -> SuperFineTuneConfig:
    """Return a named preset.

    Raises
    ------
    InputError
        There is no preset of that name.

    Examples
    --------
    >>> preset("paper").lr_max1
    0.1
    """
    if name not in PRESETS:
        raise InputError(f"preset={name!r} is not allowed: one of {', '.join(PRESETS)}")
    return PRESETS[name]


class SuperFineTuneLR(LRScheduler):
    """The two-phase cyclic schedule of super-fine-tuning, an ordinary ``LRScheduler``.

    Within each phase it equals ``CyclicLR(mode="triangular")``. Iteration 0 runs at the rate of
    iteration 0: call ``step()`` after ``optimizer.step()``, as with any scheduler.

    Parameters
    ----------
    optimizer : any torch optimiser
    lr_base, lr_max1, lr_max2 : rates
    phase1 : iterations of the first phase
    ramp : iterations up, iterations down
    last_epoch : last iteration that was run, -1 to begin

    Examples
    --------
    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = SuperFineTuneLR(sgd, 0.1, 0.5, 0.2, phase1=4, ramp=(2, 2))
    >>> rates = []
    >>> for _ in range(8):
    ...     rates.append(round(schedule.get_last_lr()[0], 3))
    ...     sgd.step()
    ...     schedule.step()
    >>> rates
    [0.1, 0.3, 0.5, 0.3, 0.1, 0.15, 0.2, 0.15]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_base: float = 3e-4,
        lr_max1: float = 1.5,
        lr_max2: float = 0.1,
        phase1: int = 240,
        ramp: tuple[int, int] = (10, 10),
        last_epoch: int = -1,
    ) -> None:
        self.config = SuperFineTuneConfig(
            lr_base, lr_max1, lr_max2, phase1, 1, (int(ramp[0]), int(ramp[1]))
        )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Rate of every parameter group at the present iteration."""
        rate = self.config.learning_rate(self.last_epoch)
        return [rate for _ in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers, safe to save and load without pickled classes."""
        state = super().state_dict()
        state["config"] = asdict(self.config)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`."""
        state = dict(state_dict)
        config = dict(state.pop("config"))
        config["ramp"] = tuple(config["ramp"])
        super().load_state_dict(state)
        self.config = SuperFineTuneConfig(**config)


@dataclass(frozen=True)
class CosineConfig:
    """One half cosine from `lr` to zero; ``lr`` constant where ``constant`` is set."""

    lr: float = 0.01
    steps: int = 400
    constant: bool = False

    def learning_rate(self, step: int) -> float:
        """Rate of iteration `step`, counted from 0."""
        if self.constant:
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(step, self.steps) / self.steps))


def dose(rates: Sequence[float], momentum: float = 0.0) -> float:
    """Learning-rate dose, the sum of the rates over 1 - momentum.

    It is what transfers between data sizes where epochs do not.

    Parameters
    ----------
    rates : rate of each iteration
    momentum : of the optimiser

    Examples
    --------
    >>> config = preset("toolbox")
    >>> rates = [config.learning_rate(i) for i in range(config.phase1)]
    >>> round(dose(rates, config.momentum))  # 640 iterations x (0.03 + 2.5) / 2
    810
    """
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum} is not allowed: 0 <= momentum < 1")
    return math.fsum(rates) / (1 - momentum)


def plot_schedule(config: SuperFineTuneConfig, title: str = "") -> Figure:
    """Draw the rates of a schedule over its iterations."""
    from matplotlib.figure import Figure

    rates = [config.learning_rate(step) for step in range(config.steps)]
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    axis.semilogy(rates, linewidth=0.9)
    axis.axvline(config.phase1, color="tab:red", linewidth=0.8, linestyle="--")
    axis.set_xlabel("iteration")
    axis.set_ylabel("learning rate")
    first = dose(rates[: config.phase1], config.momentum)
    axis.set_title(f"{title} dose of phase 1: {first:.0f}".strip(), fontsize=10)
    return figure
