"""Writers: SVG, HTML and draw.io of detections (COCO: `Detections.to_coco`, `synth.save_coco`)."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from gptr._files import write_text
from gptr.detections import Detections


def colour(label: int) -> str:
    """Return the colour of a class: hues a golden angle apart."""
    r, g, b = colorsys.hls_to_rgb((label * 0.61803398875) % 1.0, 0.38, 0.75)
    return f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}"


def data_uri(image: np.ndarray) -> str:
    """Return an image as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def svg(found: Detections, edges: Sequence[tuple[int, int]] = ()) -> str:
    """Return boxes (and edges between them) over the image, as SVG."""
    height, width = found.size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10">'
    ]
    if found.image is not None:
        lines.append(f'<image width="{width}" height="{height}" href="{data_uri(found.image)}"/>')
    for a, b in edges:
        (xa, ya), (xb, yb) = ((found.xyxy[i][:2] + found.xyxy[i][2:]) / 2 for i in (a, b))
        lines.append(
            f'<line x1="{xa:.1f}" y1="{ya:.1f}" x2="{xb:.1f}" y2="{yb:.1f}" stroke="#d00"/>'
        )
    for (x0, y0, x1, y1), s, k in zip(found.xyxy, found.scores, found.labels, strict=True):
        c, name = colour(int(k)), escape(found.name(int(k)))
        lines.append(
            f'<g><title>{name} {s:.2f}</title><rect x="{x0:.1f}" y="{y0:.1f}" '
            f'width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none" stroke="{c}" '
            f'stroke-width="1.5"/><text x="{x0:.1f}" y="{max(y0 - 2, 9):.1f}" fill="{c}">'
            f"{name} {s:.2f}</text></g>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def drawio(found: Detections, edges: Sequence[tuple[int, int]] = ()) -> str:
    """Return the diagram as draw.io (diagrams.net) XML: one cell per object and edge."""
    shapes = {"decision": "rhombus", "terminator": "rounded=1", "database": "shape=cylinder3",
              "connector": "ellipse"}  # fmt: skip
    cells = []
    for i, ((x0, y0, x1, y1), k) in enumerate(zip(found.xyxy, found.labels, strict=True)):
        name = found.name(int(k))
        cells.append(
            f'<mxCell id="n{i}" value={quoteattr(name)} '
            f'style="{shapes.get(name, "rounded=0")};whiteSpace=wrap;html=1;" vertex="1" '
            f'parent="1">'
            f'<mxGeometry x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" '
            'as="geometry"/></mxCell>'
        )
    for i, (a, b) in enumerate(edges):
        cells.append(
            f'<mxCell id="e{i}" style="endArrow=classic;html=1;" edge="1" parent="1" '
            f'source="n{a}" target="n{b}"><mxGeometry relative="1" as="geometry"/></mxCell>'
        )
    return (
        '<mxfile><diagram name="page"><mxGraphModel><root><mxCell id="0"/>'
        '<mxCell id="1" parent="0"/>'
        + "".join(cells)
        + "</root></mxGraphModel></diagram></mxfile>\n"
    )


def html(pages: Sequence[tuple[str, Detections]], title: str = "Detections") -> str:
    """Return a page with every image and its boxes; it needs no other file."""
    parts = [
        f"<h2>{escape(name)}</h2>{svg(found)}<p>{len(found)} objects</p>" for name, found in pages
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        "<style>body{font:15px system-ui,sans-serif;margin:24px}"
        "svg{width:min(100%,900px);height:auto}"
        f"</style></head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def write_all(
    found: Detections, stem: Path, formats: Sequence[str], edges: Sequence[tuple[int, int]] = ()
) -> list[Path]:
    """Write ``stem.<format>`` for svg, html, drawio; returns the files."""
    makers = {
        "svg": lambda: svg(found, edges),
        "html": lambda: html([(stem.name, found)]),
        "drawio": lambda: drawio(found, edges),
    }
    written = []
    for name in formats:
        if name not in makers:
            raise ValueError(f"format={name!r}: allowed are coco, {', '.join(makers)}")
        path = stem.with_name(f"{stem.name}.{name}")
        write_text(path, makers[name]())
        written.append(path)
    return written
