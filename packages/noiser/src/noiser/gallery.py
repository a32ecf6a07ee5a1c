"""A self-contained page with a before/after slider for each image."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from noiser.animation import is_animated, read_animation
from noiser.images import read_picture
from noiser.metrics import as_float, luma
from noiser.report import render

if TYPE_CHECKING:
    from jaxtyping import Num

_LONGEST = 640


def thumbnail(pixels: Num[np.ndarray, "height width 3"], longest: int = _LONGEST) -> str:
    """Encode an image as a data URI: JPEG of at most `longest` pixels."""
    image = Image.fromarray(np.rint(as_float(pixels) * 255).astype(np.uint8))
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def histogram_points(pixels: Num[np.ndarray, "height width 3"]) -> str:
    """Histogram of the luma as the points of an SVG polygon, 64 wide and 100 high."""
    counts, _ = np.histogram(luma(pixels), bins=64, range=(0, 1))
    # Square root: a spike of clipped pixels must not flatten the rest.
    heights = 100 - 95 * np.sqrt(counts / max(counts.max(), 1))
    return " ".join(f"{x + 0.5},{y:.1f}" for x, y in enumerate(heights))


def pixels_of(path: Path) -> Num[np.ndarray, "height width 3"]:
    """Pixels of an image file; of an animation, its first frame."""
    return read_animation(path).frames[0] if is_animated(path) else read_picture(path).pixels


def gallery_page(pairs: Iterable[tuple[str, str]], method: str) -> str:
    """Build the page.

    Parameters
    ----------
    pairs : files before and after
    method : named in the title

    Returns
    -------
    HTML without links to other files

    Raises
    ------
    InputError
        A file cannot be read.
    """
    items: list[dict[str, Any]] = []
    for source, target in pairs:
        before, after = pixels_of(Path(source)), pixels_of(Path(target))
        items.append(
            {
                "name": Path(source).name,
                "before": thumbnail(before),
                "after": thumbnail(after),
                "histogram_before": histogram_points(before),
                "histogram_after": histogram_points(after),
                "mean_before": f"{luma(before).mean():.2f}",
                "mean_after": f"{luma(after).mean():.2f}",
            }
        )
    return render("gallery.html.j2", items=items, method=method)
