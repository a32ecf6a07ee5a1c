"""How fast the methods run here, beside whatever peers are installed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from noiser.enhancement import Enhancer, Settings
from noiser.errors import InputError
from noiser.native import lookup
from noiser.network import SelfRegressionModel
from noiser.passes import apply_network, collect_statistics
from noiser.torch_backend import to_torch

SIZES = {"600x400": (400, 600), "1080p": (1080, 1920), "4k": (2160, 3840), "8k": (4320, 7680)}


@dataclass(frozen=True)
class Timing:
    """Processor time of one function on one image.

    Parameters
    ----------
    name : of the function
    milliseconds : median
    spread : distance of the quartiles, relative to the median
    megapixels_per_second : image size over the median
    """

    name: str
    milliseconds: float
    spread: float
    megapixels_per_second: float


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Dark noise with structure, uint8: the time of the methods does not depend on the content."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 40 + 2, width // 40 + 2, 3)) * 50
    image = coarse.repeat(40, axis=0).repeat(40, axis=1)[:height, :width]
    return (image + rng.random((height, width, 1)) * 8).astype(np.uint8)


def _torch_run(model: SelfRegressionModel, image: np.ndarray) -> Callable[[], object]:
    import torch

    network = to_torch(model)
    tensor = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)

    def run() -> None:
        with torch.inference_mode():
            network(tensor)

    return run


def _clahe_run(image: np.ndarray) -> Callable[[], object]:
    import cv2

    clahe = cv2.createCLAHE(2.0, (8, 8))

    def run() -> None:
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        lab[..., 0] = clahe.apply(lab[..., 0])
        cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)

    return run


def measure_speed(
    model: SelfRegressionModel, height: int, width: int, repeats: int = 5, peers: bool = True
) -> list[Timing]:
    """Time the methods on one thread, interleaved, with torch and OpenCV where they are installed.

    Parameters
    ----------
    model : the network
    height, width : of the image
    repeats : of which the median is taken, at least 2
    peers : also measure torch eager and OpenCV's CLAHE

    Returns
    -------
    one Timing per function; processor time, so that other programs count little

    Raises
    ------
    InputError
        `repeats` is out of range.
    """
    if repeats < 2:
        raise InputError(f"repeats={repeats} is not allowed: an integer of at least 2")
    image = sample_image(height, width)
    out = np.empty_like(image)
    measured = collect_statistics(image)
    closed = Enhancer(settings=Settings("closed_form", threads=1))
    plus = Enhancer(settings=Settings("plus", threads=1))
    table = np.arange(768, dtype=np.uint8).reshape(3, 256)
    functions: dict[str, Callable[[], object]] = {
        "noiser paper: both passes": lambda: apply_network(
            model, image, collect_statistics(image), out=out
        ),
        "noiser paper: statistics": lambda: collect_statistics(image),
        "noiser paper: network": lambda: apply_network(model, image, measured, out=out),
        "noiser plus": lambda: plus(image),
        "noiser closed_form": lambda: closed(image),
        "noiser table of colours": lambda: lookup(image, table),
    }
    restore: list[Callable[[], object]] = []
    if peers:
        try:
            import torch
        except ModuleNotFoundError:
            pass
        else:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            restore.append(lambda: torch.set_num_threads(threads))
            functions["torch eager, same weights"] = _torch_run(model, image)
        try:
            import cv2
        except ModuleNotFoundError:
            pass
        else:
            cv2_threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
            restore.append(lambda: cv2.setNumThreads(cv2_threads))
            functions["OpenCV CLAHE on L"] = _clahe_run(image)
    times: dict[str, list[float]] = {name: [] for name in functions}
    try:
        for run in range(repeats + 1):
            for name, function in functions.items():
                start = time.process_time()
                function()
                if run > 0:  # the first one warms up
                    times[name].append((time.process_time() - start) * 1e3)
    finally:
        for function in restore:
            function()
    timings = []
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        rate = height * width / middle / 1e3
        timings.append(Timing(name, middle, (high - low) / middle, rate))
    return timings
