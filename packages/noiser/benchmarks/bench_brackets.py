"""Quality on real exposure brackets, both directions, and on photographs taken in the dark."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from common import BRACKETS, parser, read_brackets, write
from noiser import SelfRegressionModel, baselines, enhance, metrics, pretrained, train_many
from noiser.camera import retake
from noiser.environment import available_cores
from skimage import data

NAME = "bench_brackets"
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


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


def over_scenes(scenes: dict, shot: str, measure: Callable) -> np.ndarray:
    """Call `measure` with the shot and the reference of each scene that has it."""
    pairs = [(images[shot], images["reference"]) for images in scenes.values() if shot in images]
    with ThreadPoolExecutor(available_cores()) as pool:
        return np.array(list(pool.map(lambda pair: measure(*pair), pairs)))


def score(scenes: dict, method: Callable, shot: str) -> tuple[float, float, float]:
    """Mean PSNR, SSIM, and PSNR after scaling to the reference's mean."""

    def figures(image: np.ndarray, encoded: np.ndarray) -> tuple[float, float, float]:
        out, reference = metrics.as_float(method(image)), metrics.as_float(encoded)
        scaled = metrics.gt_mean(out, reference)
        return (
            metrics.psnr(out, reference),
            metrics.ssim(out, reference),
            metrics.psnr(scaled, reference),
        )

    psnr, ssim, scaled = over_scenes(scenes, shot, figures).mean(axis=0).tolist()
    return psnr, ssim, scaled


def fused(scenes: dict, shots: tuple[str, ...]) -> dict:
    """Scenes with all these shots; their reference is the Mertens fusion of them, by OpenCV."""
    merge = cv2.createMergeMertens()
    found = {}
    for key, images in scenes.items():
        if not set(shots) <= set(images):
            continue
        # OpenCV wants BGR; the weights of the fusion are the same for any order of channels.
        fusion = merge.process([images[shot] for shot in shots])
        found[key] = {**images, "reference": np.rint(np.clip(fusion, 0, 1) * 255).astype(np.uint8)}
    return found


def order_error(scenes: dict, method: Callable) -> float:
    """Mean LOE of the results against the under-exposed shots, as a share of pairs."""

    def loe(image: np.ndarray, reference: np.ndarray) -> float:
        return metrics.lightness_order_error(method(image), image)

    return float(over_scenes(scenes, "under", loe).mean())


def dark_set() -> dict:
    """Photographs that ship with scikit-image, taken again with a twentieth of the light."""
    found = {}
    for seed, name in enumerate(PHOTOGRAPHS):
        original = np.asarray(getattr(data, name)())[..., :3]
        shot = retake(original, float(np.log2(0.05)), 4000, 4.0, 16, seed)
        found[name] = {"under": shot, "reference": original}
    return found


