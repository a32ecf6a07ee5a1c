"""Progressive pretraining (PGP) against vanilla pretraining in miniature, CIFAR-10 at 16 x 16.

Six arms take the paper's recipe apart; each seed draws the images, the weights and the paths anew.
"""

import time
from dataclasses import dataclass

import torch
from common import arguments, goal, interval, write
from nasa import SearchSpace, Supernet
from nasa.data import load
from nasa.pretraining import ProgressivePretraining
from nasa.training import Recipe

SPACE = SearchSpace(
    "miniature",
    ("conv", "adder"),
    ((1, 16, 1), (2, 24, 2), (2, 32, 2)),
    expansions=(1, 3),
    kernels=(3,),
    stem_channels=16,
    head_channels=128,
    image=(3, 16, 16),
)


@dataclass(frozen=True)
class Arm:
    """Stages or not, learning rate, last gamma, clip."""

    name: str
    staged: bool
    rate: float
    zero_gamma: bool
    clip: str


ARMS = (
    Arm("vanilla", False, 0.05, False, "global"),
    Arm("PGP", True, 0.1, True, "global"),
    Arm("PGP, group clip", True, 0.1, True, "group"),
    Arm("vanilla, group clip", False, 0.05, False, "group"),
    Arm("vanilla, rate 0.1, gamma 0", False, 0.1, True, "global"),
    Arm("vanilla, rate 0.1, gamma 0, group clip", False, 0.1, True, "group"),
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", required=True, help="train/ and test/ folders of classes, or zip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--epochs", type=int, default=18)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole, _ = load(options.data, size=16)
    losses: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    subsets = []
    for seed in range(options.seeds):
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        subsets.append(whole.take(order[: options.images]))
    for arm in ARMS:
        for seed, images in enumerate(subsets):
            start = time.process_time()
            build = "progressive" if arm.staged else "vanilla"
            recipe = Recipe(batch_size=64, learning_rate=arm.rate, clip=arm.clip)
            schedule = getattr(ProgressivePretraining, build)(SPACE, options.epochs, recipe)
            torch.manual_seed(seed)
            net = Supernet(SPACE, zero_last_gamma=arm.zero_gamma)
            losses[arm.name].append(schedule.run(net, images, seed=seed).rows[-1]["loss"])
            seconds = time.process_time() - start
            print(f"seed {seed} {arm.name}: {losses[arm.name][-1]:.3f} in {seconds:.0f} CPU s",
                  flush=True)  # fmt: skip
        if arm in ARMS[2:]:
            save(options, losses)


def save(options, losses: dict[str, list[float]]) -> None:
    vanilla, pgp, grouped = (losses[arm.name] for arm in ARMS[:3])
    seeds = len(vanilla)
    setting = (
        f"{len(SPACE.cells)} cells, conv and adder, {options.images} images, {options.epochs} "
        f"epochs, {seeds} seeds; training loss of the last epoch; mean and 95 % interval"
    )
    first = [p / v for p, v in zip(pgp, vanilla, strict=True)]
    second = [g / v for g, v in zip(grouped, vanilla, strict=True)]
    ordered = sum(v > p > g for v, p, g in zip(vanilla, pgp, grouped, strict=True))

    def text(values):
        mean, half = interval(values)
        return f"{mean:.3f} ± {half:.3f}"

    goals = [
        goal("PGP as published / vanilla, loss", "< 1 on every seed", text(first),
             max(first) < 1, setting),
        goal("PGP with group-wise clipping / vanilla, loss", "<= 0.80", text(second),
             interval(second)[0] <= 0.80, setting),
        goal("vanilla > PGP > PGP with group-wise clipping", "3 of 3 seeds",
             f"{ordered} of {seeds} seeds", ordered == seeds and seeds >= 3, setting),
    ]  # fmt: skip
    rows = [
        [arm.name, arm.staged, arm.rate, arm.zero_gamma, arm.clip, *losses[arm.name]]
        for arm in ARMS
        if losses[arm.name]
    ]
    columns = ["arm", "stages", "rate", "gamma 0", "clip", *(f"seed {i}" for i in range(seeds))]
    tables = [{"title": "Loss of the last epoch", "columns": columns, "rows": rows}]
    write(options.out, __file__, "Progressive pretraining", goals, tables)


if __name__ == "__main__":
    main()
