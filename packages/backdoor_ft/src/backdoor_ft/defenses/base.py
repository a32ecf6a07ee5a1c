"""The protocol of every defence."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_ft.augment import NO_AUGMENT, Augment
from backdoor_ft.data import LabeledData
from backdoor_ft.engine import OnStep, Rate, Update, fit, plain_update, predict, sgd
from backdoor_ft.errors import DivergedError, InputError
from backdoor_ft.schedules import dose

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
REGISTRY: dict[str, type[Defense]] = {}


@dataclass
class Context:
    """What a defence is given beside the model and the clean data."""

    seed: int = 0
    val: LabeledData | None = None
    poisoned: LabeledData | None = None
    on_step: OnStep | None = None
    lr_scale: float = 1.0
    log: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    momentum: float = 0.0

    def fit(
        self,
        model: nn.Module,
        data: LabeledData,
        *,
        steps: int,
        batch_size: int,
        rate: Rate,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        update: Update = plain_update,
        augment: Augment = NO_AUGMENT,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Train under this context's seed, callback, log and back-off."""
        offset = len(self.log)

        def told(step: int, m: nn.Module, lr: float, loss: float) -> None:
            if self.on_step is not None:
                self.on_step(offset + step, m, lr, loss)

        self.momentum = momentum
        rows = fit(
            model,
            data,
            steps=steps,
            batch_size=batch_size,
            rate=lambda step: self.lr_scale * rate(step),
            optimizer=optimizer or sgd(model.parameters(), momentum, weight_decay),
            update=update,
            augment=augment,
            seed=self.seed,
            on_step=told,
        )
        self.log += [{**row, "step": offset + row["step"]} for row in rows]


@dataclass(frozen=True)
class RepairResult:
    """A repaired model and how it came about.

    Attributes
    ----------
    model : the repaired copy, in evaluation mode
    method, config : of the defence
    log : rows of step, lr, loss
    cpu_seconds : processor time
    dose : sum of learning rates over 1 - momentum
    displacement : distance of the weights from the victim's, relative to their norm
    accepted : False where the accuracy guard gave the victim back
    notes : warnings and evidence
    """

    model: nn.Module = field(repr=False)
    method: str
    config: dict[str, Any]
    log: list[dict[str, float]] = field(repr=False)
    cpu_seconds: float
    dose: float
    displacement: float
    accepted: bool = True
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values with a schema version, without model and log."""
        kept = {k: v for k, v in vars(self).items() if k not in ("model", "log")}
        return {"schema_version": 1, **kept, "notes": list(self.notes)}

    def plot(self) -> Figure:
        """Draw learning rate and loss over the steps."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3), layout="constrained")
        for axis, key in zip(figure.subplots(1, 2), ("lr", "loss")):
            axis.plot([row["step"] for row in self.log], [row[key] for row in self.log], lw=0.8)
            axis.set_xlabel("step")
            axis.set_title(key)
        return figure


def displacement(model: nn.Module, origin: nn.Module) -> float:
    """Return ||theta - theta0|| / ||theta0|| over the parameters."""
    moved = norm = 0.0
    reference = dict(origin.named_parameters())
    for name, p in model.named_parameters():
        base = reference[name].detach().double()
        if p.shape == base.shape:
            moved += float((p.detach().double() - base).square().sum())
            norm += float(base.square().sum())
    return math.sqrt(moved / max(norm, 1e-30))


