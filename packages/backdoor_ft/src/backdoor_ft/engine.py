"""The training loop: deterministic, resumable, distributed where torchrun started it."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from backdoor_ft.augment import NO_AUGMENT, Augment
from backdoor_ft.data import LabeledData
from backdoor_ft.errors import DivergedError, InputError
from backdoor_ft.files import write_atomically
from backdoor_ft.schedules import CosineConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

WHOLE = StateDictOptions(full_state_dict=True)
Rate = Callable[[int], float]
# (model, inputs, labels, optimizer) -> loss; makes the gradients and the optimiser's step
Update = Callable[[nn.Module, Tensor, Tensor, torch.optim.Optimizer], Tensor]
# (step, model, rate, loss), after each step
OnStep = Callable[[int, nn.Module, float, float], None]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from its first weights."""

    steps: int = 400
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Augment = NO_AUGMENT
    precision: str = "float32"


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(),
    "cifar-small": Recipe(steps=940, batch_size=128, augment=Augment(pad=2)),
    # BackdoorBench's defaults for 50,000 images and 100 epochs, but for the peak rate
    "cifar": Recipe(39_000, 128, 0.05, augment=Augment(pad=4, flip=True)),
    "text": Recipe(steps=400, lr=0.02, weight_decay=0.0),
}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the modules into evaluation mode, and each one back into its own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def predict(
    model: nn.Module, inputs: Float[Tensor, "n ..."], batch_size: int = 1024
) -> Float[Tensor, "n classes"]:
    """Return logits on the CPU, in evaluation mode; the model is left as it was."""
    device = next(model.parameters()).device
    with evaluating(model):
        return torch.cat([model(part.to(device)).cpu() for part in inputs.split(batch_size)])


def batches(count: int, batch_size: int, seed: int, start: int) -> Iterator[Int[Tensor, " b"]]:
    """Yield index batches from iteration `start` on; iteration t is a function of seed and t.

    Every epoch is a permutation, cut into equal batches; a remainder is left for another epoch.
    """
    size = min(batch_size, count)
    per_epoch = count // size
    step = start
    while True:
        epoch = step // per_epoch
        generator = torch.Generator().manual_seed(_mix(seed, epoch))
        order = torch.randperm(count, generator=generator, device="cpu")
        for inside in range(step % per_epoch, per_epoch):
            yield order[inside * size : (inside + 1) * size]
            step += 1


