"""Speed of the network on the processor against torch, ONNX Runtime and OpenCV."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from common import parser, write
from noiser import (
    Enhancer,
    SelfRegressionModel,
    Settings,
    apply_network,
    collect_statistics,
    native,
    pretrained,
)
from noiser.camera import retake
from torch import nn

NAME = "bench_speed"
SIZES = {"600 x 400": (400, 600), "1920 x 1080": (1080, 1920), "3840 x 2160": (2160, 3840)}


def torch_network(model: SelfRegressionModel) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, model.channels, 3, padding=1, padding_mode="reflect"),
        nn.InstanceNorm2d(model.channels),
        nn.GELU(),
        nn.Conv2d(model.channels, 3, 3, padding=1, padding_mode="reflect"),
        nn.Tanh(),
    )
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), model.arrays()):
            parameter.copy_(torch.from_numpy(value))
    return network.eval()


def photograph(height: int, width: int) -> np.ndarray:
    from skimage import data

    dark = retake(data.astronaut(), -4, seed=0)
    return np.tile(dark, (height // 512 + 1, width // 512 + 1, 1))[:height, :width].copy()


def interleaved(functions: dict[str, Callable], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and spread (quartiles, relative) of the processor time, in ms."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append((time.process_time() - start) * 1e3)
    result = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        result[name] = (middle, (high - low) / middle)
    return result


def measure(model: SelfRegressionModel, image: np.ndarray, repeats: int) -> dict:
    network = torch_network(model)
    out = np.empty_like(image)
    measured = collect_statistics(image)
    closed = Enhancer(settings=Settings("closed_form", threads=1))
    plus = Enhancer(settings=Settings("plus", threads=1))
    as_tensor = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
    table = np.arange(768, dtype=np.uint8).reshape(3, 256)

    def run_torch() -> None:
        with torch.inference_mode():
            network(as_tensor)

    functions: dict[str, Callable] = {
        "noiser paper: both passes": lambda: apply_network(
            model, image, collect_statistics(image), out=out
        ),
        "noiser paper: statistics": lambda: collect_statistics(image),
        "noiser paper: network": lambda: apply_network(model, image, measured, out=out),
        "torch eager, same weights": run_torch,
        "noiser closed_form": lambda: closed(image),
        "noiser table of colours": lambda: native.lookup(image, table),
        "noiser plus": lambda: plus(image),
    }
    try:
        import cv2
    except ModuleNotFoundError:
        print("OpenCV is not installed: left out")
    else:
        cv2.setNumThreads(1)
        clahe = cv2.createCLAHE(2.0, (8, 8))

        def run_clahe() -> None:
            lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
            lab[..., 0] = clahe.apply(lab[..., 0])
            cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)

        functions["OpenCV CLAHE on L"] = run_clahe
    return interleaved(functions, repeats)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=7)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    model = pretrained()
    rows, last = [], {}
    for name, (height, width) in SIZES.items():
        last = measure(model, photograph(height, width), arguments.repeats)
        for what, (milliseconds, spread) in last.items():
            rate = height * width / milliseconds / 1e3
            rows.append([name, what, round(milliseconds, 2), f"{spread:.0%}", round(rate, 1)])
    image = photograph(1080, 1920)
    with torch.inference_mode():
        exact = torch_network(model).double()(
            torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1)[None] / 127.5 - 1)
        )
    exact = (exact[0].permute(1, 2, 0).numpy() + 1) * 127.5
    fast = apply_network(model, image, collect_statistics(image), out=np.empty_like(image))
    error = float(np.abs(fast - exact).max())

    pixels = SIZES["3840 x 2160"][0] * SIZES["3840 x 2160"][1] / 1e3
    both, both_spread = last["noiser paper: both passes"]
    ratio = last["torch eager, same weights"][0] / both
    statistics_share = last["noiser paper: statistics"][0] / both
    table, table_spread = last["noiser table of colours"]
    goals = [
        {
            "name": "network at 4K against torch eager, one thread, same weights",
            "goal": "at least 25 times",
            "measured": f"{ratio:.1f} times",
            "met": ratio >= 25,
        },
        {
            "name": "network at 4K, both passes, uint8, one core",
            "goal": "at least 45 MPix/s",
            "measured": f"{pixels / both:.1f} MPix/s (quartiles {both_spread:.0%})",
            "met": pixels / both >= 45,
        },
        {
            "name": "largest error against torch in double precision, uint8",
            "goal": "at most 1 level",
            "measured": f"{error:.3f} levels (0.5 is rounding)",
            "met": error <= 1,
        },
        {
            "name": "statistics pass, share of the total",
            "goal": "at most 20 %",
            "measured": f"{statistics_share:.0%}",
            "met": statistics_share <= 0.2,
        },
        {
            "name": "look-up table path (closed form), one core",
            "goal": "at least 250 MPix/s",
            "measured": f"{pixels / table:.0f} MPix/s (quartiles {table_spread:.0%})",
            "met": pixels / table >= 250,
        },
    ]
    if ratio < 25:
        goals[0]["note"] = "both passes are compared with torch's one forward pass"
    table_of_times = {
        "title": f"Processor time of one thread, median of {arguments.repeats} interleaved runs;"
        f" kernels {native.instruction_set()}",
        "columns": ["size", "what", "ms", "quartiles", "MPix/s"],
        "rows": rows,
    }
    command = f"python benchmarks/{NAME}.py --out benchmarks/results"
    packages = ("numpy", "torch", "opencv-python-headless")
    tables = [table_of_times]
    write(arguments.out, NAME, __doc__.strip(), command, goals, tables, 1, packages)


if __name__ == "__main__":
    main()
