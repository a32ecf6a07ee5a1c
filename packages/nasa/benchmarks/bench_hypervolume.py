"""Hypervolume of NSGA-II against random draws with five times its evaluations, digits.

One supernet per seed; accuracy with its shared weights on validation images, mapped EDP. The
reference point is the largest EDP among all points of a seed and no accuracy.
"""

import torch
from common import arguments, goal, interval, write
from nasa import SearchSpace, Supernet
from nasa.data import load_digits
from nasa.hw import Accelerator
from nasa.pretraining import ProgressivePretraining
from nasa.search import NSGA2, Evaluator
from nasa.search.evolution import random_search
from nasa.search.result import hypervolume
from nasa.training import Recipe

SEEDS = (1, 2, 3)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--generations", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator.from_yaml("nasa_45nm")
    space = SearchSpace.from_yaml("digits")
    ratios, rows = [], []
    for seed in SEEDS:
        train, _ = load_digits(seed)
        torch.manual_seed(seed)
        net = Supernet(space, zero_last_gamma=True)
        ProgressivePretraining.progressive(space, 18, Recipe(batch_size=64)).run(
            net, train, seed=seed
        )
        weights, validation = train.split(0.8, seed)
        ours, drawn = (
            Evaluator(net, weights, validation, accelerator, batches=10, seed=seed)
            for _ in range(2)
        )
        NSGA2(options.population, options.generations).run(ours, seed=seed)
        count = len(ours.seen)
        random_search(drawn, 5 * count, seed=seed + 1000)
        found, others = list(ours.seen.values()), list(drawn.seen.values())
        worst = max(p.edp for p in (*found, *others) if p.edp < float("inf"))
        volumes = hypervolume(found, worst), hypervolume(others, worst)
        ratios.append(volumes[0] / volumes[1])
        rows.append([seed, count, len(others), *volumes, ratios[-1]])
        print(*rows[-1], flush=True)
    mean, half = interval(ratios)
    won = goal(
        "hypervolume of NSGA-II / of random draws with 5 times the evaluations",
        ">= 1",
        f"{mean:.3f} ± {half:.3f}, lowest {min(ratios):.3f}",
        min(ratios) >= 1,
        "digits, 3 seeds, shared weights, different networks count",
    )
    columns = ["seed", "networks of NSGA-II", "networks drawn", "hypervolume", "drawn", "ratio"]
    table = {"title": "Accuracy times EDP, J s", "columns": columns, "rows": rows}
    write(options.out, __file__, "Search against random draws", [won], [table])


if __name__ == "__main__":
    main()
