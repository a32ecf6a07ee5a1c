"""LiRA with 64 shadow models on the digits' network, and stacked training against a loop."""

from __future__ import annotations

import time

import numpy as np
import torch
from backdoor_ft.attacks import plan_attack
from backdoor_ft.data import LabeledData, digits
from backdoor_ft.defenses import Scratch, SuperFT
from backdoor_ft.engine import train
from backdoor_ft.models import SmallCNN, build
from backdoor_ft.schedules import CosineConfig
from backdoor_ft.sequela import shadow_attacks, train_shadows
from backdoor_ft.stacked import fit_loop, fit_stacked
from common import goal, parser, write
from scipy.stats import mannwhitneyu


def products(networks: int, batch: int) -> None:
    """Multiply what the convolutions of `networks` digits' networks multiply in one step, alone.

    Each one forward and its two backward products, as batched products of unfolded images: no way
    of stacking does less.
    """
    for places, inside, outside in ((64, 9, 16), (16, 144, 32), (16, 288, 64)):
        x = torch.rand(networks, batch * places, inside)
        weight = torch.rand(networks, inside, outside)
        slope = torch.rand(networks, batch * places, outside)
        torch.bmm(x, weight)
        torch.bmm(x.mT, slope)
        torch.bmm(slope, weight.mT)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shadows", type=int, default=64)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    clean, test = digits(0)
    plan = plan_attack("badnets", clean, seed=0)
    keep = torch.ones(len(clean), dtype=torch.bool)
    keep[plan.index] = False
    members = clean.subset(keep)
    both = LabeledData(
        torch.cat((members.inputs, test.inputs)), torch.cat((members.labels, test.labels)), 10
    )
    victim = train(SmallCNN, plan.dataset, recipe="digits", seed=0)
    models = {
        "victim": victim,
        "SFT": SuperFT().repair(victim, clean, seed=0).model,
        "scratch": Scratch(batch_size=64).repair(victim, clean, seed=0).model,
    }
    started = time.process_time()
    torch.manual_seed(0)
    shadows = train_shadows([SmallCNN() for _ in range(arguments.shadows)], both, seed=0)
    trained = time.process_time() - started
    rows, apart = [], 0.0
    for name, model in models.items():
        for m in shadow_attacks(model, members, test, shadows):
            u = mannwhitneyu(m.scores[m.members], m.scores[~m.members]).statistic
            area = u / (m.members.sum() * (~m.members).sum())
            apart = max(apart, abs(area - m.auc))
            rows.append([
                name, m.attack, f"{m.auc:.3f} [{m.auc_interval[0]:.3f}, {m.auc_interval[1]:.3f}]",
                f"{m.tpr_at_1:.3f} [{m.tpr_at_1_interval[0]:.3f}, {m.tpr_at_1_interval[1]:.3f}]",
                round(m.tpr_at_01, 4),
            ])  # fmt: skip
    spent = time.process_time() - started
    ratios, table, alone = {}, [], 0.0
    rate = CosineConfig(0.05, 60).learning_rate
    inside = torch.as_tensor(shadows.members[:16])
    for spec in ("cnn", "mlp"):
        fresh = [build(spec, 1, 10, 8, k) for k in range(16)]
        seconds: dict[str, list[float]] = {"loop": [], "stacked": []}
        for _ in range(5):
            for label, work in (("loop", fit_loop), ("stacked", fit_stacked)):
                at = time.process_time()
                work(fresh, both, inside, steps=60, batch_size=64, rate=rate)
                seconds[label].append(time.process_time() - at)
            if spec == "cnn":
                at = time.process_time()
                for _ in range(60):
                    products(16, 64)
                seconds.setdefault("the convolutions' products alone", []).append(
                    time.process_time() - at
                )
        middle = {k: float(np.median(v)) for k, v in seconds.items()}
        alone = alone or middle["the convolutions' products alone"] / middle["loop"]
        ratios[spec] = middle["loop"] / middle["stacked"]
        for label, values in seconds.items():
            spread = f"{min(values):.2f} ... {max(values):.2f}"
            table.append([spec, label, round(middle[label], 2), spread])
    goals = [
        goal(
            f"LiRA on the digits' network with {arguments.shadows} shadow models",
            "at most 10 minutes of processor time",
            f"{spent / 60:.1f} minutes, {trained / 60:.1f} of them training",
            bool(spent <= 600),
        ),
        goal(
            "LiRA: AUC against the rank statistic (scipy)",
            "1e-9",
            f"{apart:.1e} apart at most",
            bool(apart <= 1e-9),
        ),
        goal(
            "training 16 networks at once against a loop on the processor",
            "at least 3 times",
            ", ".join(f"{k} {v:.1f} times" for k, v in ratios.items()),
            bool(min(ratios.values()) >= 3),
            "shadow models take the faster of the two: a loop for convolutions. Their products"
            f" alone, unfolded and batched, take {alone:.1f} times the loop",
        ),
    ]
    tables = [
        {"title": "Attacks", "columns": ["model", "attack", "AUC", "TPR at 1 % FPR", "at .1 %"],
         "rows": rows},
        {"title": "16 networks, 60 steps of 64 samples, 5 interleaved repeats",
         "columns": ["network", "way", "cpu s, median", "spread"], "rows": table},
    ]  # fmt: skip
    write(arguments, "bench_lira", "Membership inference with shadow models", goals, tables)


if __name__ == "__main__":
    main()