@dataclass(frozen=True)
class Defense(ABC):
    """A repair of a model by a little clean data; configuration is the dataclass's fields."""

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset({"clean_data"})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.name:
            REGISTRY[cls.name] = cls

    @abstractmethod
    def run(self, model: nn.Module, clean: LabeledData, context: Context) -> nn.Module:
        """Repair `model`, which may be changed in place, and return it or another one."""

    def repair(
        self,
        model: nn.Module,
        clean: LabeledData,
        *,
        val: LabeledData | None = None,
        poisoned: LabeledData | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> RepairResult:
        """Return a repaired copy; the model that is passed in is never changed.

        Parameters
        ----------
        model : victim; any ``nn.Module`` from a batch of inputs to logits
        clean : clean data of the model's task
        val : clean data for choices such as how much to prune; a part of `clean` without it
        poisoned : the poisoned training set, for the defences that need it
        seed : of everything random
        on_step : called after each training step

        Raises
        ------
        InputError
            The data do not fit the model, or the defence needs what is not there.
        DivergedError
            Not finite at the defence's learning rate, nor at a quarter of it.
        """
        check_fit(model, clean)
        if "poisoned_train_set" in self.needs and poisoned is None:
            raise InputError(f"method={self.name!r} needs the poisoned training set: pass poisoned")
        if "batch_norm" in self.needs and not any(
            isinstance(m, BATCH_NORM) for m in model.modules()
        ):
            raise InputError(
                f"method={self.name!r} needs batch normalisation and this model has none:"
                " use superft, ft_sam or fst"
            )
        started = time.process_time()
        for attempt in range(3):
            context = Context(seed, val, poisoned, on_step, 0.5**attempt)
            work = copy.deepcopy(model)
            for parameter in work.parameters():
                parameter.requires_grad_(True)
            try:
                with torch.random.fork_rng(devices=own_generators(model)):
                    torch.manual_seed(seed)
                    repaired = self.run(work, clean, context)
                if not bool(torch.isfinite(predict(repaired, clean.inputs[:64])).all()):
                    raise DivergedError("the repaired model's outputs are not finite")
                break
            except DivergedError as error:
                if attempt == 2:
                    raise DivergedError(
                        f"method {self.name} diverged at its learning rate, a half and a quarter"
                        f" of it ({error}): lower the learning rate"
                    ) from error
        if context.lr_scale < 1:
            context.notes.append(f"diverged: learning rates were scaled by {context.lr_scale}")
        for parameter, old in zip(repaired.parameters(), model.parameters()):
            parameter.requires_grad_(old.requires_grad)
        return RepairResult(
            repaired.eval(),
            self.name,
            asdict(self),
            context.log,
            time.process_time() - started,
            dose([row["lr"] for row in context.log], context.momentum),
            displacement(repaired, model),
            True,
            tuple(context.notes),
        )


def own_generators(model: nn.Module) -> list[torch.device]:
    """Return the GPU whose random generator a repair seeds and has to put back, if any."""
    device = next(model.parameters()).device
    return [device] if device.type == "cuda" else []


def check_fit(model: nn.Module, clean: LabeledData) -> None:
    """Raise where data and model do not belong together, or are too few."""
    if any(isinstance(m, BATCH_NORM) for m in model.modules()) and len(clean) < 2:
        raise InputError(
            f"clean has {len(clean)} sample: batch normalisation needs at least 2 in a batch"
        )
    try:
        logits = predict(model, clean.inputs[:2])
    except (RuntimeError, IndexError) as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"clean of shape {tuple(clean.inputs.shape)} does not fit the model: {line}"
        ) from error
    if logits.ndim != 2 or logits.shape[1] != clean.num_classes:
        raise InputError(
            f"clean has num_classes={clean.num_classes}, the model returns {tuple(logits.shape)}:"
            " [N, num_classes] is needed"
        )


def make(name: str, **config: Any) -> Defense:
    """Return a defence by its name; parameters may be plain values, as a TOML file holds them.

    Raises
    ------
    InputError
        Name or parameter is not known.
    """
    if name not in REGISTRY:
        raise InputError(f"method={name!r} is not known: auto, {', '.join(sorted(REGISTRY))}")
    try:
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        augment = plain.get("augment")
        if isinstance(augment, dict):
            plain["augment"] = Augment(**augment)
        return REGISTRY[name](**plain)
    except TypeError as error:
        raise InputError(f"method={name!r} has no such parameter: {error}") from error


def cross_entropy(model: nn.Module, data: LabeledData) -> float:
    """Return the mean loss in evaluation mode."""
    return float(F.cross_entropy(predict(model, data.inputs), data.labels))


class Tap:
    """Keep the outputs of some modules during a forward pass.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with Tap([net[0]]) as tap:
    ...     _ = net(torch.zeros(1, 2))
    >>> tap.outputs[0].shape
    torch.Size([1, 3])
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.outputs: list[Tensor] = []

    def __enter__(self) -> Tap:
        """Register the hooks."""
        self.handles = [
            m.register_forward_hook(lambda _m, _i, out: self.outputs.append(out))
            for m in self.modules
        ]
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def head_inputs(model: nn.Module, head: nn.Module, inputs: Tensor) -> Float[Tensor, "n features"]:
    """Return what the classifier sees: the last hidden features, in evaluation mode."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _m, args: seen.append(args[0].cpu()))
    try:
        predict(model, inputs)
    finally:
        handle.remove()
    return torch.cat(seen)
