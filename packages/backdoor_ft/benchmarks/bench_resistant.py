"""What attackers who prepare for it, or come back, still reach after super-fine-tuning.

Resistant attackers: SBL, and one that simulates super-fine-tuning. After the repair of an ordinary
victim: retuning, re-injection and query-based reactivation, beside a model that was never
backdoored.
"""

from __future__ import annotations

import torch
from backdoor_ft.attacks import plan_attack
from backdoor_ft.attacks.resistant import sbl, sft_aware
from backdoor_ft.data import digits
from backdoor_ft.defenses import FT, Scratch, SuperFT
from backdoor_ft.engine import train
from backdoor_ft.metrics import score
from backdoor_ft.models import SmallCNN
from backdoor_ft.sequela import query_reactivation, reinjection_curve, retuning_attack
from common import goal, parser, write


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--attacks", default="badnets,blended,sig,wanet", help="comma-separated")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, after, back = [], {}, []
    for seed in range(arguments.seeds):
        clean, test = digits(seed)
        scratch = Scratch(batch_size=64).repair(SmallCNN(), clean, seed=seed).model
        for name in arguments.attacks.split(","):
            plan = plan_attack(name, clean, seed=seed)
            victims = {
                "standard": train(SmallCNN, plan.dataset, recipe="digits", seed=seed),
                "SBL": sbl(SmallCNN, plan, clean, seed=seed),
                "SFT-aware": sft_aware(SmallCNN, plan, clean, seed=seed),
            }
            for kind, victim in victims.items():
                before = score(victim, test, plan)
                repaired = SuperFT().repair(victim, clean, seed=seed).model
                tuned = FT(batch_size=64).repair(victim, clean, seed=seed).model
                s, t = score(repaired, test, plan), score(tuned, test, plan)
                values = (
                    before.accuracy.value, before.attack_success.value, t.attack_success.value,
                    s.attack_success.value, s.accuracy.value,
                )  # fmt: skip
                rows.append([name, seed, kind, *(round(v, 4) for v in values)])
                print(rows[-1], flush=True)
                if before.attack_success.value >= 0.9:
                    after.setdefault(kind, []).append(s.attack_success.value)
                if kind != "standard" or before.attack_success.value < 0.9:
                    continue
                pair = {"repaired": repaired, "never backdoored": scratch}
                entry = [name, seed]
                entry += [retuning_attack(m, clean, test, plan, seed) for m in pair.values()]
                entry += [
                    query_reactivation(m, victim, clean, test, plan, seed=seed)
                    for m in pair.values()
                ]
                entry += [
                    reinjection_curve(m, n, clean, test, plan, steps=80, seed=seed).half
                    for n, m in pair.items()
                ]
                back.append(entry)
                print(entry, flush=True)
    goals = [
        goal(
            f"digits: ASR after super-fine-tuning of a victim made by {kind}",
            "at most .10",
            f"{max(found):.3f} highest, {sum(found) / len(found):.3f} mean of {len(found)} victims",
            bool(max(found) <= 0.1),
            f"{arguments.attacks}, {arguments.seeds} seeds",
        )
        for kind, found in after.items()
        if kind != "standard"
    ]
    for index, label in ((2, "retuning attack"), (4, "query-based reactivation")):
        mine, other = [r[index] for r in back], [r[index + 1] for r in back]
        goals.append(
            goal(
                f"digits: ASR of the {label} after repair",
                "at most .20",
                f"{max(mine):.3f} highest, {sum(mine) / len(mine):.3f} mean; never backdoored"
                f" {max(other):.3f}, {sum(other) / len(other):.3f}",
                bool(max(mine) <= 0.2),
                f"{len(back)} standard victims with ASR of at least .90",
            )
        )
    last = 81  # not within 80 steps
    halves = [((r[6] or last), (r[7] or last)) for r in back]
    slow = [a >= 0.9 * b for a, b in halves]
    goals.append(
        goal(
            "digits: re-injection half-life after repair",
            "at least .9 of a never-backdoored model's",
            f"{sum(slow)} of {len(slow)} victims; lowest ratio {min(a / b for a, b in halves):.2f}",
            all(slow),
        )
    )
    for r in back:
        r[2:6] = [round(v, 3) for v in r[2:6]]
        r[6:] = ["over 80" if v is None else v for v in r[6:]]
    tables = [
        {"title": "Prepared attackers",
         "columns": ["attack", "seed", "victim", "ACC", "ASR", "ASR after FT", "ASR after SFT",
                     "ACC after SFT"],
         "rows": rows},
        {"title": "Attackers who come back: repaired, and never backdoored",
         "columns": ["attack", "seed", "retuning ASR", "never", "QRA ASR", "never",
                     "steps to ASR .5", "never"],
         "rows": back},
    ]  # fmt: skip
    write(arguments, "bench_resistant", "Not superficial", goals, tables)


if __name__ == "__main__":
    main()
