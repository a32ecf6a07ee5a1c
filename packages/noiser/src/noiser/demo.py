"""The paper's claim on real photographs, computed on the spot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from noiser import baselines, metrics, report
from noiser.camera import retake
from noiser.enhancement import enhance
from noiser.environment import available_cores, describe
from noiser.files import make_folder, write_atomically
from noiser.forward import forward
from noiser.native import instruction_set
from noiser.network import SelfRegressionModel
from noiser.speed import measure_speed
from noiser.statistics import patch_statistics
from noiser.training import TrainingLog, train

# Last losses in the published log of an independent implementation (dengbuqi/NoiSER, log.csv).
INDEPENDENT_LOSSES = (0.6953, 0.0836)
# The layer's usual 1e-5 is a visible part of the variance of a very dark photograph.
_TINY_EPS = 1e-12
UNDER_STOPS, OVER_STOPS = -4.0, 2.0
_LEAD = (
    "A network of about a thousand parameters is trained on Gaussian noise: each noise image is"
    " both input and target. It never sees a photograph. Then it is given real photographs that"
    " a camera model has taken far too dark or far too bright, and gives them back normally lit."
)


@dataclass(frozen=True)
class Scene:
    """A photograph and two bad shots of it."""

    name: str
    original: np.ndarray
    under: np.ndarray
    over: np.ndarray


def scenes(seed: int) -> list[Scene]:
    """Photographs that ship inside scikit-image, taken again 4 stops under and 2 stops over."""
    from skimage import data

    found = []
    for index, name in enumerate(("astronaut", "coffee", "chelsea", "rocket")):
        original = np.asarray(getattr(data, name)())[::1, ::1, :3]
        found.append(
            Scene(
                name,
                original,
                retake(original, UNDER_STOPS, seed=seed + 2 * index),
                retake(original, OVER_STOPS, seed=seed + 2 * index + 1),
            )
        )
    return found


def _methods(model: SelfRegressionModel) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        "photograph as it is": baselines.identity,
        "gain to mean 0.45": baselines.gain,
        "gamma to mean 0.45": baselines.gamma,
        "gray world": baselines.gray_world,
        "histogram equalisation": baselines.histogram_equalisation,
        "CLAHE": baselines.clahe,
        "LIME": baselines.lime,
        "noiser closed form": lambda image: metrics.as_float(enhance(image, method="closed_form")),
        "noiser paper (network)": lambda image: metrics.as_float(
            enhance(image, "paper", model=model)
        ),
        "noiser plus": lambda image: metrics.as_float(enhance(image, "plus")),
        "noiser auto": lambda image: metrics.as_float(enhance(image, "auto")),
    }


def _compare(found: list[Scene], model: SelfRegressionModel) -> dict[str, Any]:
    """Mean PSNR and SSIM of every method in both directions, and the outputs kept for figures."""
    rows, kept = [], {}
    for name, method in _methods(model).items():
        values: list[list[float]] = [[], [], [], []]
        for scene in found:
            for column, shot in ((0, scene.under), (2, scene.over)):
                out = method(shot)
                values[column].append(metrics.psnr(out, metrics.as_float(scene.original)))
                values[column + 1].append(metrics.ssim(out, metrics.as_float(scene.original)))
                kept[name, scene.name, column] = out
        rows.append([name, *(float(np.mean(v)) for v in values)])
    return {"rows": rows, "outputs": kept}


def _invariance(model: SelfRegressionModel, image: np.ndarray) -> dict[str, Any]:
    """Run gains and offsets of one scene in floats, so that nothing clips or rounds."""
    value = metrics.as_float(image)
    shots, outputs, worst = [], [], {}
    for gain, offset in ((1.0, 0.0), (0.5, 0.0), (0.1, 0.0), (0.3, 0.7)):
        shot = gain * value + offset
        shots.append((f"{gain:g} I + {offset:g}", shot))
        outputs.append(forward(model, shot, eps=_TINY_EPS))
    worst["reflect"] = _worst(outputs)
    worst["zeros"] = _worst([forward(model, shot, "zeros", eps=_TINY_EPS) for _, shot in shots])
    worst["eps"] = _worst([forward(model, shot) for _, shot in shots])
    return {"shots": shots, "outputs": outputs, "worst": worst}


def _worst(outputs: list[np.ndarray]) -> float:
    """Largest difference to the first output, in levels of 255."""
    return 255 * max(float(np.abs(out - outputs[0]).max()) for out in outputs)


def _tiling(model: SelfRegressionModel, image: np.ndarray) -> dict[str, Any]:
    """Bands of any height against the whole image, and against statistics taken per band."""
    whole = forward(model, image, tile=image.shape[0])
    exact = all(np.array_equal(forward(model, image, tile=rows), whole) for rows in (1, 7, 64))
    half = image.shape[0] // 2
    naive = np.concatenate([forward(model, image[:half]), forward(model, image[half:])])
    return {"equal": exact, "naive": 255 * float(np.abs(naive - whole).max())}


def run_demo(
    out: Path | str,
    seed: int = 0,
    steps: int = 2000,
    on_step: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Train on noise, enhance real photographs, write result.json, report.html and figures.

    Parameters
    ----------
    out : folder; created
    seed : of the training and of the camera's noise
    steps : training steps
    on_step : called after each training step

    Returns
    -------
    content of result.json

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    out = make_folder(out)
    started = time.perf_counter()
    log = TrainingLog()
    model = train(steps=steps, seed=seed, log=log, on_step=on_step)
    training_seconds = time.perf_counter() - started
    found = scenes(seed)
    compared = _compare(found, model)
    scores = {row[0]: row[1:] for row in compared["rows"]}
    invariance = _invariance(model, found[2].original)
    tiling = _tiling(model, found[2].under)
    paper, closed = scores["noiser paper (network)"], scores["noiser closed form"]
    untouched = scores["photograph as it is"]
    simple = max(
        scores[name][0]
        for name in (
            "gain to mean 0.45",
            "gamma to mean 0.45",
            "gray world",
            "histogram equalisation",
        )
    )
    spreads = [
        metrics.colour_cast(compared["outputs"]["noiser paper (network)", s.name, 0]) for s in found
    ]
    brightness = [
        float(compared["outputs"]["noiser paper (network)", s.name, 0].mean()) for s in found
    ]
    dark = float(np.mean([patch_statistics(s.under).channel_mean.mean() for s in found]))
    final_l1, final_tv = log.final()
    command = f"noiser demo --out DIR --seed {seed}"
    shots = f"4 photographs of scikit-image, camera model at {UNDER_STOPS:+g} EV"
    claims = [
        {
            "name": "Trained on noise alone, the network lights dark photographs:"
            " PSNR to the original, after against before",
            "paper": None,
            "measured": f"{paper[0]:.2f} against {untouched[0]:.2f}",
            "unit": "dB",
            "met": paper[0] > untouched[0],
            "how": f"{shots}; mean over the photographs; {command}",
        },
        {
            "name": "Mean brightness of the output (normally lit is about 0.5)",
            "paper": None,
            "measured": round(float(np.mean(brightness)), 3),
            "unit": "",
            "met": 0.4 <= float(np.mean(brightness)) <= 0.6,
            "how": f"{shots}, input mean {dark:.3f}; {command}",
        },
        {
            "name": "Over-exposure is suppressed: PSNR to the original, after against before",
            "paper": None,
            "measured": f"{paper[2]:.2f} against {untouched[2]:.2f}",
            "unit": "dB",
            "met": paper[2] > untouched[2],
            "how": f"the same photographs at {OVER_STOPS:+g} EV, highlights clipped; {command}",
        },
        {
            "name": "Parameters of the network",
            "paper": "about 1000",
            "measured": model.parameters,
            "unit": "",
            "met": model.parameters <= 1050,
            "how": "18 hidden channels (the paper's own channel count was not available)",
        },
        {
            "name": "Training time",
            "paper": 60,
            "measured": round(training_seconds, 1),
            "unit": "s",
            "met": training_seconds <= 60,
            "how": f"{steps} steps on the processor; the paper used an RTX 2080 Ti; {command}",
        },
        {
            "name": "Gray world: spread of the channel means of the output",
            "paper": 0,
            "measured": round(float(np.mean(spreads)), 4),
            "unit": "",
            "met": float(np.mean(spreads)) <= 0.05,
            "how": f"{shots}; largest minus smallest channel mean; {command}",
        },
        {
            "name": "Losses after training (L1, total variation)",
            "paper": f"{INDEPENDENT_LOSSES[0]}, {INDEPENDENT_LOSSES[1]} (independent log)",
            "measured": f"{final_l1:.4f}, {final_tv:.4f}",
            "unit": "",
            "met": abs(final_l1 - 0.70) <= 0.01 and abs(final_tv - 0.081) <= 0.004,
            "how": f"mean of the last 200 of {steps} steps; met within 0.70 ± 0.01 and"
            f" 0.081 ± 0.004; {command}",
        },
        {
            "name": "Exposure invariance: largest change of the output over gain and offset",
            "paper": 0,
            "measured": round(invariance["worst"]["reflect"], 3),
            "unit": "levels of 255",
            "met": invariance["worst"]["reflect"] <= 1,
            "how": "gains 0.1 ... 1, offset 0 ... 0.7, borders mirrored, eps 1e-12; with the"
            f" layer's usual eps of 1e-5 it is {invariance['worst']['eps']:.1f} levels, with zero"
            f" padding {invariance['worst']['zeros']:.1f}; {command}",
        },
        {
            "name": "Bands of 1, 7 and 64 rows give the whole image's result, bit for bit",
            "paper": None,
            "measured": "equal" if tiling["equal"] else "different",
            "unit": "",
            "met": tiling["equal"],
            "how": "statistics of the whole image folded into the first convolution; with"
            f" statistics per half image the error is {tiling['naive']:.1f} levels of 255;"
            f" {command}",
        },
        {
            "name": "Is it the network? PSNR of the closed form (z-score and tanh, no network)",
            "paper": None,
            "measured": f"{closed[0]:.2f} dark, {closed[2]:.2f} bright"
            f" (network {paper[0]:.2f}, {paper[2]:.2f})",
            "unit": "dB",
            "met": None,
            "how": "normalisation does most of the lighting; best simple baseline on the dark"
            f" shots {simple:.2f} dB; {command}",
        },
    ]
    plus = scores["noiser plus"]
    claims.append(
        {
            "name": "What this package adds: PSNR of the method plus (kept colours, detail)",
            "paper": None,
            "measured": f"{plus[0]:.2f} dark, {plus[2]:.2f} bright"
            f" (network {paper[0]:.2f}, {paper[2]:.2f})",
            "unit": "dB",
            "met": plus[0] > paper[0] and plus[2] > paper[2],
            "how": f"the same photographs; not in the paper; {command}",
        }
    )
    timings = measure_speed(model, 1080, 1920, repeats=3)
    figures = _figures(out, found, compared, invariance, log)
    result = {
        "schema_version": 1,
        "package": "noiser",
        "version": version("noiser"),
        "seed": seed,
        "claims": claims,
        "figures": figures,
        "seconds": round(time.perf_counter() - started, 2),
        "environment": describe(available_cores(), ("numpy", "pillow", "scikit-image")),
    }
    table = {
        "title": "Every method, both directions",
        "columns": ["method", "dark: PSNR dB", "SSIM", "bright: PSNR dB", "SSIM"],
        "rows": [
            [r[0], *(f"{v:.2f}" if i % 2 == 0 else f"{v:.3f}" for i, v in enumerate(r[1:]))]
            for r in compared["rows"]
        ],
        "note": f"Means over {len(found)} photographs; dark: {UNDER_STOPS:+g} EV, bright:"
        f" {OVER_STOPS:+g} EV, 4000 electrons at white, 4 electrons of read noise, 12 bits,"
        " sRGB. PSNR over RGB, SSIM of the luma; no method sees the original.",
    }
    speed = {
        "title": "Speed on this machine, one thread, 1920 x 1080",
        "columns": ["what", "ms", "MPix/s"],
        "rows": [
            [t.name, f"{t.milliseconds:.1f}", f"{t.megapixels_per_second:.1f}"] for t in timings
        ],
        "note": f"Median processor time of 3 interleaved runs; kernels {instruction_set()}. torch"
        " and OpenCV appear where they are installed.",
    }
    page = report.render("demo.html.j2", result=result, lead=_LEAD, tables=[table, speed])
    write_atomically(out / "report.html", page.encode())
    write_atomically(out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result


def _figures(
    out: Path,
    found: list[Scene],
    compared: dict[str, Any],
    invariance: dict[str, Any],
    log: TrainingLog,
) -> list[dict[str, str]]:
    names = ["gamma to mean 0.45", "LIME", "noiser closed form", "noiser paper (network)",
             "noiser plus"]  # fmt: skip
    listed = []
    for column, file, title in (
        (0, "dark.png", "Dark shots: sixteen times less light, with the camera's noise"),
        (2, "bright.png", "Bright shots: four times more light, highlights clipped"),
    ):
        rows, captions = [], []
        for scene in found:
            shot = scene.under if column == 0 else scene.over
            images = [compared["outputs"][name, scene.name, column] for name in names]
            rows.append((scene.name, [shot, *images, scene.original]))
            reference = metrics.as_float(scene.original)
            scores = [
                f"{metrics.psnr(i, reference):.1f} dB" for i in [metrics.as_float(shot), *images]
            ]
            captions.append([*scores, ""])
        sheet = report.contact_sheet(rows, ["shot", *names, "original"], captions)
        write_atomically(out / file, report.figure_png(sheet))
        listed.append({"path": file, "title": title})
    for file, title, figure in (
        (
            "invariance.png",
            "Gain and offset of the exposure do not reach the output",
            report.invariance_figure(invariance["shots"], invariance["outputs"]),
        ),
        (
            "losses.png",
            "Training on noise: losses of this run",
            report.loss_figure(log.l1, log.tv, INDEPENDENT_LOSSES),
        ),
    ):
        write_atomically(out / file, report.figure_png(figure))
        listed.append({"path": file, "title": title})
    return listed
