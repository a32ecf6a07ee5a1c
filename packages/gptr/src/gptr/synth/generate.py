"""Annotated diagrams of five families, with Zipf-distributed classes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gptr._files import write_text, write_with
from gptr.data.dataset import DiagramDataset, Record
from gptr.synth.layout import Layout, make_layout
from gptr.synth.symbols import CIRCUIT, FLOWCHART, draw_symbol, icon_classes

FAMILIES = ("architecture", "foodweb", "circuit", "flowchart", "parts")
LAYOUTS = {
    "architecture": ("layered", "grid"),
    "foodweb": ("spring",),
    "circuit": ("grid",),
    "flowchart": ("layered",),
    "parts": ("ring",),
}
WORDS = [
    "store", "order", "queue", "send", "check", "input", "grass", "gate", "load", "pump", "axle",
    "valve", "user", "cache", "index", "frog", "plan", "start", "merge", "heat", "lens", "root",
]  # fmt: skip


def class_table(family: str, classes: int, seed: int) -> list[tuple[str, str, str]]:
    """Return (family, identity, name) of each class, most frequent first.

    Raises
    ------
    ValueError
        If the family is unknown, lacks its package, or has fewer classes.
    """
    if family != "mixed" and family not in FAMILIES:
        raise ValueError(f"family={family!r}: allowed are mixed, {', '.join(FAMILIES)}")
    if classes < 1:
        raise ValueError(f"classes={classes}: at least one is needed")
    wanted = FAMILIES if family == "mixed" else (family,)
    share = -(-classes // len(wanted))
    pools: list[list[tuple[str, str, str]]] = []
    for name in wanted:
        limit = {"flowchart": len(FLOWCHART), "circuit": len(CIRCUIT)}.get(name, 10**6)
        if len(wanted) == 1 and classes > limit:
            raise ValueError(f"classes={classes}: family {name!r} has {limit}")
        count = min(share if len(wanted) == 1 else classes, limit)
        if name == "architecture":
            chosen = icon_classes(min(count, share + 8), seed)
            pool = [(name, f, f"{Path(f).parent.parent.name}/{Path(f).stem}") for f in chosen]
        elif name == "circuit":
            pool = [(name, e, e.lower()) for e in CIRCUIT[:count]]
        elif name == "flowchart":
            pool = [(name, e, e) for e in FLOWCHART[:count]]
        else:
            start = 1000 * seed
            pool = [(name, str(start + i), f"{name} {i}") for i in range(count)]
        pools.append(pool)
    table: list[tuple[str, str, str]] = []
    for i in range(classes):
        for pool in pools:
            if i < len(pool) and len(table) < classes:
                table.append(pool[i])
    return table


def _clip(box: np.ndarray, toward: np.ndarray) -> tuple[float, float]:
    """Return where the line from a box's centre to a point leaves the box."""
    centre = (box[:2] + box[2:]) / 2
    d = toward - centre
    half = (box[2:] - box[:2]) / 2 + 2
    t = min((half[i] / abs(d[i]) for i in (0, 1) if abs(d[i]) > 1e-9), default=0.0)
    x, y = centre + d * min(t, 1.0)
    return float(x), float(y)


def _arrow(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], ink: tuple, width: int, head: bool
) -> None:
    draw.line(points, fill=ink, width=width, joint="curve")
    if head:
        (x0, y0), (x1, y1) = points[-2], points[-1]
        angle = math.atan2(y1 - y0, x1 - x0)
        size = 5 + 1.5 * width
        wings = [
            (x1 - size * math.cos(angle + s), y1 - size * math.sin(angle + s))
            for s in (0.45, -0.45)
        ]
        draw.polygon([(x1, y1), *wings], fill=ink)


def _overlaps(box: np.ndarray, placed: list[np.ndarray], gap: float) -> bool:
    return any(
        box[0] < b[2] + gap and box[2] > b[0] - gap and box[1] < b[3] + gap and box[3] > b[1] - gap
        for b in placed
    )


