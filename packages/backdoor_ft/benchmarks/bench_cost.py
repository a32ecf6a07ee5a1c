"""What a repair costs: super-fine-tuning against NC and I-BAU, and the other defences."""

from __future__ import annotations

import statistics

import torch
from backdoor_ft.attacks import plan_attack
from backdoor_ft.data import digits
from backdoor_ft.defenses import FST, FT, FTSAM, IBAU, NAD, NC, FinePruning, SuperFT
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
    options.add_argument("--attacks", default="badnets", help="comma-separated")
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, cost, success = [], {}, {}
    clean, test = digits(0)
    for name in arguments.attacks.split(","):
        plan = plan_attack(name, clean, seed=0)
        victim = train(SmallCNN, plan.dataset, recipe="digits", seed=0)
        first = score(victim, test, plan)
        rows.append([name, "none", first.accuracy.value, first.attack_success.value, 0.0, "", ""])
        FT(steps=20).repair(victim, clean, seed=0)  # what only the first call of a process costs
        spent: dict[str, list[float]] = {label: [] for label in DEFENSES}
        models = {}
        for _ in range(arguments.repeats):
            for label, defense in DEFENSES.items():
                result = defense.repair(victim, clean, seed=0)
                models[label] = result.model
                spent[label].append(result.cpu_seconds)
        for label, values in spent.items():
            s, middle = score(models[label], test, plan), statistics.median(values)
            spread = f"{min(values):.2f} ... {max(values):.2f}"
            own = statistics.median(spent["SFT"])
            rows.append([
                name, label, round(s.accuracy.value, 4), round(s.attack_success.value, 4),
                round(middle, 2), spread, round(middle / own, 1),
            ])  # fmt: skip
            cost.setdefault(label, []).append(middle)
            success.setdefault(label, []).append(s.attack_success.value)
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
                f"our own implementations; {arguments.attacks}, one seed, medians of"
                f" {arguments.repeats} interleaved repeats",
            )
        )
    table = {
        "title": "Medians; the last column is the cost over super-fine-tuning's",
        "columns": ["attack", "repair", "ACC", "ASR", "cpu s", "spread", "times"],
        "rows": rows,
    }
    write(arguments, "bench_cost", "Cost of a repair", goals, [table])


if __name__ == "__main__":
    main()
