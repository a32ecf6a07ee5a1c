"""Commands about the network itself: train, export, bench."""

from __future__ import annotations

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from noiser.enhancement import pretrained
from noiser.errors import InputError
from noiser.files import make_folder, write_atomically
from noiser.image_array import Padding
from noiser.network import SelfRegressionModel
from noiser.noise import NoiseKind
from noiser.onnx_export import to_onnx
from noiser.progress import progress_bar
from noiser.speed import SIZES, measure_speed
from noiser.summaries import bench_page, train_page
from noiser.training import TrainingLog, TrainingRecipe, train_many


def train_command(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    channels: int = 18,
    noise: NoiseKind = "gaussian",
    sigma: float = 3.0,
    tv_weight: float = 1.0,
    steps: int = 2000,
    size: int = 104,
    seed: int = 0,
    count: int = 1,
    page: Path | None = None,
) -> int:
    """Train a network on noise and save it as JSON.

    Example: noiser train --channels 18 --seed 0 -o srm.json

    Parameters
    ----------
    output
        File to write.
    channels
        Hidden channels; 18 gives 993 parameters.
    noise
        Kind of the training images.
    sigma
        Standard deviation of the noise.
    tv_weight
        Weight of the total variation.
    steps
        Noise images seen.
    size
        Their height and width in pixels.
    seed
        Of weights and noise.
    count
        Networks to train, several at a time, of the seeds from this one on; their files get the
        seed in the name, such as srm-3.json.
    page
        HTML page with the losses.
    """
    # Checked before the work, not after it.
    TrainingRecipe(channels, noise, sigma, tv_weight=tv_weight, steps=steps, size=size, seed=seed)
    make_folder(output.parent)
    if output.is_dir():
        raise InputError(f"output={str(output)!r} is a folder: name a file, for instance srm.json")
    if count < 1:
        raise InputError(f"count={count} is not allowed: an integer of at least 1")
    seeds = range(seed, seed + count)
    logs: list[TrainingLog] = []
    with progress_bar("training", steps * count) as progress:
        models = train_many(
            seeds,
            channels=channels,
            noise=noise,
            sigma=sigma,
            tv_weight=tv_weight,
            steps=steps,
            size=size,
            on_step=lambda step: progress.advance(progress.task_ids[0]),
            logs=logs,
        )
    for number, model in zip(seeds, models):
        name = f"{output.stem}-{number}{output.suffix}"
        path = output if count == 1 else output.with_name(name)
        model.save(path)
        l1, tv = model.training["final_l1"], model.training["final_tv"]
        print(f"{path}: {model.parameters} parameters, final losses L1 {l1:.4f}, TV {tv:.4f}")
    if page is not None:
        write_atomically(page, train_page(list(zip(seeds, logs))).encode())
        print(page)
    return 0


def export_command(
    model: Path | None = None,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    padding: Padding = "reflect",
) -> int:
    """Write a network as an ONNX model of any image size.

    Example: noiser export srm.json -o srm.onnx

    Parameters
    ----------
    model
        Network written by 'noiser train'; without it, the one that ships with the package.
    output
        .onnx file to write.
    padding
        Border rule of the network.
    """
    network = pretrained() if model is None else SelfRegressionModel.load(model)
    write_atomically(output, to_onnx(network, padding))
    print(output)
    return 0


def bench_command(
    *,
    size: Literal["600x400", "1080p", "4k", "8k"] = "1080p",
    repeats: int = 5,
    page: Path | None = None,
    json: bool = False,
) -> int:
    """Time the methods on one thread, beside torch and OpenCV where they are installed.

    Example: noiser bench --size 4k

    Parameters
    ----------
    size
        Of the image.
    repeats
        Of which the median is taken.
    page
        HTML page with the speeds.
    json
        Print one JSON document.
    """
    timings = measure_speed(pretrained(), *SIZES[size], repeats)
    if page is not None:
        write_atomically(page, bench_page(timings, size).encode())
        print(page, file=sys.stderr)
    if json:
        print(dumps([asdict(timing) for timing in timings], indent=1))
        return 0
    for t in timings:
        print(f"{t.name:28} {t.milliseconds:9.2f} ms {t.megapixels_per_second:8.1f} MPix/s")
    return 0