def draw_diagram(
    table: list[tuple[str, str, str]],
    probabilities: np.ndarray,
    layout_of: Callable[[str, int], Layout],
    size: int,
    objects: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list, Layout]:
    """Draw one diagram: symbols of one family, connectors, labels, lines that cross.

    Returns pixels, corners, labels, connectors and the layout.
    """
    families = [row[0] for row in table]
    weight = {f: probabilities[[g == f for g in families]].sum() for f in dict.fromkeys(families)}
    names = list(weight)
    family = names[int(rng.choice(len(names), p=np.array(list(weight.values()))))]
    members = np.array([i for i, f in enumerate(families) if f == family])
    chance = probabilities[members] / probabilities[members].sum()
    count = int(rng.integers(objects[0], objects[1] + 1))
    layout = layout_of(family, count)
    tone = rng.integers(236, 256, 3) if rng.random() < 0.5 else np.array([255, 255, 255])
    image = Image.new("RGB", (size, size), tuple(int(v) for v in tone))
    draw = ImageDraw.Draw(image)
    ink = tuple(int(v) for v in rng.integers(0, 120, 3))
    width = int(rng.integers(1, 4))
    side0 = size * rng.uniform(0.16, 0.24) * min(1.0, 2.6 / math.sqrt(count))
    margin = side0 * 0.75
    boxes: list[np.ndarray] = []
    glyphs: list[tuple[Image.Image, int, int]] = []
    labels: list[int] = []
    nodes: dict[int, int] = {}
    for node, centre in enumerate(layout.centres):
        k = int(rng.choice(members, p=chance))
        glyph = draw_symbol(family, table[k][1], rng, max(10, int(side0 * rng.uniform(0.75, 1.3))))
        for attempt in range(6):
            shift = rng.normal(0, 0.12 * attempt, 2)
            cx, cy = margin + np.clip(centre + shift, 0, 1) * (size - 2 * margin)
            x, y = round(cx - glyph.width / 2), round(cy - glyph.height / 2)
            box = np.array([x, y, x + glyph.width, y + glyph.height], float)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= size and box[3] <= size
            if inside and not _overlaps(box, boxes, 4):
                nodes[node] = len(boxes)
                boxes.append(box)
                glyphs.append((glyph, x, y))
                labels.append(k)
                break
    if family == "architecture" and len(boxes) > 2 and rng.random() < 0.6:
        some = rng.choice(len(boxes), 2, replace=False)
        low = np.min([boxes[i][:2] for i in some], 0) - 8
        high = np.max([boxes[i][2:] for i in some], 0) + 8
        pale = tuple(int(v) for v in rng.integers(215, 250, 3))
        corners = [*np.clip(low, 0, size - 1), *np.clip(high, 1, size)]
        draw.rounded_rectangle([float(v) for v in corners], 6, pale, ink)
    connectors = []
    for a, b in layout.edges:
        if a in nodes and b in nodes:
            i, j = nodes[a], nodes[b]
            ci, cj = ((boxes[n][:2] + boxes[n][2:]) / 2 for n in (i, j))
            if family in ("flowchart", "circuit") and rng.random() < 0.6:
                corner = np.array([cj[0], ci[1]])
                points = [
                    _clip(boxes[i], corner),
                    (float(corner[0]), float(corner[1])),
                    _clip(boxes[j], corner),
                ]
            else:
                points = [_clip(boxes[i], cj), _clip(boxes[j], ci)]
            _arrow(draw, points, ink, width, family != "circuit")
            connectors.append((i, j, points))
    for glyph, x, y in glyphs:
        image.paste(glyph, (x, y), glyph)
    if family in ("foodweb", "parts", "architecture"):
        font = ImageFont.load_default(max(8, size // 24))
        for box in boxes:
            if rng.random() < 0.4 and box[3] + 12 < size:
                word = WORDS[int(rng.integers(len(WORDS)))]
                draw.text((float(box[0]), float(box[3]) + 1), word, fill=ink, font=font)
    for _ in range(int(rng.integers(0, 3))):  # a line may cross symbols, as in real drawings
        ends = rng.uniform(0, size, 4)
        draw.line([float(v) for v in ends], fill=ink, width=1)
    array = np.asarray(image)
    if rng.random() < 0.5:
        noise = rng.normal(0, rng.uniform(1, 5), (size, size, 1))
        array = (array + noise).clip(0, 255).astype(np.uint8)
    corners_all = np.array(boxes, float).reshape(-1, 4)
    return array.copy(), corners_all, np.array(labels, np.int64), connectors, layout


def generate(
    family: str = "mixed",
    classes: int = 60,
    images: int = 500,
    *,
    zipf: float = 1.0,
    seed: int = 0,
    size: int = 192,
    objects: tuple[int, int] = (4, 9),
    split: str = "train",
    avoid: frozenset[str] = frozenset(),
) -> DiagramDataset:
    """Draw annotated diagrams.

    Parameters
    ----------
    family
        ``mixed`` or one of `FAMILIES`.
    classes, images
        How many.
    zipf
        Class k has a frequency proportional to (k + 1)^-zipf; 0 makes all equal.
    seed
        One seed gives the same pixels; the classes depend on it too.
    size
        Side of the square images.
    objects
        Least and most symbols of a layout (those that do not fit are left out).
    split
        Splits draw from streams of their own.
    avoid
        Signatures of layouts that must not occur (those of other splits).

    Examples
    --------
    >>> data = generate("flowchart", classes=5, images=2)
    >>> data[0][0].shape
    (192, 192, 3)
    """
    if images < 0 or size < 48 or not 1 <= objects[0] <= objects[1]:
        raise ValueError(
            f"images={images}, size={size}, objects={objects}: images >= 0, size >= 48 and "
            "1 <= least <= most are needed"
        )
    if not (zipf >= 0 and math.isfinite(zipf)):
        raise ValueError(f"zipf={zipf}: must be a number of at least 0")
    table = class_table(family, classes, seed)
    p = (np.arange(classes) + 1.0) ** -zipf
    p /= p.sum()
    stream = int.from_bytes(split.encode()[:8].ljust(8, b"\0"), "little")
    seen = set(avoid)
    records = []
    for i in range(images):
        rng = np.random.default_rng([seed, stream, i])

        def layout_of(name: str, count: int, rng: np.random.Generator = rng) -> Layout:
            while True:
                kinds = LAYOUTS[name]
                layout = make_layout(kinds[int(rng.integers(len(kinds)))], count, rng)
                if layout.signature not in seen:
                    return layout

        pixels, boxes, labels, connectors, layout = draw_diagram(
            table, p, layout_of, size, objects, rng
        )
        seen.add(layout.signature)
        record = Record(pixels, boxes, labels, (size, size), i, connectors, layout.signature)
        records.append(record)
    return DiagramDataset(records, [name for _, _, name in table])


def generate_splits(counts: dict[str, int], **options: Any) -> dict[str, DiagramDataset]:
    """Draw several splits of which no two share a layout.

    Parameters
    ----------
    counts
        Images per split, such as ``{"train": 150, "val": 100}``.
    options
        Of `generate`.
    """
    out: dict[str, DiagramDataset] = {}
    used: frozenset[str] = frozenset()
    for split, images in counts.items():
        out[split] = generate(images=images, split=split, avoid=used, **options)
        used |= {r.layout for r in out[split].records}
    return out


def save_coco(data: DiagramDataset, folder: str | Path, split: str) -> Path:
    """Write ``images/<split>_NNNNN.png`` and ``<split>.json``; returns the latter."""
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, record in enumerate(data.records):
        pixels = record.load()
        name = f"{split}_{i:05d}.png"
        picture = Image.fromarray(pixels)
        write_with(folder / "images" / name, lambda p, im=picture: im.save(p))  # type: ignore[misc]
        first = len(annotations) + 1
        for (x0, y0, x1, y1), k in zip(record.xyxy.tolist(), record.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": data.category_ids[k],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
        entry: dict[str, Any] = {
            "id": i + 1,
            "file_name": name,
            "height": pixels.shape[0],
            "width": pixels.shape[1],
        }
        if record.layout:
            entry["layout"] = record.layout
        if record.connectors:
            entry["connectors"] = [
                {
                    "from": first + a if a >= 0 else None,
                    "to": first + b if b >= 0 else None,
                    "points": [list(p) for p in points],
                }
                for a, b, points in record.connectors
            ]
        images.append(entry)
    categories = [
        {"id": k, "name": n} for k, n in zip(data.category_ids, data.class_names, strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / f"{split}.json"
    write_text(path, json.dumps(content))
    return path
