"""What a repair costs: super-fine-tuning against NC and I-BAU, and the other defences."""

from __future__ import annotations

import torch
from backdoor_ft.attacks import plan_attack
from backdoor_ft.data import digits
from backdoor_ft.defenses import FST, FTSAM, IBAU, NAD, NC, FinePruning, SuperFT
from backdoor_ft.engine import train
from backdoor_ft.metrics import score
from backdoor_ft.models import SmallCNN
from common import goal, parser, write

DEFENSES = {
    "SFT": SuperFT(),
    "NC": NC(inversion_steps=300),
    "I-BAU": IBAU(),
    "FT-SAM": FTSAM(),
    "FST": FST(),
    "NAD": NAD(),
    "fine-pruning": FinePruning(),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--attacks", default="badnets,blended", help="comma-separated")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, cost, success = [], {}, {}
    clean, test = digits(0)
    for name in arguments.attacks.split(","):
        plan = plan_attack(name, clean, seed=0)
        victim = train(SmallCNN, plan.dataset, recipe="digits", seed=0)
        first = score(victim, test, plan)
        rows.append([name, "none", first.accuracy.value, first.attack_success.value, 0.0])
        for label, defense in DEFENSES.items():
            result = defense.repair(victim, clean, seed=0)
            s = score(result.model, test, plan)
            rows.append([name, label, s.accuracy.value, s.attack_success.value, result.cpu_seconds])
            cost.setdefault(label, []).append(result.cpu_seconds)
            success.setdefault(label, []).append(s.attack_success.value)
            print(rows[-1], flush=True)
    goals = []
    for label, bar in (("NC", 10), ("I-BAU", 5)):
        ratios = [b / a for a, b in zip(cost["SFT"], cost[label])]
        lower = all(a <= b for a, b in zip(success["SFT"], success[label]))
        goals.append(
            goal(
                f"digits: processor time of {label} over super-fine-tuning's",
                f"at least {bar} times, at equal or lower ASR",
                f"{min(ratios):.1f} times at least; ASR"
                f" {max(success['SFT']):.3f} against {max(success[label]):.3f} at worst",
                bool(min(ratios) >= bar and lower),
                f"our own implementations; {arguments.attacks}, one seed",
            )
        )
    table = {
        "title": "Every run",
        "columns": ["attack", "repair", "ACC", "ASR", "cpu s"],
        "rows": [[a, b, *(round(v, 4) for v in rest)] for a, b, *rest in rows],
    }
    command = (
        f"python benchmarks/bench_cost.py --out benchmarks/results --attacks {arguments.attacks}"
    )
    write(arguments.out, "bench_cost", "Cost of a repair", command, goals, [table],
          arguments.threads)  # fmt: skip


if __name__ == "__main__":
    main()
