"""Little clean data on digits: 1 % and 10 % of the training set, three attacks.

The clean images are taken from the training set (12 and 120 of 1,200). `SFT` is the default, `SFT
shifted` adds random shifts by a pixel, `unlearn` is super-fine-tuning at small rates that unlearns
the smallest universal pattern; `FST` and `scratch` stand beside them.
"""

from __future__ import annotations

import torch
from backdoor_ft.attacks import plan_attack
from backdoor_ft.augment import Augment
from backdoor_ft.data import digits
from backdoor_ft.defenses import FST, FT, Scratch, SuperFT, Unlearn
from backdoor_ft.engine import train
from backdoor_ft.metrics import score
from backdoor_ft.models import SmallCNN
from common import goal, parser, write

ATTACKS = ("badnets", "blended", "sig")
SHIFT = Augment(pad=1)
REPAIRS = {
    "FT": FT(batch_size=64),
    "SFT": SuperFT(),
    "SFT without mixup": SuperFT(phase2=120, mixup=False),
    "SFT shifted": SuperFT(augment=SHIFT),
    "FST": FST(batch_size=64),
    "FST shifted": FST(batch_size=64, augment=SHIFT),
    "scratch": Scratch(batch_size=64, augment=SHIFT),
}
# of unlearning: the smallest that removed the attacks on seeds 100 to 104
RATES = {0.01: 0.005, 0.1: 0.01}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[tuple[float, str, str], list[tuple[float, ...]]] = {}
    for seed in range(arguments.seeds):
        data, test = digits(seed)
        for name in ATTACKS:
            plan = plan_attack(name, data, seed=seed)
            victim = train(SmallCNN, plan.dataset, recipe="digits", seed=seed)
            before = score(victim, test, plan)
            for share in RATES:
                clean, _ = data.split(round(share * len(data)), seed)
                rate = RATES[share]
                own = {"unlearn": Unlearn(lr_max1=rate, lr_max2=rate)}
                for label, defense in (REPAIRS | own).items():
                    s = score(defense.repair(victim, clean, seed=seed).model, test, plan)
                    fall = before.accuracy.value - s.accuracy.value
                    values = (s.attack_success.value, fall, s.robust_accuracy.value)
                    found.setdefault((share, name, label), []).append(values)
            print(name, seed, flush=True)
    rows, goals = [], []
    for (share, name, label), runs in found.items():
        success, fall, robust = (list(v) for v in zip(*runs))
        rows.append([
            f"{share:.0%}", name, label, f"{sum(success) / len(runs):.3f}", f"{max(success):.3f}",
            f"{100 * sum(fall) / len(runs):.1f}", f"{100 * max(fall):.1f}",
            f"{sum(robust) / len(runs):.3f}",
        ])  # fmt: skip
    for share, bar in (
        (0.01, "mean ASR at most .05, ACC -2 points at most"),
        (0.1, "ASR at most .10"),
    ):
        for best, words in (
            ("unlearn", f"unlearning, rate {RATES[share]}"),
            ("SFT", "default settings"),
        ):
            runs = [r for (s, _, n), rs in found.items() if s == share and n == best for r in rs]
            mean, worst = sum(r[0] for r in runs) / len(runs), max(r[0] for r in runs)
            fall = max(r[1] for r in runs)
            fine = (mean <= 0.05 and fall <= 0.02) if share < 0.1 else worst <= 0.1
            goals.append(
                goal(
                    f"digits: super-fine-tuning on {share:.0%} clean data"
                    f" ({1200 * share:.0f} images), {words}",
                    bar,
                    f"ASR mean {mean:.3f}, worst {worst:.3f}; accuracy {-100 * fall:+.1f} points"
                    " at worst",
                    bool(fine),
                    f"{len(ATTACKS)} attacks, {arguments.seeds} seeds",
                )
            )
    columns = ["clean", "attack", "repair", "ASR mean", "ASR worst", "ACC lost mean, points",
               "worst", "RA mean"]  # fmt: skip
    tables = [{"title": "Over the seeds", "columns": columns, "rows": rows}]
    write(arguments, "bench_little", "Little clean data", goals, tables)


if __name__ == "__main__":
    main()