def draw(
    data: LabeledData, batch_size: int, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels of the batches of :func:`batches` from the first on, on a device."""
    inputs, labels = data.inputs.to(device), data.labels.to(device)
    for index in batches(len(data), batch_size, seed, 0):
        where = index.to(device)
        yield inputs[where], labels[where]


def _mix(seed: int, number: int) -> int:
    """Return one seed for a pair, by the finaliser of SplitMix64."""
    z = (seed * 0x9E3779B97F4A7C15 + number + 1) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 27)) & 0x7FFFFFFFFFFFFFFF


def sgd(parameters: Any, momentum: float = 0.9, weight_decay: float = 5e-4) -> torch.optim.SGD:
    """Return SGD whose rate the loop sets before every step."""
    trained = [p for p in parameters if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.0, momentum=momentum, weight_decay=weight_decay)


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# set while a step runs in float16; kept beside the update so that its signature stays simple
_scaler: ContextVar[torch.amp.GradScaler | None] = ContextVar("scaler", default=None)


def _check_precision(device: torch.device, precision: str) -> torch.amp.GradScaler | None:
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r} is not allowed: {', '.join(PRECISIONS)}")
    return torch.amp.GradScaler(device.type) if precision == "float16" else None


@contextmanager
def mixed(
    device: torch.device, precision: str, scaler: torch.amp.GradScaler | None = None
) -> Iterator[None]:
    """Run a step under autocast, with a scaler of the loss for float16."""
    kind = PRECISIONS[precision]
    token = _scaler.set(scaler)
    try:
        with torch.autocast(device.type, kind) if kind is not None else nullcontext():
            yield
    finally:
        _scaler.reset(token)


def backward(loss: Tensor) -> None:
    """Make the gradients of a loss, scaled where the step runs in float16."""
    scaler = _scaler.get()
    (loss if scaler is None else scaler.scale(loss)).backward()


def step_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Step, with the gradients scaled back; a step with gradients that overflowed is left out."""
    scaler = _scaler.get()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def plain_update(
    model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer
) -> Tensor:
    """Cross-entropy step; on a GPU without memory the batch is cut into halves and tried again."""
    pieces = 1
    while True:
        optimizer.zero_grad(set_to_none=True)
        try:
            total = torch.zeros((), device=x.device)
            for px, py in zip(x.chunk(pieces), y.chunk(pieces)):
                loss = F.cross_entropy(model(px), py) * (len(px) / len(x))
                backward(loss)
                total += loss.detach()
            step_optimizer(optimizer)
            return total
        except torch.OutOfMemoryError:
            if pieces >= len(x):
                raise
            pieces *= 2


def fit(
    model: nn.Module,
    data: LabeledData,
    *,
    steps: int,
    batch_size: int,
    rate: Rate,
    optimizer: torch.optim.Optimizer | None = None,
    update: Update = plain_update,
    augment: Augment = NO_AUGMENT,
    seed: int = 0,
    on_step: OnStep | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    precision: str = "float32",
    shard: bool = False,
) -> list[dict[str, float]]:
    """Train a network in place.

    Parameters
    ----------
    model : network; left in training mode
    data : training set
    steps, batch_size : iterations and samples of one; a smaller data set is one batch
    rate : learning rate of an iteration, set before the step
    optimizer : any; SGD with momentum .9 and weight decay 5e-4 without it
    update : what one step does
    augment : applied to each batch
    seed : of order and augmentation
    on_step : called after each step
    checkpoint : file that the state goes to, whole even where it is sharded, and that a later call
        goes on from, with any number of processes
    checkpoint_every : iterations between two writes
    precision : "float32", or "bfloat16" or "float16" for autocast; float16 scales the loss, as far
        as `update` steps through the optimiser that it is given and calls :func:`backward`
    shard : split parameters, gradients and the optimiser's state over the processes (FSDP2), for
        networks too large for one; `update` and `on_step` then see sharded parameters, and `model`
        gets the trained weights at the end. Without several processes it changes nothing

    Returns
    -------
    rows of step, lr, loss

    Raises
    ------
    DivergedError
        The loss is not finite.
    """
    device = next(model.parameters()).device
    optimizer = optimizer or sgd(model.parameters())
    log: list[dict[str, float]] = []
    state: dict[str, Any] | None = None
    if checkpoint is not None and checkpoint.exists():
        state, log = _resume(checkpoint, model)
    model.train()
    scaler = _check_precision(device, precision)
    distributed = dist.is_available() and dist.is_initialized()
    world, rank = (dist.get_world_size(), dist.get_rank()) if distributed else (1, 0)
    wrapped = origin = model
    if distributed and shard:
        wrapped = model = _sharded(origin)
        optimizer = type(optimizer)(wrapped.parameters(), **optimizer.defaults)
    elif distributed:
        wrapped = nn.parallel.DistributedDataParallel(model)
    if state is not None:
        _load_optimizer(checkpoint, model, optimizer, state)
    order = batches(len(data), batch_size, seed, len(log))
    inputs, labels = data.inputs, data.labels
    if device.type != "cpu":
        inputs, labels = inputs.to(device), labels.to(device)
    for step in range(len(log), steps):
        index = next(order)
        x, y = inputs[index.to(device)], labels[index.to(device)]
        x = augment(x, torch.Generator().manual_seed(_mix(seed + 1, step)))
        if world > 1:
            x, y = x[rank::world], y[rank::world]
        lr = rate(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with mixed(device, precision, scaler):
            loss = float(update(wrapped, x, y, optimizer))
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {step}, learning rate {lr:.3g}")
        log.append({"step": step, "lr": lr, "loss": loss})
        if on_step is not None:
            on_step(step, model, lr, loss)
        if checkpoint is not None and (step + 1) % checkpoint_every == 0:
            _save(checkpoint, model, optimizer, log, rank)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise DivergedError(f"a weight is not finite after {steps} steps")
    if model is not origin:
        origin.load_state_dict(get_model_state_dict(model, options=WHOLE))
    return log


def _sharded(model: nn.Module) -> nn.Module:
    """Return a copy whose parts with parameters are sharded, each gathered only when it runs."""
    from torch.distributed.fsdp import fully_shard

    own = copy.deepcopy(model)
    for part in own.children():
        if any(True for _ in part.parameters()):
            fully_shard(part)
    fully_shard(own)
    return own


def _save(
    path: Path, model: nn.Module, optimizer: Any, log: list[dict[str, float]], rank: int
) -> None:
    """Write the whole state, gathered where it is sharded: all processes come here, one writes."""
    state = {
        "model": get_model_state_dict(model, options=WHOLE),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=WHOLE),
        "log": log,
    }
    if rank == 0:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue())


def _resume(path: Path, model: nn.Module) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Load the weights and return the optimiser's state, whole, and the log."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        return state["optimizer"], state["log"]
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise _foreign(path) from error


def _load_optimizer(
    path: Path | None, model: nn.Module, optimizer: Any, state: dict[str, Any]
) -> None:
    try:
        set_optimizer_state_dict(model, optimizer, state, options=WHOLE)
    except (RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise _foreign(path) from error


def _foreign(path: Path | None) -> InputError:
    return InputError(f"checkpoint={str(path)!r} is not of this training: remove it to begin again")


def train(
    model: nn.Module | Callable[[], nn.Module],
    data: LabeledData,
    *,
    recipe: str | Recipe = "digits",
    seed: int = 0,
    on_step: OnStep | None = None,
    checkpoint: Path | None = None,
    shard: bool = False,
) -> nn.Module:
    """Train a network and return it in evaluation mode.

    Parameters
    ----------
    model : network that is trained in place, or a factory that is called under the seed
    data : training set, poisoned or clean
    recipe : name in ``RECIPES`` or a :class:`Recipe`
    seed : of weights (with a factory), order and augmentation
    on_step, checkpoint, shard : as in :func:`fit`

    Raises
    ------
    InputError
        The recipe is not known.
    DivergedError
        The loss is not finite.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise InputError(f"recipe={recipe!r} is not allowed: one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if not isinstance(model, nn.Module):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model()
    fit(
        model,
        data,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        rate=CosineConfig(recipe.lr, recipe.steps).learning_rate,
        optimizer=sgd(model.parameters(), recipe.momentum, recipe.weight_decay),
        augment=recipe.augment,
        seed=seed,
        on_step=on_step,
        checkpoint=checkpoint,
        precision=recipe.precision,
        shard=shard,
    )
    return model.eval()
