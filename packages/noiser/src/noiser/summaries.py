"""Self-contained pages of the commands that measure: assess, bench and train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noiser.assess import ExposureReport
from noiser.gallery import histogram_points, thumbnail
from noiser.report import render
from noiser.speed import Timing
from noiser.training import TrainingLog

if TYPE_CHECKING:
    from jaxtyping import Num

_POINTS = 200


def _page(title: str, text: str, columns: Sequence[str], rows: Sequence[Any], **more: Any) -> str:
    values: dict[str, Any] = {"bars": [], "figures": [], **more}
    return render("summary.html.j2", title=title, text=text, columns=columns, rows=rows, **values)


def assess_page(
    found: Sequence[tuple[str, Num[np.ndarray, "height width 3"], ExposureReport]],
) -> str:
    """Build a page that shows how images are exposed.

    Parameters
    ----------
    found : name, pixels and report of each image

    Returns
    -------
    HTML without links to other files
    """
    rows = [
        [
            name, report.recommendation, f"{report.strength:.0%}", f"{report.mean:.2f}",
            f"{report.under:.0%}", f"{report.over:.0%}", f"{report.cast:.2f}",
            f"{report.noise_sigma:.4f}", f"{report.skewness:.1f}",
        ]
        for name, _, report in found
    ]  # fmt: skip
    figures = [
        {
            "title": name,
            "note": f"{report.recommendation}; mean {report.mean:.2f}",
            "image": thumbnail(pixels, 400),
            "width": 64,
            "areas": [histogram_points(pixels)],
            "lines": [],
        }
        for name, pixels, report in found
    ]
    return _page(
        f"Exposure of {len(rows)} images",
        "What the method auto would do, and how far. Histograms of the luma, square root of the"
        " counts.",
        ("image", "advice", "strength", "mean", "dark", "bright", "cast", "noise", "skewness"),
        rows,
        figures=figures,
    )


def bench_page(timings: Sequence[Timing], size: str) -> str:
    """Build a page of the speeds of the methods.

    Parameters
    ----------
    timings : as `measure_speed` returns them
    size : of the image, in words

    Returns
    -------
    HTML without links to other files
    """
    fastest = max(t.megapixels_per_second for t in timings)
    return _page(
        f"Speed at {size}",
        "Median processor time of interleaved runs on one thread.",
        ("what", "ms", "quartiles", "MPix/s"),
        [
            (t.name, f"{t.milliseconds:.2f}", f"{t.spread:.0%}", f"{t.megapixels_per_second:.1f}")
            for t in timings
        ],
        bars=[
            {
                "name": t.name,
                "percent": round(100 * t.megapixels_per_second / fastest, 2),
                "text": f"{t.megapixels_per_second:.1f} MPix/s",
            }
            for t in timings
        ],
    )


def train_page(logs: Sequence[tuple[int, TrainingLog]]) -> str:
    """Build a page of the losses of trainings.

    Parameters
    ----------
    logs : seed and losses of each training

    Returns
    -------
    HTML without links to other files
    """
    finals = [(seed, *log.final()) for seed, log in logs]
    figures = []
    for title, values in (
        ("L1 to the noise", [log.l1 for _, log in logs]),
        ("total variation", [log.tv for _, log in logs]),
    ):
        curves = [_thinned(value) for value in values]
        low, high = min(map(min, curves)), max(map(max, curves))
        figures.append(
            {
                "title": f"{title} over {len(values[0])} steps, one line per seed",
                "note": f"from {low:.3f} (bottom) to {high:.3f} (top)",
                "image": None,
                "width": 100,
                "areas": [],
                "lines": [_line(curve, low, high) for curve in curves],
            }
        )
    return _page(
        f"Training on noise, {len(logs)} seeds" if len(logs) > 1 else "Training on noise",
        "Losses averaged over the last 200 steps; an independent log ends at 0.6953 and 0.0836.",
        ("seed", "L1", "total variation"),
        [(seed, f"{l1:.4f}", f"{tv:.4f}") for seed, l1, tv in finals],
        figures=figures,
    )


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of at most 200 stretches of a curve."""
    parts = np.array_split(np.asarray(values), min(_POINTS, len(values)))
    return [float(part.mean()) for part in parts]


def _line(values: Sequence[float], low: float, high: float) -> str:
    """Points of an SVG polyline, 100 wide and 100 high, with a margin above and below."""
    height = 92 / max(high - low, 1e-12)
    step = 100 / max(len(values) - 1, 1)
    return " ".join(f"{i * step:.2f},{96 - height * (v - low):.2f}" for i, v in enumerate(values))
