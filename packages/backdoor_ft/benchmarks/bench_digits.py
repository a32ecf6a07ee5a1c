"""The digits headline: three attacks, five seeds, fine-tuning against super-fine-tuning."""

from __future__ import annotations

import numpy as np
import torch
from backdoor_ft.attacks import plan_attack
from backdoor_ft.data import digits
from backdoor_ft.defenses import FT, Scratch, SuperFT, Unlearn
from backdoor_ft.engine import train
from backdoor_ft.metrics import score
from backdoor_ft.models import SmallCNN
from backdoor_ft.sequela import metric_attacks
from common import goal, parser, write

ATTACKS = ("badnets", "blended", "sig")
REPAIRS = {
    "FT": FT(),
    "SFT": SuperFT(),
    "SFT without mixup": SuperFT(phase2=120, mixup=False),
    "unlearn": Unlearn(),
    "scratch": Scratch(batch_size=64),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, found = [], {}
    for name in ATTACKS:
        for seed in range(arguments.seeds):
            clean, test = digits(seed)
            plan = plan_attack(name, clean, seed=seed)
            victim = train(SmallCNN, plan.dataset, recipe="digits", seed=seed)
            keep = torch.ones(len(clean), dtype=torch.bool)
            keep[plan.index] = False
            members = clean.subset(keep)
            for repair in ("none", *REPAIRS):
                model, seconds = victim, 0.0
                if repair != "none":
                    result = REPAIRS[repair].repair(victim, clean, seed=seed)
                    model, seconds = result.model, result.cpu_seconds
                s = score(model, test, plan)
                auc = metric_attacks(model, members, test, seed)[0].auc
                values = (
                    s.accuracy.value, s.attack_success.value, s.robust_accuracy.value, auc, seconds
                )  # fmt: skip
                found.setdefault((name, repair), []).append(values)
                rows.append([name, seed, repair, *(round(v, 4) for v in values)])
                print(rows[-1], flush=True)
    table = {k: np.array(v) for k, v in found.items()}
    lowest = min(table[a, "none"][:, 1].min() for a in ATTACKS)
    ft = min(table[a, "FT"][:, 1].min() for a in ATTACKS)
    drop = max((table[a, "none"][:, 0] - table[a, "SFT"][:, 0]).max() for a in ATTACKS)
    rise = max((table[a, "SFT"][:, 3] - table[a, "none"][:, 3]).max() for a in ATTACKS)
    worst = {a: table[a, "SFT"][:, 1].max() for a in ATTACKS}
    seeds = f"over {arguments.seeds} seeds"
    goals = [
        goal("digits: ASR of the victims", "at least .98 in every seed", f"{lowest:.3f} lowest",
             bool(lowest >= 0.98)),
        goal("digits: ASR after plain fine-tuning", "at least .90", f"{ft:.3f} lowest",
             bool(ft >= 0.9)),
        *(
            goal(f"digits: ASR after super-fine-tuning, {a}", f"at most {bar}",
                 f"{worst[a]:.4f} highest {seeds}, mean {table[a, 'SFT'][:, 1].mean():.4f}",
                 bool(worst[a] <= bar))
            for a, bar in (("badnets", 0.01), ("sig", 0.01), ("blended", 0.03))
        ),
        goal("digits: fall of accuracy, every seed", "at most .5 points",
             f"{100 * drop:.2f} points highest", bool(drop <= 0.005 + 1e-9)),
        goal("digits: membership AUC (loss) is not higher after SFT, every seed", "at most 0",
             f"{rise:+.4f} highest change", bool(rise <= 0)),
    ]  # fmt: skip
    means = [
        [a, r, *(f"{m:.4f} ± {s:.4f}" for m, s in zip(v.mean(0), v.std(0, ddof=1)))]
        for (a, r), v in table.items()
    ]
    columns = ["ACC", "ASR", "RA", "membership AUC", "cpu s"]
    tables = [
        {"title": "Mean and standard deviation over the seeds",
         "columns": ["attack", "repair", *columns], "rows": means},
        {"title": "Every run", "columns": ["attack", "seed", "repair", *columns], "rows": rows},
    ]  # fmt: skip
    write(arguments, "bench_digits", "Digits: three attacks, five seeds", goals, tables)


if __name__ == "__main__":
    main()
