"""Repair without knowing the trigger: patterns, range test, decoys, guard, rollback."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_ft.data import LabeledData
from backdoor_ft.defenses.base import (
    Defense,
    RepairResult,
    check_fit,
    cross_entropy,
    displacement,
    make,
)
from backdoor_ft.defenses.tuning import SuperFT
from backdoor_ft.defenses.unlearning import STANDS_OUT, Patterns, Unlearn, universal_patterns
from backdoor_ft.engine import OnStep, fit, predict, sgd
from backdoor_ft.errors import DivergedError, InputError
from backdoor_ft.metrics import accuracy, attack_success, wilson
from backdoor_ft.poison import PoisonPlan, poison
from backdoor_ft.schedules import dose
from backdoor_ft.triggers import SIG, BadNets, Blended, RareWord, Trigger

# a copy of the model with a planted backdoor, its plan, and the patterns found in it
Decoy = tuple[nn.Module, PoisonPlan, Patterns | None]
ERASED = 0.05
CLIP = 1.0  # largest norm of the gradient


def range_test(
    model: nn.Module, clean: LabeledData, *, seed: int = 0, steps: int = 60, highest: float = 10.0
) -> float:
    """Return the rate at which training on clean data breaks down.

    The rate grows geometrically from 1e-3 to `highest`, one step each; the test ends when the loss
    passes three times that of a uniform guess, or is not finite. The gradient is clipped as in the
    tuning that follows.
    """
    work = copy.deepcopy(model)
    optimizer = sgd(work.parameters())
    optimizer.register_step_pre_hook(lambda *_: clipped(work))
    limit = 3 * math.log(clean.num_classes)
    reached = [1e-3]

    class _Stop(Exception):  # noqa: N818
        pass

    def watch(step: int, m: nn.Module, lr: float, loss: float) -> None:
        if loss > limit:
            raise _Stop
        reached.append(lr)

    with suppress(_Stop, DivergedError):
        fit(
            work,
            clean,
            steps=steps,
            batch_size=128,
            rate=lambda step: 1e-3 * (highest / 1e-3) ** (step / (steps - 1)),
            optimizer=optimizer,
            seed=seed,
            on_step=watch,
        )
    return reached[-1]


def clipped(model: nn.Module) -> None:
    """Clip the gradient as the settings of :func:`strengths` do."""
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)


def decoy_triggers(clean: LabeledData, seed: int) -> list[Trigger]:
    """Return a patch, a blend and a sinusoid that have nothing to do with the attacker's."""
    if clean.is_text:
        unused = int(clean.inputs.max())
        return [RareWord(token=unused, position=p) for p in (0, 1)]
    size = max(clean.inputs.shape[2] // 8, 2)
    room = clean.inputs.shape[2] - size
    place = torch.randint(0, room + 1, (2,), generator=torch.Generator().manual_seed(seed))
    return [
        BadNets(size, (int(place[0]), int(place[1])), "random", seed + 11),
        Blended(0.2, seed + 12),
        SIG(0.2, frequency=max(clean.inputs.shape[3] // 5, 1)),
    ]


def plant(
    model: nn.Module,
    clean: LabeledData,
    trigger: Trigger,
    seed: int,
    avoid: tuple[int, ...] = (),
) -> tuple[nn.Module, PoisonPlan]:
    """Plant one decoy into a copy of the model by a short fine-tuning, at none of some classes."""
    free = [c for c in range(clean.num_classes) if c not in avoid] or [0]
    draws = torch.Generator().manual_seed(seed)
    target = free[int(torch.randint(len(free), (), generator=draws))]
    plan = poison(clean, trigger=trigger, target=target, ratio=0.2, seed=seed)
    victim = copy.deepcopy(model)
    fit(victim, plan.dataset, steps=150, batch_size=64, rate=lambda _: 0.02, seed=seed)
    return victim.eval(), plan


def strengths(limit: float, unlearn: bool = False) -> list[SuperFT]:
    """Return settings from the weakest to the strongest.

    The gradient is clipped, without which a network that has no batch normalisation breaks at
    these rates. All but the strongest ask in phase 2 for the victim's softened answers to the
    clean images: that keeps accuracy where they are few, and keeps a little of the victim.

    Parameters
    ----------
    limit : rate at which training breaks down
    unlearn : begin with settings that unlearn the smallest universal patterns
    """
    kinds = [(p, share) for p, share in ((0.3, 0.9), (0.6, 0.9), (1.0, 0.7), (1.5, 0.7), (1.5, 0.0))
             if p <= limit] or [(limit / 2, 0.5)]  # fmt: skip
    ladder = [
        SuperFT(lr_max1=p, lr_max2=min(0.1, p / 2), phase1=200, phase2=240, batch_size=64,
                average=0.5, clip=CLIP, distill=share)
        for p, share in kinds
    ]  # fmt: skip
    if not unlearn:
        return ladder
    small = [Unlearn(lr_max1=p, lr_max2=min(0.05, p)) for p in (0.03, 0.1, 0.3) if p <= limit]
    return [*small, *ladder[-2:]]


def seconds(budget: str | float | None) -> float:
    """Read a budget such as "60s", "5m", or seconds."""
    if budget is None:
        return math.inf
    if isinstance(budget, int | float) and budget > 0:
        return float(budget)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", str(budget))
    if found is None or float(found[1]) <= 0:
        raise InputError(f"budget={budget!r} is not allowed: for example '60s', '5m', or seconds")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def guard(
    model: nn.Module, repaired: nn.Module, held: LabeledData, max_acc_drop: float
) -> tuple[bool, float, float]:
    """Return whether accuracy on held-out clean data fell by no more than allowed, and both."""
    before, after = accuracy(model, held), accuracy(repaired, held)
    return after >= before - max_acc_drop - 1e-12, before, after


def auto(
    model: nn.Module,
    clean: LabeledData,
    *,
    val: LabeledData | None = None,
    max_acc_drop: float = 0.01,
    budget: str | float | None = None,
    screen: bool = True,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> RepairResult:
    """Super-fine-tune a model whose trigger nobody knows.

    1. The smallest universal pattern of every class is searched. Where no class stands out the
       model is returned as it is: there is nothing to repair that this can see.
    2. A range test on the clean data bounds the peak rate.
    3. Decoy backdoors are planted into copies; the weakest setting that erases them is chosen.
    4. The model itself is tuned, from the next stronger setting on. A result is kept where
       accuracy on held-out clean data stays within the budget and no class stands out any more;
       of those within the budget the one with the least remainder is taken, and the victim is
       returned if all fail.

    Without the screen (token ids, or ``screen=False``) the chosen setting runs 1.5 times as long,
    the strongest first, and the first result within the budget is kept. The decoys' ASR in the
    notes is evidence, not proof.

    Parameters
    ----------
    model : victim, or a clean model; never changed
    clean : clean data
    val : held-out clean data for the guard; a fifth of `clean` without it
    max_acc_drop : accuracy that may be lost on the held-out data
    budget : wall time such as "60s" after which no further setting is tried
    screen : search universal patterns; triggers that differ from image to image, or that move
        pixels, leave none: False repairs whatever the model looks like
    seed : of everything random
    on_step : called after each step of the final tuning
    """
    check_fit(model, clean)
    if not 0 <= max_acc_drop < 1:
        raise InputError(f"max_acc_drop={max_acc_drop} is not allowed: 0 <= max_acc_drop < 1")
    limit_s, started, processor = seconds(budget), time.monotonic(), time.process_time()

    def left(share: float = 1.0) -> bool:
        return time.monotonic() - started <= share * limit_s

    data, held = (clean, val) if val is not None else _held_out(clean, seed)
    notes: list[str] = []
    known: Patterns | None = None
    screen = screen and not clean.is_text
    if screen:
        known = universal_patterns(model, data, seed=seed)
        notes.append(
            f"smallest universal pattern: class {known.suspects[0]},"
            f" {known.ratio:.2f} of the median norm"
        )
        if known.ratio >= STANDS_OUT:
            notes.append("no class stands out: the model is returned as it is; screen=False repairs"
                         " it all the same")  # fmt: skip
            return _unchanged(model, notes, time.process_time() - processor, True)
    peak = range_test(model, data, seed=seed)
    notes.append(f"range test: rates up to {peak:.3g}")
    ladder = strengths(peak, screen)
    decoys: list[Decoy] = []
    for number, trigger in enumerate(decoy_triggers(data, seed)):
        if not left(1 / 4):
            break
        decoy, plan = plant(
            model, data, trigger, seed + number, tuple(known.suspects) if known else ()
        )
        if attack_success(decoy, held, plan) < 0.8:
            continue
        patterns = universal_patterns(decoy, data, seed=seed) if screen else None
        # what the screen does not see says nothing about settings that rest on it
        if patterns is None or plan.target in patterns.suspects:
            decoys.append((decoy, plan, patterns))
    if not decoys:
        first = "weakest" if screen else "strongest"
        notes.append(f"no decoy could be planted: the {first} setting is tried first")
    chosen = (
        0
        if screen and not decoys
        else _weakest(ladder, decoys, model, data, held, seed, notes, lambda: left(1 / 2))
    )
    if screen and chosen + 1 < len(ladder) and isinstance(ladder[chosen + 1], Unlearn):
        chosen += 1  # a margin, as the decoys are not the attacker's
    # what erased the decoys and all that is stronger, then weaker ones; with a screen the weakest
    # first, for its result is looked at; without one the strongest first, twice
    strong = list(range(chosen, len(ladder)))
    weak = [(level, seed) for level in range(chosen - 1, -1, -1)]
    if screen:
        order = [(level, seed) for level in strong] + weak
    else:
        order = [
            (level, seed + 1000 * again) for again in range(2) for level in strong[::-1]
        ] + weak
    best: tuple[float, SuperFT, RepairResult] | None = None
    for level, draws in order:
        setting = ladder[level]
        if not screen:
            setting = replace(setting, phase1=int(1.5 * setting.phase1))
        result = _informed(setting, known).repair(model, data, seed=draws, on_step=on_step)
        holds, before, after = guard(model, result.model, held, max_acc_drop)
        note = (
            f"{_named(setting)}, {setting.phase1} + {setting.phase2} steps: held-out accuracy"
            f" {before:.3f} -> {after:.3f}, displacement {result.displacement:.2f}"
        )
        remains = 1.0
        if screen and holds:
            remains = universal_patterns(result.model, data, seed=seed).ratio
            note += f", smallest pattern {remains:.2f} of the median"
        notes.append(note)
        if holds and (best is None or remains > best[0]):
            best = (remains, setting, result)
        if best is not None and best[0] >= STANDS_OUT:
            break
        if not left():
            notes.append("the time budget is spent")
            break
    spent = time.process_time() - processor
    if best is None:
        notes.append(f"no setting kept accuracy within {max_acc_drop}: the victim is returned")
        return _unchanged(model, notes, spent, False)
    _, margin, result = best
    return RepairResult(
        result.model,
        "auto",
        {k: v for k, v in result.config.items() if k != "known"},
        result.log,
        spent,
        dose([row["lr"] for row in result.log], margin.momentum),
        displacement(result.model, model),
        True,
        tuple(notes) + result.notes,
    )


def _weakest(
    ladder: list[SuperFT],
    decoys: list[Decoy],
    model: nn.Module,
    data: LabeledData,
    held: LabeledData,
    seed: int,
    notes: list[str],
    left: Callable[[], bool],
) -> int:
    """Return the level of the weakest setting that erases all decoys; the last one without any."""
    for level, setting in enumerate(ladder[:-1]):
        if not decoys or not left():
            break
        found, erased = [], []
        for decoy, plan, patterns in decoys:
            tuned = _informed(setting, patterns).repair(decoy, data, seed=seed).model
            count = len(plan.victims(held))
            found.append(attack_success(tuned, held, plan))
            # a small held-out set cannot tell .05 from a little more: the interval decides
            low = wilson(round(found[-1] * count), count).low
            erased.append(low <= ERASED + _floor(model, held, plan))
            if not erased[-1]:
                break
        names = ", ".join(f"{p.trigger.name} {a:.2f}" for (_, p, _), a in zip(decoys, found))
        notes.append(f"decoys at {_named(setting)}: ASR {names}")
        if all(erased):
            return level
    return len(ladder) - 1


def _unchanged(
    model: nn.Module, notes: list[str], cpu_seconds: float, accepted: bool
) -> RepairResult:
    kept = copy.deepcopy(model).eval()
    return RepairResult(kept, "auto", {}, [], cpu_seconds, 0.0, 0.0, accepted, tuple(notes))


def _informed(setting: SuperFT, patterns: Patterns | None) -> SuperFT:
    """Return the setting with patterns that were already searched, where it uses any."""
    return replace(setting, known=patterns) if isinstance(setting, Unlearn) else setting


def _named(setting: SuperFT) -> str:
    kind = "unlearning, " if isinstance(setting, Unlearn) else ""
    return f"{kind}peak {setting.lr_max1:g}, {setting.distill:g} distilled"


def _held_out(clean: LabeledData, seed: int) -> tuple[LabeledData, LabeledData]:
    count = max(len(clean) // 5, 1)
    if len(clean) - count < 2:
        raise InputError(
            f"clean has {len(clean)} samples: 'auto' holds a fifth back, pass val or at least 3"
        )
    held, rest = clean.split(count, seed)
    return rest, held


def _floor(model: nn.Module, held: LabeledData, plan: PoisonPlan) -> float:
    """Return the share of untriggered inputs that the model sends to the target anyway."""
    inputs: Tensor = plan.victims(held).inputs
    return float((predict(model, inputs).argmax(1) == plan.target).float().mean())


def repair(
    model: nn.Module,
    clean: LabeledData,
    *,
    method: str | Defense = "auto",
    max_acc_drop: float | None = 0.01,
    budget: str | float | None = None,
    val: LabeledData | None = None,
    poisoned: LabeledData | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    **config: Any,
) -> RepairResult:
    """Return a repaired copy of a model that is no worse than a stated accuracy budget.

    Parameters
    ----------
    model : victim; never changed
    clean : clean data of its task
    method : "auto", the name of a defence, or a configured one
    max_acc_drop : accuracy that may be lost on held-out clean data; None switches the guard off
    budget : wall time for "auto", such as "60s"
    val : held-out clean data; a fifth of `clean` without it
    poisoned : the poisoned training set, for the defences that need it
    seed : of everything random
    on_step : called after each training step
    config : parameters of the named defence, or `screen` of :func:`auto`

    Returns
    -------
    RepairResult
        ``accepted`` is False, and ``model`` a copy of the victim, where the guard refused.

    Raises
    ------
    InputError
        An argument is not allowed, or the data do not fit the model.
    DivergedError
        Training was not finite at any of three learning rates.
    """
    if method == "auto":
        if unknown := set(config) - {"screen"}:
            raise InputError(f"method='auto' has no such parameter: {', '.join(sorted(unknown))}")
        drop = 1 - 1e-9 if max_acc_drop is None else max_acc_drop
        return auto(
            model, clean, val=val, max_acc_drop=drop, budget=budget, seed=seed, on_step=on_step,
            **config,
        )  # fmt: skip
    defense = method if isinstance(method, Defense) else make(method, **config)
    if max_acc_drop is None:
        return defense.repair(model, clean, val=val, poisoned=poisoned, seed=seed, on_step=on_step)
    if not 0 <= max_acc_drop < 1:
        raise InputError(f"max_acc_drop={max_acc_drop} is not allowed: 0 <= max_acc_drop < 1")
    check_fit(model, clean)
    data, held = (clean, val) if val is not None else _held_out(clean, seed)
    result = defense.repair(model, data, val=val, poisoned=poisoned, seed=seed, on_step=on_step)
    holds, before, after = guard(model, result.model, held, max_acc_drop)
    loss = cross_entropy(result.model, held)
    note = f"held-out accuracy {before:.3f} -> {after:.3f}, loss {loss:.3f}"
    if holds:
        return replace(result, notes=(*result.notes, note))
    note += f": more than {max_acc_drop} lost, the victim is returned"
    return replace(
        result,
        model=copy.deepcopy(model).eval(),
        accepted=False,
        displacement=0.0,
        notes=(*result.notes, note),
    )
