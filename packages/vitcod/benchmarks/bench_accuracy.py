"""Accuracy over sparsity in miniature: a small ViT on CIFAR-10, three seeds, with controls.

    python benchmarks/bench_accuracy.py --out DIR --cifar cifar10_24k.zip

The archive holds ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``. Every mask is fine-tuned as long
as the dense control; random and local masks have exactly the sparsity of the information masks.
"""

from __future__ import annotations

import copy
import io
import itertools
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from common import parser, write
from vitcod import (
    AEConfig,
    AttentionStats,
    Recipe,
    VisionTransformer,
    accuracy,
    collect_attention,
    diagnose,
    finetune,
    patch,
    prune,
)
from vitcod.diagnose import output_error

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
METHODS = ("info", "output", "random", "local")
BARS = {0.7: 0.5, 0.8: 1.0, 0.9: 2.0}


def load(path: Path, part: str, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one part, (count, 3, 32, 32) in about -2 to 2, and labels."""
    from PIL import Image

    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(f"{part}/"))
        classes = sorted({n.split("/")[1] for n in names})
        for name in names[:: max(1, len(names) // limit)]:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(classes.index(name.split("/")[1]))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (x - 0.47) / 0.25, torch.tensor(labels)


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the batch's images, shift the batch by up to four pixels."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
    return torch.nn.functional.pad(x, (4, 4, 4, 4))[..., dy : dy + 32, dx : dx + 32]


def build(seed: int) -> VisionTransformer:
    """ViT of 65 tokens; positions start as sines and cosines, so that places can be told apart."""
    torch.manual_seed(seed)
    model = VisionTransformer(image=32, patch=4, dim=64, depth=4, heads=4, mlp_ratio=2)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    rates = torch.pi / 8 * torch.linspace(0.25, 8, 16)
    waves = [wave(t.reshape(-1, 1) * rates) for t in (y, x) for wave in (torch.sin, torch.cos)]
    for name, weight in model.blocks.named_parameters():
        if name.endswith("weight") and weight.ndim == 2:  # 0.02 is made for wider models
            torch.nn.init.xavier_uniform_(weight)
    with torch.no_grad():
        model.pos_embed[0, 1:] = 0.5 * torch.cat(waves, 1)
    return model


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and standard deviation, times 100."""
    found = 100 * np.asarray(values)
    return f"{found.mean():.{digits}f} +- {found.std(ddof=1) if len(found) > 1 else 0:.{digits}f}"


class Run:
    """One seed: the trained model and the accuracy of every mask."""

    def __init__(self, seed: int, data: tuple[torch.Tensor, ...], epochs: float, more: float):
        train_x, train_y, self.x, self.y = data
        self.seed, self.data = seed, (train_x, train_y)
        self.more = Recipe.cpu(more, 5e-4)
        start = time.process_time()
        self.model = build(seed)
        self.untrained = diagnose(collect_attention(self.model, [train_x[:500]]), 0.9)
        finetune(self.model, *self.data, Recipe.cpu(epochs, 2e-3), seed=seed, augment=augment)
        self.dense = self.score(self.model)
        self.stats = collect_attention(self.model, train_x[:2000].split(250), output_scores=True)
        self.verdict = diagnose(self.stats, 0.9)
        self.control = self.score(self.tuned(copy.deepcopy(self.model)))
        print(
            f"seed {seed}: dense {self.dense:.4f}, tuned {self.control:.4f}; {self.verdict};"
            f" {time.process_time() - start:.0f} CPU s",
            flush=True,
        )
        self.before: dict[tuple[str, float], float] = {}
        self.after: dict[tuple[str, float], float] = {}
        self.error: dict[tuple[str, float], float] = {}
        for level, method in itertools.product(LEVELS, METHODS):
            plan = prune(self.stats, sparsity=level, method=method, seed=seed)
            key = method, level
            self.error[key] = output_error(self.model, plan, train_x[:200])
            pruned = patch(copy.deepcopy(self.model), plan)
            self.before[key] = self.score(pruned)
            self.after[key] = self.score(self.tuned(pruned))
            print(
                f"seed {seed}, {method} {level}: {self.before[key]:.4f}, tuned"
                f" {self.after[key]:.4f}, predicted error {self.error[key]:.4f}",
                flush=True,
            )
        self.coded = {init: self.autoencoder(init, self.stats) for init in ("random", "pca")}
        print(f"seed {seed}: {self.coded}, {time.process_time() - start:.0f} CPU s", flush=True)

    def score(self, model: torch.nn.Module) -> float:
        """Accuracy on the held-out photographs."""
        return accuracy(model, self.x, self.y)

    def tuned(self, model: torch.nn.Module) -> torch.nn.Module:
        """Train a copy for the few extra steps that every candidate gets."""
        finetune(model, *self.data, self.more, seed=100 + self.seed, augment=augment)
        return model

    def autoencoder(self, init: str, stats: AttentionStats) -> tuple[float, float]:
        """Accuracy with 4 heads coded as 2, dense attention: as initialised, and fine-tuned."""
        config = AEConfig(0.5, init, stats if init == "pca" else None, seed=self.seed)
        model = patch(copy.deepcopy(self.model), None, config)
        return self.score(model), self.score(self.tuned(model))

    def ranking(self, found: dict[tuple[str, float], float]) -> tuple[int, int]:
        """Pairs of masks of one sparsity that the predicted error orders as `found` does."""
        right = pairs = 0
        for level in LEVELS:
            for a, b in itertools.combinations(METHODS, 2):
                gain = found[a, level] - found[b, level]
                pairs += gain != 0
                right += gain * (self.error[b, level] - self.error[a, level]) > 0
        return right, pairs


def goals_of(runs: list[Run], note: str) -> list[dict]:
    """Rows of section 8's accuracy bars."""
    goals = []

    def goal(name: str, bar: str, measured: str, met: bool, more: str = "") -> None:
        goals.append(
            {
                "name": name,
                "goal": bar,
                "measured": measured,
                "met": bool(met),
                "note": more or note,
            }
        )

    for level, bar in BARS.items():
        lost = {m: [r.control - r.after[m, level] for r in runs] for m in ("info", "output")}
        both = ", ".join(spread(values) for values in lost.values())
        best = min(lost, key=lambda m: float(np.mean(lost[m])))
        goal(
            f"CIFAR-10, accuracy lost at {100 * level:.0f} %, best of our two criteria",
            f"<= {bar} points against the dense control tuned as long",
            f"{spread(lost[best])} points ({best}; both {both})",
            100 * np.mean(lost[best]) <= bar,
        )
    gains = {c: {x: [r.after["info", x] - r.after[c, x] for r in runs] for x in LEVELS}
             for c in ("random", "local")}  # fmt: skip
    shown = {c: ", ".join(f"{spread(v)} at {100 * x:.0f} %" for x, v in g.items())
             for c, g in gains.items()}  # fmt: skip
    means = {x: 100 * np.mean(v) for x, v in gains["random"].items()}
    goal(
        "CIFAR-10, information masks over random masks, both tuned",
        ">= 0 at every sparsity; moonshot +2 points at 90 %",
        f"points: {shown['random']}",
        min(means.values()) >= 0,
        f"moonshot {'met' if means[0.9] >= 2 else 'missed'}; over local masks: {shown['local']}",
    )
    counts = {w: np.sum([r.ranking(getattr(r, w)) for r in runs], 0) for w in ("before", "after")}
    shares = {when: right / max(pairs, 1) for when, (right, pairs) in counts.items()}
    goal(
        "CIFAR-10, predicted error orders info, output-aware, local and random masks",
        ">= 80 % of pairs",
        f"{100 * shares['before']:.0f} % as pruned, {100 * shares['after']:.0f} % after tuning"
        f" ({counts['before'][1]} pairs)",
        min(shares.values()) >= 0.8,
        "the prediction is of the output's error as pruned; tuning levels the masks",
    )
    better = [r.coded["pca"][1] - r.coded["random"][1] for r in runs]
    goal(
        "CIFAR-10, auto-encoder 4 to 2 heads, closed form over random start, both tuned",
        ">= 5 points",
        f"{spread(better)} points",
        100 * np.mean(better) >= 5,
    )
    agree = [
        not r.untrained.suited
        and r.verdict.suited == (r.before["info", 0.9] > r.before["random", 0.9] + 0.02)
        for r in runs
    ]
    over = [np.mean([v.retained / v.retained_random for v in verdicts])
            for verdicts in ([r.verdict for r in runs], [r.untrained for r in runs])]  # fmt: skip
    goal(
        "CIFAR-10, the diagnostic's verdict",
        "unsuited before training; after it, suited where information masks beat random ones"
        " by 2 points as pruned",
        f"right on {sum(agree)} of {len(agree)} seeds: entropy"
        f" {100 * np.mean([r.verdict.entropy for r in runs]):.1f} % of uniform, kept mass"
        f" {over[0]:.2f}x random; untrained {over[1]:.2f}x",
        all(agree),
        f"verdicts: {'; '.join('suited' if r.verdict.suited else 'unsuited' for r in runs)}",
    )
    return goals


def main() -> None:
    settings = parser(__doc__)
    settings.add_argument("--cifar", type=Path, required=True, help="train/CLASS/*.jpg, test/...")
    settings.add_argument("--seeds", type=int, default=3)
    settings.add_argument("--epochs", type=float, default=8)
    settings.add_argument("--more", type=float, default=0.15, help="epochs of fine-tuning")
    settings.add_argument("--quick", action="store_true", help="one seed, few images: a dry run")
    options = settings.parse_args()
    torch.set_num_threads(1)
    limit = (600, 200) if options.quick else (20_000, 4000)
    data = (*load(options.cifar, "train", limit[0]), *load(options.cifar, "test", limit[1]))
    seeds = range(1 if options.quick else options.seeds)
    runs = [Run(seed, data, options.epochs, options.more) for seed in seeds]
    rows = [
        [
            f"{100 * level:.0f} %",
            method,
            spread([r.before[method, level] for r in runs]),
            spread([r.after[method, level] for r in runs]),
            round(float(np.mean([r.error[method, level] for r in runs])), 3),
        ]
        for level, method in itertools.product(LEVELS, METHODS)
    ]
    dense = [[spread([getattr(r, name) for r in runs])] for name in ("dense", "control")]
    coded = [[init, *(spread([r.coded[init][i] for r in runs]) for i in (0, 1))]
             for init in ("random", "pca")]  # fmt: skip
    note = (
        f"{len(data[0]):,} photographs, {options.epochs:g} epochs, {options.more:g} more;"
        f" dense {dense[0][0]} %, control {dense[1][0]} %; the bar assumed 50,000 photographs"
    )
    title = f"Accuracy on {len(data[2]):,} held-out photographs, %, mean and deviation of the seeds"
    tables = [
        {
            "title": title,
            "columns": ["sparsity", "mask", "as pruned", "tuned", "predicted error"],
            "rows": rows,
        },
        {
            "title": "Auto-encoder, 4 heads as 2, %",
            "columns": ["start", "as initialised", "tuned"],
            "rows": coded,
        },
    ]
    write(
        options.out,
        "bench_accuracy",
        "Accuracy in miniature on CIFAR-10",
        goals_of(runs, note),
        tables,
        1,
    )


if __name__ == "__main__":
    main()
