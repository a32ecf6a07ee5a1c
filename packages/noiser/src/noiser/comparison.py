"""Several methods side by side on the same photographs, with a table and a page."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noiser import baselines
from noiser.enhancement import METHODS, enhance, is_one_colour, to_type
from noiser.errors import InputError
from noiser.gallery import pixels_of, thumbnail
from noiser.metrics import (
    as_float,
    colour_cast,
    discrete_entropy,
    gt_mean,
    lightness_order_error,
    luma,
    niqe,
    psnr,
    ssim,
)
from noiser.niqe import PATCH
from noiser.report import render

if TYPE_CHECKING:
    from jaxtyping import Num

    Operator = Callable[[Num[np.ndarray, "height width 3"]], Num[np.ndarray, "height width 3"]]

BASELINES: dict[str, Operator] = {
    "identity": baselines.identity,
    "gain": baselines.gain,
    "gamma": baselines.gamma,
    "gray_world": baselines.gray_world,
    "histogram_equalisation": baselines.histogram_equalisation,
    "clahe": baselines.clahe,
    "lime": baselines.lime,
    "msrcr": baselines.msrcr,
    "zscore": baselines.zscore,
}
# Figures of one result; NIQE needs 96 x 96 pixels, the last three a reference.
COLUMNS = (
    "mean", "colour_cast", "discrete_entropy", "lightness_order_error", "niqe", "seconds",
    "psnr", "ssim", "psnr_gt_mean",
)  # fmt: skip


def operators(names: Iterable[str]) -> dict[str, Operator]:
    """Look methods and baselines up by name.

    Parameters
    ----------
    names : of `METHODS` or `BASELINES`

    Raises
    ------
    InputError
        A name is unknown, or none is given.
    """
    found: dict[str, Operator] = {}
    for name in names:
        if name in METHODS:
            found[name] = partial(enhance, method=name)  # type: ignore[arg-type]
        elif name in BASELINES:
            found[name] = BASELINES[name]
        else:
            raise InputError(
                f"methods={name!r} is not allowed: one of {', '.join((*METHODS, *BASELINES))}"
            )
    if not found:
        raise InputError(
            f"methods=[] is not allowed: one or more of {', '.join((*METHODS, *BASELINES))}"
        )
    return found


@dataclass(frozen=True, eq=False)
class Compared:
    """One photograph under all methods.

    Parameters
    ----------
    name : of the file
    before : its pixels
    results : method -> pixels
    figures : method -> the `COLUMNS`; None where there is no reference
    """

    name: str
    before: Num[np.ndarray, "height width 3"]
    results: dict[str, Num[np.ndarray, "height width 3"]]
    figures: dict[str, dict[str, float | None]]


def compare_one(
    name: str,
    before: Num[np.ndarray, "height width 3"],
    methods: dict[str, Operator],
    reference: Num[np.ndarray, "height width 3"] | None = None,
) -> Compared:
    """Run all methods on one photograph and measure the results.

    Parameters
    ----------
    name : for the table
    before : (height, width, 3) uint8 or uint16
    methods : see `operators`
    reference : the well-exposed photograph of the same shape, if there is one

    Raises
    ------
    InputError
        The reference has another shape.
    """
    results, figures = {}, {}
    for method, operator in methods.items():
        started = time.perf_counter()
        after = before if is_one_colour(before) else operator(before)
        seconds = time.perf_counter() - started
        if after.dtype.kind == "f":
            after = to_type(after, before.dtype)
        row: dict[str, float | None] = {
            "mean": float(luma(after).mean()),
            "colour_cast": colour_cast(after),
            "discrete_entropy": discrete_entropy(after),
            "lightness_order_error": lightness_order_error(after, before),
            "niqe": niqe(after) if min(after.shape[:2]) >= PATCH else None,
            "seconds": seconds,
            "psnr": None,
            "ssim": None,
            "psnr_gt_mean": None,
        }
        if reference is not None:
            value, truth = as_float(after), as_float(reference)
            row |= {
                "psnr": psnr(value, truth),
                "ssim": ssim(value, truth),
                "psnr_gt_mean": psnr(gt_mean(value, truth), truth),
            }
        results[method], figures[method] = after, row
    return Compared(name, before, results, figures)


def compare_files(
    sources: Iterable[Path], methods: dict[str, Operator], references: Path | None = None
) -> Iterator[Compared]:
    """Compare on files.

    Parameters
    ----------
    sources : photographs
    methods : see `operators`
    references : folder with a file of the same stem for each photograph

    Raises
    ------
    InputError
        A file cannot be read, or its reference is missing or of another shape.
    """
    known = {} if references is None else {p.stem: p for p in sorted(references.glob("*"))}
    for source in sources:
        before = pixels_of(source)
        reference = None
        if references is not None:
            if source.stem not in known:
                raise InputError(
                    f"reference={str(references)!r} has no file named {source.stem}: name a folder"
                    " with one reference for each photograph"
                )
            reference = pixels_of(known[source.stem])
            if reference.shape != before.shape:
                raise InputError(
                    f"reference={str(known[source.stem])!r} has the shape {reference.shape}:"
                    f" allowed is {before.shape}, that of {source.name}"
                )
        yield compare_one(source.name, before, methods, reference)


def mean_figures(compared: list[Compared]) -> dict[str, dict[str, float | None]]:
    """Mean of each figure over the photographs, by method."""
    table: dict[str, dict[str, float | None]] = {}
    for method in compared[0].figures:
        row: dict[str, float | None] = {}
        for column in COLUMNS:
            values = [c.figures[method][column] for c in compared]
            known = [v for v in values if v is not None]
            row[column] = float(np.mean(known)) if len(known) == len(values) else None
        table[method] = row
    return table


def comparison_csv(compared: list[Compared]) -> str:
    """One line for each photograph and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "method", *COLUMNS])
    for one in compared:
        for method, row in one.figures.items():
            writer.writerow([one.name, method, *("" if v is None else v for v in row.values())])
    return text.getvalue()


def comparison_page(compared: list[Compared]) -> str:
    """Build a page without links to other files: the table of means, then the photographs."""
    table = mean_figures(compared)
    columns = [c for c in COLUMNS if any(row[c] is not None for row in table.values())]
    best: dict[str, float] = {}
    for column in ("psnr", "ssim", "psnr_gt_mean"):
        values = [v for row in table.values() if (v := row[column]) is not None]
        if values:
            best[column] = max(values)
    rows = [
        {
            "method": method,
            "cells": [
                {
                    "text": "" if (value := row[c]) is None else f"{value:.3g}"
                    if c != "psnr" and c != "psnr_gt_mean" else f"{value:.2f}",
                    "best": value is not None and value == best.get(c),
                }
                for c in columns
            ],
        }
        for method, row in table.items()
    ]  # fmt: skip
    images: list[dict[str, Any]] = []
    for one in compared:
        shown = [{"title": "as it is", "image": thumbnail(one.before, 320), "note": ""}]
        for method, pixels in one.results.items():
            value = one.figures[method]["psnr"]
            note = f"mean {one.figures[method]['mean']:.2f}"
            note += "" if value is None else f", {value:.2f} dB"
            shown.append({"title": method, "image": thumbnail(pixels, 320), "note": note})
        images.append({"name": one.name, "shown": shown})
    titles = [c.replace("_", " ") for c in columns]
    return render("comparison.html.j2", columns=titles, rows=rows, images=images)
