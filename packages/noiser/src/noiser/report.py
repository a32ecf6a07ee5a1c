"""Pages and figures, made from results that are already there."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from jaxtyping import Float, Num
    from matplotlib.figure import Figure


def render(template: str, **values: Any) -> str:
    """Fill one of the package's HTML templates."""
    environment = Environment(
        loader=PackageLoader("noiser"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def figure_png(figure: Figure) -> bytes:
    """Render a matplotlib figure as PNG without dates, so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def contact_sheet(
    rows: list[tuple[str, list[Num[np.ndarray, "height width 3"]]]],
    columns: list[str],
    captions: list[list[str]],
) -> Figure:
    """Grid of images: one scene per row, one method per column, a caption under each.

    Parameters
    ----------
    rows : name of the scene and its images, one per column
    columns : titles
    captions : text under each image, [row][column]

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.figure import Figure

    heights = [images[0].shape[0] / images[0].shape[1] for _, images in rows]
    width = 2.35
    figure = Figure(
        figsize=(width * len(columns), sum(width * h + 0.42 for h in heights) + 0.3),
        layout="constrained",
    )
    axes = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for r, (name, images) in enumerate(rows):
        for c, image in enumerate(images):
            axis = axes[r, c]
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(captions[r][c], fontsize=8)
            if r == 0:
                axis.set_title(columns[c], fontsize=9)
            if c == 0:
                axis.set_ylabel(name, fontsize=9)
    return figure


def loss_figure(l1: list[float], tv: list[float], expected: tuple[float, float]) -> Figure:
    """Training losses over the steps, with the level that an independent run ended at."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axis, values, name, level in zip(
        figure.subplots(1, 2), (l1, tv), ("L1 to the noise", "total variation"), expected
    ):
        axis.plot(values, linewidth=0.7)
        axis.axhline(level, color="tab:red", linewidth=1, label=f"independent log: {level}")
        axis.set_xlabel("training step (one noise image each)")
        axis.set_title(name, fontsize=10)
        axis.legend(fontsize=8)
    return figure


def invariance_figure(
    shots: list[tuple[str, Num[np.ndarray, "height width 3"]]],
    outputs: list[Float[np.ndarray, "height width 3"]],
) -> Figure:
    """One scene at several gains and offsets above, the network's outputs below."""
    from matplotlib.figure import Figure

    ratio = shots[0][1].shape[0] / shots[0][1].shape[1]
    figure = Figure(figsize=(2.6 * len(shots), 5.2 * ratio + 0.9), layout="constrained")
    axes = figure.subplots(2, len(shots), squeeze=False)
    for c, ((name, shot), out) in enumerate(zip(shots, outputs)):
        difference = 255 * float(np.abs(out - outputs[0]).max())
        axes[0, c].imshow(shot)
        axes[0, c].set_title(name, fontsize=9)
        axes[1, c].imshow(np.clip(out, 0, 1))
        axes[1, c].set_xlabel(f"largest difference {difference:.2f} of 255", fontsize=8)
        for axis in axes[:, c]:
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].set_ylabel("photograph", fontsize=9)
    axes[1, 0].set_ylabel("output", fontsize=9)
    return figure
