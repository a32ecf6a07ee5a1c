"""Poisoning throughput against the adversarial-robustness-toolbox (ART) and a Pillow loop.

The job: stamp ART's own pattern (``add_pattern_bd``, 4 pixels) on a share of 50,000 colour images
of 32 x 32 pixels that lie in memory, and relabel them. Results are compared bit by bit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.attacks.poisoning.perturbations import add_pattern_bd
from backdoor_ft.data import LabeledData
from backdoor_ft.poison import poison
from backdoor_ft.triggers import Pixels
from common import goal, parser, write
from PIL import Image

PATTERN = ((-2, -2), (-3, -3), (-2, -4), (-4, -2))  # add_pattern_bd at its default distance


def art_path(images: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Poison the chosen images as ART's documentation does, and write them back."""
    attack = PoisoningAttackBackdoor(lambda x: add_pattern_bd(x, channels_first=True))
    labels = np.tile(np.eye(10, dtype=np.float32)[0], (len(index), 1))
    images[index], _ = attack.poison(images[index], labels)
    return images


def pillow_path(images: np.ndarray, index: np.ndarray) -> np.ndarray:
    """One image after the other through Pillow."""
    for i in index:
        image = Image.fromarray((images[i] * 255).astype(np.uint8).transpose(1, 2, 0))
        for row, column in PATTERN:
            image.putpixel((32 + column, 32 + row), (255, 255, 255))
        images[i] = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    return images


def clock(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    draw = np.random.default_rng(0)
    images = (draw.integers(0, 256, (50_000, 3, 32, 32)) / 255).astype(np.float32)
    labels = draw.integers(0, 10, 50_000)
    data = LabeledData(torch.as_tensor(images.copy()), torch.as_tensor(labels), 10)
    trigger = Pixels(PATTERN, 1.0)
    table, ratios = [], {}
    for ratio in (0.1, 0.9):
        plan = poison(data, trigger=trigger, ratio=ratio, seed=0, label_map="all_to_all")
        index = plan.index.numpy()
        peer = art_path(images.copy(), index)
        mine = LabeledData(torch.as_tensor(images.copy()), torch.as_tensor(labels.copy()), 10)
        plan.apply_(mine)
        assert np.array_equal(mine.inputs.numpy(), peer)
        assert np.array_equal(plan.apply(data).inputs.numpy(), peer)
        work: dict[str, Callable[[], object]] = {
            "in place": partial(plan.apply_, mine),
            "copy of the data set": partial(plan.apply, data),
            "ART": partial(art_path, peer, index),
            "Pillow loop": partial(pillow_path, peer, index),
        }
        found: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(arguments.repeats):
            for name, job in work.items():
                found[name].append(clock(job))
        middle = {name: statistics.median(v) for name, v in found.items()}
        ratios[ratio] = middle["ART"] / middle["in place"]
        for name, values in found.items():
            table.append([
                f"{ratio:.0%}", name, f"{1e3 * middle[name]:.2f}",
                f"{1e3 * min(values):.2f} ... {1e3 * max(values):.2f}",
                f"{middle['ART'] / middle[name]:.1f}",
            ])  # fmt: skip
    goals = [
        goal(
            "poisoning throughput against ART's add_pattern_bd",
            "at least 20 times",
            f"{min(ratios.values()):.1f} times at least ("
            + ", ".join(f"{v:.0f} times with {k:.0%} poisoned" for k, v in ratios.items())
            + "), same bits",
            bool(min(ratios.values()) >= 20),
            "in place, which ART does not offer; the table has our copying form too",
        )
    ]
    columns = ["poisoned", "path", "ms of processor time, median", "spread", "times ART's speed"]
    title = f"50,000 images of 3 x 32 x 32, {arguments.repeats} interleaved repeats"
    write(
        arguments, "bench_poison", "Poisoning throughput", goals,
        [{"title": title, "columns": columns, "rows": table}],
        ("torch", "numpy", "adversarial-robustness-toolbox"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