def casts(scenes: dict, method: Callable) -> tuple[float, float]:
    """Mean colour cast (largest minus smallest channel mean) of the results and the references."""

    def both(image: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
        return metrics.colour_cast(method(image)), metrics.colour_cast(reference)

    shots = [over_scenes(scenes, shot, both) for shot in ("under", "over")]
    ours, wanted = np.concatenate(shots).mean(axis=0).tolist()
    return ours, wanted


def paper_over_seeds(scenes: dict, seeds: range) -> dict[str, np.ndarray]:
    """PSNR of the method paper in both directions, one training per seed."""
    found: dict[str, list[float]] = {"under": [], "over": []}
    for model in train_many(seeds):
        for shot, values in found.items():

            def psnr(image: np.ndarray, reference: np.ndarray, model: Any = model) -> float:
                return metrics.psnr(enhance(image, "paper", model=model, threads=1), reference)

            values.append(float(over_scenes(scenes, shot, psnr).mean()))
    return {shot: np.array(values) for shot, values in found.items()}


def untouched(scenes: dict) -> tuple[float, int]:
    """How many references auto returns bit for bit, and the lowest PSNR of the others."""
    changed, same = [float("inf")], 0
    for images in scenes.values():
        out = enhance(images["reference"])
        if np.array_equal(out, images["reference"]):
            same += 1
        else:
            changed.append(metrics.psnr(out, images["reference"]))
    return min(changed), same


def bar(name: str, value: float, lowest: float, unit: str, note: str = "") -> dict:
    goal = {
        "name": name,
        "goal": f"at least {lowest:g} {unit}".strip(),
        "measured": f"{value:.2f} {unit}".strip() if unit else f"{value:.3f}",
        "met": value >= lowest,
    }
    return {**goal, "note": note} if note else goal


def main() -> None:
    options = parser(__doc__, brackets=True)
    options.add_argument("--seeds", type=int, default=10, help="trainings of the method paper")
    arguments = options.parse_args()
    if arguments.brackets is None:
        print(f"{NAME}: left out, no brackets: give --brackets ZIP or set {BRACKETS}")
        sys.exit(0)
    scenes = read_brackets(arguments.brackets)
    rows, means = [], {}
    for name, method in methods(pretrained()).items():
        under, over = score(scenes, method, "under"), score(scenes, method, "over")
        means[name] = (*under[:2], *over[:2])
        rows.append([name, *(round(v, 3) for v in (*under[:3], *over[:3]))])
        print(*rows[-1], flush=True)
    held_out = {key: scenes[key] for key in sorted(scenes)[1::2]}
    plus = methods(pretrained())["noiser plus"]
    apart = [score(held_out, plus, shot)[:2] for shot in ("under", "over")]
    cast, wanted_cast = casts(scenes, plus)
    seeds = paper_over_seeds(scenes, range(arguments.seeds))
    lowest, same = untouched(scenes)
    best = means["noiser plus"]
    others = [v for k, v in means.items() if not k.startswith("noiser p") and k != "noiser auto"]
    rivals = max(v[0] for v in others), max(v[2] for v in others)
    goals = [
        bar("plus, under-exposed: PSNR", best[0], 20.0, "dB"),
        bar("plus, under-exposed: SSIM", best[1], 0.78, ""),
        bar("plus, over-exposed: PSNR", best[2], 19.5, "dB"),
        bar("plus, over-exposed: SSIM", best[3], 0.80, ""),
        {
            "name": "plus on the 30 scenes that its constants were not chosen on",
            "goal": "the same four bars",
            "measured": f"{apart[0][0]:.2f} dB, {apart[0][1]:.3f} under;"
            f" {apart[1][0]:.2f} dB, {apart[1][1]:.3f} over",
            "met": apart[0][0] >= 20
            and apart[0][1] >= 0.78
            and apart[1][0] >= 19.5
            and apart[1][1] >= 0.80,
        },
        {
            "name": "plus, spread of the channel means of the results, both directions",
            "goal": "at most 0.05",
            "measured": f"{cast:.3f} (the references themselves: {wanted_cast:.3f})",
            "met": cast <= 0.05,
        },
        {
            "name": "plus against the best data-free baseline of the table",
            "goal": "better in both directions",
            "measured": f"{best[0] - rivals[0]:+.2f} dB under, {best[2] - rivals[1]:+.2f} dB over",
            "met": best[0] > rivals[0] and best[2] > rivals[1],
        },
        {
            "name": "plus over Zero-DCE++ (15.68 dB under, 6.68 dB over, on 39 scenes of the set)",
            "goal": "at least 4 dB under, 12 dB over",
            "measured": f"{best[0] - 15.68:.1f} dB, {best[2] - 6.68:.1f} dB",
            "met": best[0] - 15.68 >= 4 and best[2] - 6.68 >= 12,
            "note": "its figures are not measured here: its weights may not be shipped",
        },
        {
            "name": "auto leaves well-exposed photographs alone (the references)",
            "goal": "PSNR to the input at least 32 dB",
            "measured": f"{same} of {len(scenes)} returned bit for bit, the others from"
            f" {lowest:.1f} dB"
            if same < len(scenes)
            else f"all {same} returned bit for bit",
            "met": lowest >= 32,
        },
    ]
    three, two = (fused(scenes, s) for s in (("under", "reference", "over"), ("under", "over")))
    mertens, short = score(three, plus, "under"), score(two, plus, "under")
    order = {name: order_error(scenes, method) for name, method in methods(pretrained()).items()}
    dark, dark_rows = dark_set(), []
    dark_methods = {
        **methods(pretrained()),
        "noiser auto, denoise auto": lambda image: enhance(image, "auto", denoise="auto"),
        "noiser plus, denoise auto": lambda image: enhance(image, "plus", denoise="auto"),
    }
    for name, method in dark_methods.items():
        each = over_scenes(dark, "under", lambda a, b, m=method: metrics.psnr(m(a), b))
        dark_rows.append([name, *(round(float(v), 2) for v in (each.mean(), *each))])
    dark_psnr = {row[0]: row[1] for row in dark_rows}
    goals += [
        {
            "name": "plus, under-exposed, against the Mertens fusion of the scene's three shots",
            "goal": "at least 20.5 dB",
            "measured": f"{mertens[0]:.2f} dB, SSIM {mertens[1]:.3f}",
            "met": mertens[0] >= 20.5,
            "note": f"{len(three)} scenes have all three; fusion of the under- and over-exposed"
            f" shot alone: {short[0]:.2f} dB",
        },
        {
            "name": "auto, photographs taken again with a twentieth of the light and its noise",
            "goal": "at least 19 dB",
            "measured": f"{dark_psnr['noiser auto, denoise auto']:.2f} dB with denoise auto",
            "met": dark_psnr["noiser auto, denoise auto"] >= 19,
            "note": f"without denoise {dark_psnr['noiser auto']:.2f} dB, plus"
            f" {dark_psnr['noiser plus']:.2f} dB: auto lifts by five stops of light at most",
        },
        {
            "name": "plus, order of lightness (LOE, share of pixel pairs), under-exposed",
            "goal": "not above SCI's",
            "measured": f"{order['noiser plus']:.3f} (gamma {order['gamma to mean 0.45']:.3f}, "
            f"CLAHE {order['CLAHE']:.3f}, LIME {order['LIME']:.3f})",
            "met": None,
            "note": "SCI was not run: its weights are not part of any package",
        },
    ]
    for shot, wanted in (("under", 16.9), ("over", 16.0)):
        values = seeds[shot]
        spread = float(values.std(ddof=1))
        goals.append(
            {
                "name": f"method paper, {shot}-exposed, over {values.size} seeds",
                "goal": f"{wanted} ± 0.5 dB, standard deviation at most 0.4",
                "measured": f"{values.mean():.2f} dB, standard deviation {spread:.2f}",
                "met": bool(abs(values.mean() - wanted) <= 0.5 and spread <= 0.4),
                "note": f"best seed {values.max():.2f} dB; the bar comes from one seed on other"
                " scenes of the set, where the closed form also scores 0.4 dB higher",
            }
        )
    tables = [
        {
            "title": f"Means over {len(scenes)} scenes: PSNR (RGB), SSIM (luma), and PSNR after"
            " scaling to the reference's mean, which knows the answer's brightness",
            "columns": ["method", "under PSNR", "under SSIM", "under, reference mean",
                        "over PSNR", "over SSIM", "over, reference mean"],
            "rows": rows,
        },
        {
            "title": "plus on the scenes that its constants were not chosen on (every second one)",
            "columns": ["scenes", "under PSNR", "under SSIM", "over PSNR", "over SSIM"],
            "rows": [[len(held_out), *(round(v, 3) for pair in apart for v in pair)]],
        },
        {
            "title": "PSNR on photographs of scikit-image taken again with a twentieth of the light"
            " (4000 electrons at white, 4 of read-out noise)",
            "columns": ["method", "mean", *PHOTOGRAPHS],
            "rows": dark_rows,
        },
        {
            "title": "Order of lightness on the under-exposed shots: share of pixel pairs turned",
            "columns": ["method", "LOE"],
            "rows": [[name, round(value, 4)] for name, value in order.items()],
        },
    ]  # fmt: skip
    command = f"python benchmarks/{NAME}.py --out benchmarks/results --brackets BRACKETS.zip"
    write(arguments.out, NAME, __doc__.strip(), command, goals, tables, threads=2)


if __name__ == "__main__":
    main()
