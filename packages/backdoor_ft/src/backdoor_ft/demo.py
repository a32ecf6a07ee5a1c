"""The demo: the paper's headline on scikit-learn's digits, computed on the spot."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backdoor_ft.attacks import PRESETS, plan_attack
from backdoor_ft.data import LabeledData, digits
from backdoor_ft.defenses import FT, BNRecalibration, Defense, HeadOnly, Scratch, SuperFT
from backdoor_ft.engine import OnStep, train
from backdoor_ft.environment import describe
from backdoor_ft.files import make_folder, write_atomically
from backdoor_ft.metrics import accuracy, attack_success, defense_effectiveness, score, wilson
from backdoor_ft.models import SmallCNN
from backdoor_ft.poison import PoisonPlan
from backdoor_ft.report import bars, figure_png, render, roc_figure, time_line, trigger_gallery
from backdoor_ft.sequela import sequela, train_shadows
from backdoor_ft.triggers import RareWord

ATTACKS = ("badnets", "blended", "sig")
DEFENSES: dict[str, Defense] = {
    "FT": FT(batch_size=64),
    "SFT": SuperFT(),
    "scratch": Scratch(batch_size=64),
    "head only": HeadOnly(steps=200, batch_size=64),
    "BN statistics": BNRecalibration(steps=50),
}


def watcher(
    rows: list[dict[str, float]], test: LabeledData, plan: PoisonPlan, every: int = 10
) -> OnStep:
    """Return a callback that notes learning rate, ACC and ASR, the latter every few steps."""

    def watch(step: int, model: nn.Module, lr: float, loss: float) -> None:
        found = {"acc": math.nan, "asr": math.nan}
        if step % every == 0:
            found = {"acc": accuracy(model, test), "asr": attack_success(model, test, plan)}
        rows.append({"step": step, "lr": lr, **found})

    return watch


def run_demo(
    out: Path, seed: int = 0, on_progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run the demo and write result.json, report.html and the figures.

    Parameters
    ----------
    out : folder, created
    seed : of data split, attacks and repairs
    on_progress : called with what was finished

    Returns
    -------
    the content of result.json
    """
    started = time.monotonic()
    make_folder(out)
    clean, test = digits(seed)
    scores: dict[tuple[str, str], Any] = {}
    cost: dict[str, float] = {}
    kept: dict[tuple[str, str], Any] = {}
    rows: list[dict[str, float]] = []
    for attack_name in ATTACKS:
        plan = plan_attack(attack_name, clean, seed=seed)
        victim = train(SmallCNN, plan.dataset, recipe="digits", seed=seed)
        scores[attack_name, "none"] = score(victim, test, plan)
        for name, defense in DEFENSES.items():
            if name not in ("FT", "SFT", "scratch") and attack_name != "blended":
                continue
            watched = attack_name == "blended" and name == "SFT"
            watch = watcher(rows, test, plan) if watched else None
            repaired = defense.repair(victim, clean, seed=seed, on_step=watch)
            scores[attack_name, name] = score(repaired.model, test, plan)
            cost[name] = cost.get(name, 0) + repaired.cpu_seconds
            kept[attack_name, name] = repaired.model
            on_progress(f"{attack_name}: {name}")
        kept[attack_name, "none"], kept[attack_name, "plan"] = victim, plan
    found = _audits(clean, test, kept, seed)
    on_progress("audits")

    claims = _claims(scores, found)
    triggers = [
        plan_attack(name, clean).trigger
        for name in PRESETS
        if PRESETS[name][0] is not RareWord and name != "sig_clean_label"
    ]
    image = int(torch.nonzero(test.labels == 3)[0])
    figures = [
        (
            "success.png",
            "Attack success before and after: fine-tuning leaves the backdoor in, super-fine-tuning"
            " takes it out",
            bars(
                ATTACKS,
                {
                    name: [scores[a, name].attack_success.value for a in ATTACKS]
                    for name in ("none", "FT", "SFT", "scratch")
                },
                "ASR",
                "attack success rate on digits (scratch: the floor of a model without backdoor)",
            ),
        ),
        (
            "timeline.png",
            "Learning rate, accuracy and attack success along one repair",
            time_line(rows, SuperFT().phase1, "super-fine-tuning against Blended"),
        ),
        ("triggers.png", "Trigger gallery", trigger_gallery(test, triggers, image)),
        (
            "reinjection.png",
            "Re-injection: an attacker tunes each model on 20 poisons and 180 clean samples",
            found.plot(),
        ),
        (
            "membership.png",
            "Membership inference by LiRA, before and after the repair",
            roc_figure(
                {name: next(m for m in ms if m.attack == "lira")
                 for name, ms in found.membership.items()}
            ),
        ),
    ]  # fmt: skip
    for name, _, figure in figures:
        write_atomically(out / name, figure_png(figure))
    result = {
        "schema_version": 1,
        "package": "backdoor_ft",
        "version": version("backdoor-ft"),
        "seed": seed,
        "claims": claims,
        "figures": [{"path": name, "title": title} for name, title, _ in figures],
        "seconds": round(time.monotonic() - started, 1),
        "environment": describe(torch.get_num_threads()),
    }
    page = render("demo.html.j2", result=result, lead=_LEAD, tables=_tables(scores, found, cost))
    write_atomically(out / "report.html", page.encode())
    write_atomically(out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


_LEAD = (
    "A backdoored digit classifier answers every image with the trigger by the attacker's class."
    " Fine-tuning on clean data leaves the trigger in; super-fine-tuning, the same training under"
    " two phases of cyclic learning rates, takes it out and keeps accuracy."
)


def _audits(
    clean: LabeledData, test: LabeledData, kept: dict[tuple[str, str], Any], seed: int
) -> Any:
    plan: PoisonPlan = kept["badnets", "plan"]
    keep = torch.ones(len(clean), dtype=torch.bool)
    keep[plan.index] = False
    members = clean.subset(keep)
    both = LabeledData(
        torch.cat((members.inputs, test.inputs)), torch.cat((members.labels, test.labels)), 10
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = [SmallCNN() for _ in range(8)]
    shadows = train_shadows(fresh, both, steps=200, group=8, seed=seed)
    return sequela(
        before=kept["badnets", "none"],
        after=kept["badnets", "SFT"],
        reference=kept["badnets", "scratch"],
        plan=plan,
        test=test,
        audits=("mia", "mia.lira", "reinject", "retuning", "qra", "bec", "calibration"),
        shadows=shadows,
        seed=seed,
    )


def _mean(scores: dict[tuple[str, str], Any], name: str, figure: str) -> list[float]:
    return [getattr(scores[a, name], figure).value for a in ATTACKS]


def _claims(scores: dict[tuple[str, str], Any], found: Any) -> list[dict[str, Any]]:
    how = "digits, 1,200 training images, 10 % poisoned, small CNN; backdoor-ft demo"

    def row(name: str, paper: Any, measured: Any, met: bool | None, unit: str = "") -> dict:
        return {
            "name": name, "paper": paper, "measured": measured, "unit": unit, "met": met,
            "how": how,
        }  # fmt: skip

    asr = {n: _mean(scores, n, "attack_success") for n in ("none", "FT", "SFT", "scratch")}
    acc = {n: _mean(scores, n, "accuracy") for n in ("none", "SFT")}
    blended = {n: scores["blended", n] for n in ("none", "FT", "SFT", "head only", "BN statistics")}
    drop = max(b - a for b, a in zip(acc["none"], acc["SFT"]))
    loss = {k: next(m for m in v if m.attack == "loss").auc for k, v in found.membership.items()}
    halves = {c.name: c.half for c in found.curves}

    def half(name: str) -> str:
        return "never" if halves[name] is None else str(halves[name])

    values = found.values
    return [
        row("The attacks implant: lowest ASR of three before repair", 0.998,
            round(min(asr["none"]), 4), min(asr["none"]) >= 0.9),
        row("Plain fine-tuning fails: ASR of Blended after FT", 0.978,
            round(blended["FT"].attack_success.value, 4),
            blended["FT"].attack_success.value >= 0.9),
        row("Super-fine-tuning removes Blended: ASR after SFT", 0.081,
            f"{blended['SFT'].attack_success}", blended["SFT"].attack_success.value <= 0.081),
        row("Super-fine-tuning removes BadNets: ASR after SFT", 0.009,
            f"{scores['badnets', 'SFT'].attack_success}",
            scores["badnets", "SFT"].attack_success.value <= 0.009),
        row("At high utility: largest loss of accuracy over the attacks", None,
            round(100 * drop, 2), drop <= 0.005, "points"),
        row("The cure is real: lowest robust accuracy after SFT", None,
            round(min(_mean(scores, "SFT", "robust_accuracy")), 3), None),
        row("Tuning the head alone fails: ASR of Blended", None,
            round(blended["head only"].attack_success.value, 4),
            blended["head only"].attack_success.value >= 0.9),
        row("Control: batch-normalisation statistics alone, ASR of Blended", None,
            round(blended["BN statistics"].attack_success.value, 4), None),
        row("Control: the floor, highest ASR of a model trained from scratch", None,
            round(max(asr["scratch"]), 4), None),
        row("Membership inference does not become easier: AUC by loss, after against before",
            "falls", f"{loss['after']:.3f} against {loss['before']:.3f}",
            loss["after"] <= loss["before"]),
        row("Re-injection: steps to ASR .5, after SFT (never-backdoored model)",
            "easier after any defence", f"{half('after')} ({half('reference')})", None),
        row("Retuning attack on the repaired model: ASR (never-backdoored model)", None,
            f"{values['retuning']['after']:.3f} ({values['retuning']['reference']:.3f})",
            values["retuning"]["after"] <= 0.2),
        row("Query-based reactivation: ASR (never-backdoored model)", None,
            f"{values['qra']['after']:.3f} ({values['qra']['reference']:.3f})",
            values["qra"]["after"] <= 0.2),
    ]  # fmt: skip


def _tables(
    scores: dict[tuple[str, str], Any], found: Any, cost: dict[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for attack_name in ATTACKS:
        before = scores[attack_name, "none"]
        for name in ("none", *DEFENSES):
            s = scores.get((attack_name, name))
            if s is None:
                continue
            der = defense_effectiveness(
                before.accuracy.value, before.attack_success.value,
                s.accuracy.value, s.attack_success.value,
            )  # fmt: skip
            cells = [str(s.accuracy), str(s.attack_success), str(s.robust_accuracy)]
            rows.append([f"{name}, {attack_name}", *cells, f"{der:.3f}"])
    membership = [
        [f"{name}, {m.attack}", f"{m.auc:.3f} [{m.auc_interval[0]:.3f}, {m.auc_interval[1]:.3f}]",
         f"{m.tpr_at_1:.3f} [{m.tpr_at_1_interval[0]:.3f}, {m.tpr_at_1_interval[1]:.3f}]",
         f"{m.tpr_at_01:.3f}"]
        for name, ms in found.membership.items() for m in ms
    ]  # fmt: skip
    names = ("before", "after", "reference")
    audits = [
        [audit, *(f"{v[n]:.3f}" if n in v else "–" for n in names)]
        for audit, v in found.values.items()
    ]
    example = wilson(0, 540)
    spent = ", ".join(f"{name} {np.round(s, 1)} s" for name, s in cost.items())
    return [
        {
            "title": "Before and after",
            "columns": ["repair, attack", "ACC", "ASR", "RA", "DER"],
            "rows": rows,
            "note": "95 % Wilson intervals; ASR and RA leave the target class out (0 of 540 is"
            f" {example}). Processor time in all: {spent}.",
        },
        {
            "title": "Membership inference against the model",
            "columns": ["model, attack", "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR"],
            "rows": membership,
            "note": "Members and others balanced by class; bootstrap intervals; 8 shadow models.",
        },
        {
            "title": "Is the backdoor gone or asleep?",
            "columns": ["audit", *names],
            "rows": audits,
            "note": " ".join(found.notes) or "No audit found more than its bar allows.",
        },
    ]
