"""Quality on real exposure brackets: every method, both directions."""

from __future__ import annotations

import sys

import numpy as np
from common import BRACKETS, parser, read_brackets, write
from noiser import SelfRegressionModel, baselines, enhance, metrics, train

NAME = "bench_brackets"


def methods(model: SelfRegressionModel) -> dict:
    return {
        "as it is": baselines.identity,
        "gain to mean 0.45": baselines.gain,
        "gamma to mean 0.45": baselines.gamma,
        "gray world": baselines.gray_world,
        "histogram equalisation": baselines.histogram_equalisation,
        "CLAHE": baselines.clahe,
        "LIME": baselines.lime,
        "MSRCR": baselines.msrcr,
        "noiser closed_form": lambda image: enhance(image, method="closed_form"),
        "noiser paper": lambda image: enhance(image, "paper", model=model),
        "noiser plus": lambda image: enhance(image, "plus"),
        "noiser auto": lambda image: enhance(image, "auto"),
    }


def score(scenes: dict, method, shot: str) -> tuple[float, float, float, int]:
    values = []
    for images in scenes.values():
        if shot in images:
            out, reference = method(images[shot]), metrics.as_float(images["reference"])
            out = metrics.as_float(out)
            scaled = metrics.gt_mean(out, reference)
            values.append(
                (
                    metrics.psnr(out, reference),
                    metrics.ssim(out, reference),
                    metrics.psnr(scaled, reference),
                )
            )
    return (*np.mean(values, axis=0).tolist(), len(values))


def main() -> None:
    options = parser(__doc__, brackets=True).parse_args()
    if options.brackets is None:
        print(f"{NAME}: left out, no brackets: give --brackets ZIP or set {BRACKETS}")
        sys.exit(0)
    scenes = read_brackets(options.brackets)
    model = train(seed=0)
    rows, means = [], {}
    for name, method in methods(model).items():
        under, over = score(scenes, method, "under"), score(scenes, method, "over")
        means[name] = (under[0], over[0])
        rows.append([name, *(round(v, 3) for v in (*under[:3], *over[:3]))])
        print(*rows[-1], flush=True)
    under, over = means["noiser paper"]
    goals = [
        {
            "name": "method paper, under-exposed brackets",
            "goal": "16.9 ± 0.5 dB",
            "measured": f"{under:.2f} dB over {len(scenes)} scenes",
            "met": abs(under - 16.9) <= 0.5,
        },
        {
            "name": "method paper, over-exposed brackets",
            "goal": "16.0 ± 0.5 dB",
            "measured": f"{over:.2f} dB",
            "met": abs(over - 16.0) <= 0.5,
        },
    ]
    table = {
        "title": "PSNR (RGB), SSIM (luma) and PSNR after scaling to the reference's mean",
        "columns": ["method", "under PSNR", "under SSIM", "under PSNR at reference mean",
                    "over PSNR", "over SSIM", "over PSNR at reference mean"],
        "rows": rows,
    }  # fmt: skip
    command = f"python benchmarks/{NAME}.py --out benchmarks/results --brackets BRACKETS.zip"
    write(options.out, NAME, __doc__.strip(), command, goals, [table], threads=2)


if __name__ == "__main__":
    main()
