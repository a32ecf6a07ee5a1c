"""Symbols: a class is a way to draw; every instance varies, its box is its alpha box."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 96
"""Pixels in which symbols are drawn before they are scaled."""
FLOWCHART = (
    "process",
    "decision",
    "terminator",
    "data",
    "document",
    "database",
    "predefined process",
    "manual input",
    "preparation",
    "delay",
    "off-page reference",
    "connector",
    "merge",
    "cloud",
    "note",
    "display",
)
CIRCUIT = (
    "Resistor",
    "Capacitor",
    "Diode",
    "Inductor2",
    "LED",
    "BjtNpn",
    "Opamp",
    "Ground",
    "Switch",
    "SourceV",
    "SourceI",
    "Battery",
    "Lamp",
    "Fuse",
    "Photodiode",
    "Zener",
    "Crystal",
    "Motor",
    "Speaker",
    "Antenna",
    "BjtPnp",
    "NFet",
    "PFet",
    "Potentiometer",
)


def alpha_crop(image: Image.Image) -> Image.Image:
    """Cut an RGBA image to what can be seen."""
    mask = image.getchannel("A").point(lambda a: 255 if a > 24 else 0)
    box = mask.getbbox()
    return image.crop(box) if box else image


def ink_on_alpha(image: Image.Image) -> Image.Image:
    """Turn dark ink on white into ink on nothing."""
    grey = np.asarray(image.convert("L")).astype(np.int32)
    out = np.zeros((*grey.shape, 4), np.uint8)
    out[..., 3] = (255 - grey).clip(0, 255)
    return Image.fromarray(out)


def require(module: str, family: str) -> None:
    """Raise unless a package that a family draws from is installed."""
    if find_spec(module) is None:
        name = {"resources": "diagrams"}.get(module, module)
        raise ValueError(f"family {family!r} needs {name}: pip install 'gptr[synth]'")


@lru_cache(maxsize=1)
def icon_files() -> tuple[str, ...]:
    """Return the icon files of the installed `diagrams` package, in one order on every machine."""
    require("resources", "architecture")
    spec = find_spec("resources")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("family 'architecture' needs diagrams: pip install 'gptr[synth]'")
    root = Path(next(iter(spec.submodule_search_locations)))
    return tuple(sorted(str(p) for p in root.rglob("*.png")))


@lru_cache(maxsize=2048)
def _icon(path: str) -> Image.Image:
    with Image.open(path) as image:
        small = image.convert("RGBA")
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return alpha_crop(small)


def icon_classes(count: int, seed: int) -> list[str]:
    """Return files of `count` icons that differ in looks and name."""
    files = list(icon_files())
    order = np.random.default_rng([seed, 77]).permutation(len(files))
    chosen: list[str] = []
    seen: list[np.ndarray] = []
    names: set[str] = set()
    for i in order:
        if len(chosen) == count:
            break
        icon = _icon(files[i])
        if min(icon.size) < SIDE // 3 or Path(files[i]).stem in names:
            continue
        flat = np.asarray(icon, float)
        shade = 255 - (flat[..., :3].mean(-1) * flat[..., 3] / 255 + 255 - flat[..., 3])
        if (shade > 40).mean() < 0.25:  # white icons cannot be seen on white
            continue
        tiny = np.asarray(icon.resize((8, 8)).convert("RGBA"), float).ravel()
        if any(np.abs(tiny - other).mean() < 18 for other in seen):
            continue
        seen.append(tiny)
        names.add(Path(files[i]).stem)
        chosen.append(files[i])
    if len(chosen) < count:
        raise ValueError(f"classes={count}: the icons give {len(chosen)} that differ enough")
    return chosen


@lru_cache(maxsize=64)
def _circuit(name: str) -> Image.Image:
    require("schemdraw", "circuit")
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import schemdraw
    import schemdraw.elements as elements

    before = set(plt.get_fignums())
    with mpl.rc_context({"figure.dpi": 100}):
        drawing = schemdraw.Drawing(canvas="matplotlib", show=False)
        drawing.add(getattr(elements, name)())
        data = drawing.get_imagedata("png")
    for number in set(plt.get_fignums()) - before:
        plt.close(number)  # pyplot keeps every figure that schemdraw opens
    with Image.open(io.BytesIO(data)) as image:
        white = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(white, image.convert("RGBA"))
    glyph = alpha_crop(ink_on_alpha(flat))
    glyph.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return glyph


def _flowchart(
    name: str, width: int, height: int, line: int, fill: tuple, ink: tuple
) -> Image.Image:
    """Draw a flowchart symbol three times too large and shrink it."""
    k = 3
    W, H, t = width * k, height * k, line * k
    image = Image.new("RGBA", (W + 2 * t, H + 2 * t), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    x0, y0, x1, y1 = t, t, W + t - 1, H + t - 1
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon(points, fill=fill)
        draw.line([*points, points[0], points[1]], fill=ink, width=t, joint="curve")

    if name in ("process", "predefined process"):
        draw.rectangle((x0, y0, x1, y1), fill, ink, t)
        if name != "process":
            for x in (x0 + W * 0.12, x1 - W * 0.12):
                draw.line((x, y0, x, y1), ink, t)
    elif name == "decision":
        polygon((cx, y0), (x1, cy), (cx, y1), (x0, cy))
    elif name == "terminator":
        draw.rounded_rectangle((x0, y0, x1, y1), H / 2, fill, ink, t)
    elif name == "data":
        polygon((x0 + W * 0.2, y0), (x1, y0), (x1 - W * 0.2, y1), (x0, y1))
    elif name == "document":
        wave = [
            (x0 + W * u, y1 - H * 0.12 + H * 0.1 * math.sin(2 * math.pi * u))
            for u in np.linspace(1, 0, 30)
        ]
        polygon((x0, y0), (x1, y0), *wave)
    elif name == "database":
        lid = H * 0.28
        draw.rectangle((x0, y0 + lid / 2, x1, y1 - lid / 2), fill)
        draw.ellipse((x0, y1 - lid, x1, y1), fill, ink, t)
        draw.rectangle((x0 + t, y0 + lid / 2, x1 - t, y1 - lid / 2), fill)
        draw.line((x0 + t / 2, y0 + lid / 2, x0 + t / 2, y1 - lid / 2), ink, t)
        draw.line((x1 - t / 2, y0 + lid / 2, x1 - t / 2, y1 - lid / 2), ink, t)
        draw.ellipse((x0, y0, x1, y0 + lid), fill, ink, t)
    elif name == "manual input":
        polygon((x0, y0 + H * 0.3), (x1, y0), (x1, y1), (x0, y1))
    elif name == "preparation":
        polygon(
            (x0 + W * 0.2, y0),
            (x1 - W * 0.2, y0),
            (x1, cy),
            (x1 - W * 0.2, y1),
            (x0 + W * 0.2, y1),
            (x0, cy),
        )
    elif name == "delay":
        arc = [
            (x1 - H / 2 + H / 2 * math.sin(u), cy - H / 2 * math.cos(u))
            for u in np.linspace(0, math.pi, 20)
        ]
        polygon((x0, y0), *arc, (x0, y1))
    elif name == "off-page reference":
        polygon((x0, y0), (x1, y0), (x1, y1 - H * 0.35), (cx, y1), (x0, y1 - H * 0.35))
    elif name == "connector":
        draw.ellipse((x0, y0, x1, y1), fill, ink, t)
    elif name == "merge":
        polygon((x0, y0), (x1, y0), (cx, y1))
    elif name == "cloud":
        bumps = [
            (
                cx + W / 2 * (0.84 + 0.16 * math.cos(7 * u)) * math.cos(u),
                cy + H / 2 * (0.84 + 0.16 * math.cos(7 * u)) * math.sin(u),
            )
            for u in np.linspace(0, 2 * math.pi, 90, endpoint=False)
        ]
        polygon(*bumps)
    elif name == "note":
        fold = min(W, H) * 0.25
        polygon((x0, y0), (x1 - fold, y0), (x1, y0 + fold), (x1, y1), (x0, y1))
        draw.line((x1 - fold, y0, x1 - fold, y0 + fold, x1, y0 + fold), ink, t)
    else:  # display
        polygon(
            (x0, cy),
            (x0 + W * 0.2, y0),
            (x1 - W * 0.2, y0),
            (x1, cy),
            (x1 - W * 0.2, y1),
            (x0 + W * 0.2, y1),
        )
        draw.arc((x1 - W * 0.4, y0, x1, y1), -90, 90, ink, t)
    return image.resize((width + 2 * line, height + 2 * line), Image.Resampling.LANCZOS)


def _organism(identity: int, rng: np.random.Generator) -> Image.Image:
    """Draw a creature whose outline, limbs and pattern its class fixes, colours within limits."""
    fixed = np.random.default_rng([identity, 4242])
    k = 2
    size = SIDE * k
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    hue = fixed.integers(40, 220, 3)
    colour = tuple(int(v) for v in (hue + rng.integers(-25, 26, 3)).clip(0, 255))
    ink = tuple(int(v) for v in (hue * 0.4).astype(int))
    aspect = fixed.uniform(0.45, 1.0)
    waves = fixed.uniform(-0.16, 0.16, 4)
    phases = fixed.uniform(0, 2 * math.pi, 4)
    limbs, tail = int(fixed.integers(0, 7)), bool(fixed.integers(2))
    pattern = int(fixed.integers(4))
    radius = size * 0.30
    line = int(rng.integers(2, 5)) * k // 2 + 1
    centre = size / 2

    def outline(u: float, grow: float = 1.0) -> tuple[float, float]:
        r = (
            radius
            * grow
            * (
                1
                + sum(w * math.cos((i + 2) * u + p) for i, (w, p) in enumerate(zip(waves, phases)))
            )
        )
        return centre + r * math.cos(u), centre + r * aspect * math.sin(u)

    for i in range(limbs):
        u = math.pi * (0.15 + 0.7 * i / max(limbs - 1, 1))
        start, end = outline(u, 0.8), outline(u, 1.55)
        draw.line((*start, *end), fill=(*ink, 255), width=line + 2)
    if tail:
        draw.polygon(
            [outline(math.pi, 0.8), outline(math.pi * 0.92, 1.6), outline(math.pi * 1.08, 1.6)],
            fill=(*colour, 255),
            outline=(*ink, 255),
        )
    ring = [outline(u) for u in np.linspace(0, 2 * math.pi, 60, endpoint=False)]
    draw.polygon(ring, fill=(*colour, 255))
    draw.line([*ring, ring[0]], fill=(*ink, 255), width=line)
    for i in range(3 if pattern else 0):
        u = 2 * math.pi * i / 3 + phases[0]
        x, y = centre + 0.4 * radius * math.cos(u), centre + 0.4 * radius * aspect * math.sin(u)
        r = radius * 0.13
        if pattern == 1:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(*ink, 255))
        elif pattern == 2:
            draw.line((x, y - 2 * r, x, y + 2 * r), fill=(*ink, 255), width=line)
        else:
            draw.line((x - 2 * r, y, x + 2 * r, y), fill=(255, 255, 255, 255), width=line)
    x, y = outline(0.0, 0.6)
    draw.ellipse((x - 5, y - 7, x + 5, y + 3), fill=(255, 255, 255, 255), outline=(*ink, 255))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _part(identity: int, rng: np.random.Generator) -> Image.Image:
    """Draw a machine part: a class fixes outline, holes and spokes."""
    fixed = np.random.default_rng([identity, 1717])
    size = SIDE * 2
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    sides, teeth = int(fixed.integers(3, 9)), int(fixed.choice([0, 0, 6, 9, 12]))
    hole, spokes = fixed.uniform(0, 0.5), int(fixed.choice([0, 2, 3, 4, 6]))
    grey = int(fixed.integers(120, 235)) + int(rng.integers(-15, 16))
    tint = fixed.integers(-30, 31, 3)
    fill = (*(int(v) for v in (grey + tint).clip(0, 255)), 255)
    ink = (30, 30, 30, 255)
    aspect = fixed.uniform(0.55, 1.0)
    c, r, line = size / 2, size * 0.44, int(rng.integers(3, 7))
    steps = 120 if teeth else sides
    ring = []
    for u in np.linspace(0, 2 * math.pi, steps, endpoint=False):
        s = 1 + (0.14 * (1 if math.sin(teeth * u) > 0 else -1) if teeth else 0)
        ring.append((c + r * s / 1.14 * math.cos(u), c + r * s / 1.14 * aspect * math.sin(u)))
    draw.polygon(ring, fill=fill)
    draw.line([*ring, ring[0]], fill=ink, width=line)
    for i in range(spokes):
        u = 2 * math.pi * i / spokes
        draw.line((c, c, c + 0.7 * r * math.cos(u), c + 0.7 * r * aspect * math.sin(u)), ink, line)
    if hole > 0.12:
        h = hole * r
        draw.ellipse(
            (c - h, c - h * aspect, c + h, c + h * aspect), (255, 255, 255, 255), ink, line
        )
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_symbol(family: str, identity: str, rng: np.random.Generator, side: int) -> Image.Image:
    """Draw one instance: scaled, turned a little, tinted; cut to its alpha box.

    Parameters
    ----------
    family, identity
        What to draw.
    side
        Longest side in pixels, before turning.
    """
    if family == "flowchart":
        aspect = 1.0 if identity in ("connector", "merge", "decision", "cloud") else 1.6
        aspect *= rng.uniform(0.8, 1.25)
        width, height = (side, max(8, int(side / aspect)))
        pale = tuple(int(v) for v in rng.integers(205, 256, 3))
        fill = (*pale, 255) if rng.random() < 0.7 else (255, 255, 255, 255)
        dark = tuple(int(v) for v in rng.integers(0, 110, 3))
        return alpha_crop(
            _flowchart(identity, width, height, int(rng.integers(1, 4)), fill, (*dark, 255))
        )
    turn = float(rng.uniform(-12, 12))
    if family == "architecture":
        glyph, turn = _icon(identity), float(rng.uniform(-6, 6))
    elif family == "circuit":
        glyph, turn = _circuit(identity), float(rng.choice([0, 90, 180, 270]))
    elif family == "foodweb":
        glyph = _organism(int(identity), rng)
        if rng.random() < 0.5:
            glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        glyph = _part(int(identity), rng)
    ratio = side * (1.5 if family == "circuit" else 1.0) / max(glyph.size)
    size = tuple(max(2, round(s * ratio)) for s in glyph.size)
    glyph = glyph.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    if abs(turn) > 1:
        glyph = glyph.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    if family != "circuit":
        array = np.asarray(glyph).astype(np.float32)
        array[..., :3] = (array[..., :3] * rng.uniform(0.85, 1.1) + rng.uniform(-12, 12)).clip(
            0, 255
        )
        glyph = Image.fromarray(array.astype(np.uint8))
    return alpha_crop(glyph)
