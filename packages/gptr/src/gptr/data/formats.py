"""Readers of YOLO, Pascal VOC, BPMN, AI2D and LabelMe annotations."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from gptr.data.coco import COCODataset
from gptr.data.dataset import DiagramDataset, Record, clean_box
from gptr.data.images import DataError, load_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CONTAINERS = ("participant", "lane", "subProcess")
"""BPMN shapes that enclose others."""


def parse_xml(text: bytes | str, where: str) -> ET.Element:
    """Parse XML without document type (entities could expand without bound)."""
    raw = text if isinstance(text, bytes) else text.encode()
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        raise DataError(f"{where}: holds a document type; remove it")
    try:
        return ET.fromstring(raw)
    except ET.ParseError as error:
        raise DataError(f"{where}: cannot be read as XML ({error})") from error


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def _beside(folder: Path, stem: str) -> Path:
    for suffix in SUFFIXES:
        for place in (folder, folder.parent / "images", folder / "images"):
            for name in (stem + suffix, stem + suffix.upper()):
                if (place / name).is_file():
                    return place / name
    raise DataError(f"{folder / stem}: no image with this name and one of {', '.join(SUFFIXES)}")


def _collect(
    rows: Iterable[tuple[Any, tuple[int, int], list[tuple[str, list[float]]], Any]],
    names: list[str] | None = None,
) -> DiagramDataset:
    """Make a data set from (source, size, [(class, x y w h)], id)."""
    notes: dict[str, int] = {}
    gathered = list(rows)
    if names is None:
        names = sorted({name for _, _, objects, _ in gathered for name, _ in objects})
    index = {name: i for i, name in enumerate(names)}
    records = []
    for source, size, objects, key in gathered:
        boxes, labels = [], []
        for name, box in objects:
            corners = clean_box(box, size, f"{key}", notes, False)
            if corners is not None:
                boxes.append(corners)
                labels.append(index[name])
        records.append(
            Record(
                source, np.array(boxes, float).reshape(-1, 4), np.array(labels, np.int64), size, key
            )
        )
    return DiagramDataset(records, names, (), notes)


def read_yolo(folder: str | Path, names: list[str] | None = None) -> DiagramDataset:
    """Read ``labels/*.txt`` (class cx cy w h, in 0..1) beside ``images/``.

    ``names`` is taken from ``data.yaml`` or ``classes.txt`` where it is not given.
    """
    folder = Path(folder)
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    images = folder / "images" if (folder / "images").is_dir() else folder
    if names is None:
        if (folder / "data.yaml").is_file():
            found = (yaml.safe_load((folder / "data.yaml").read_text()) or {}).get("names", [])
            names = list(found.values()) if isinstance(found, dict) else list(found)
        elif (folder / "classes.txt").is_file():
            names = (folder / "classes.txt").read_text().split("\n")
            names = [n.strip() for n in names if n.strip()]
        else:
            raise DataError(f"{folder}: data.yaml or classes.txt with the class names is needed")
    rows = []
    for image in sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES):
        height, width = _image_size(image)
        objects = []
        text = labels / f"{image.stem}.txt"
        lines = text.read_text().splitlines() if text.is_file() else []
        for number, line in enumerate(lines, 1):
            parts = line.split()
            if not parts:
                continue
            try:
                k, (cx, cy, w, h) = int(float(parts[0])), map(float, parts[1:5])
            except (ValueError, OverflowError) as error:
                raise DataError(f"{text}: line {number}: class cx cy w h is needed") from error
            if not 0 <= k < len(names):
                raise DataError(f"{text}: line {number}: class {k}, names has {len(names)}")
            x, y = (cx - w / 2) * width, (cy - h / 2) * height
            objects.append((names[k], [x, y, w * width, h * height]))
        rows.append((image, (height, width), objects, image.stem))
    return _collect(rows, names)


def read_voc(folder: str | Path) -> DiagramDataset:
    """Read Pascal VOC XML files (corners in pixels, the first pixel is 1)."""
    folder = Path(folder)
    rows = []
    for path in sorted(folder.rglob("*.xml")):
        root = parse_xml(path.read_bytes(), str(path))
        image = _beside(path.parent, Path(root.findtext("filename") or path.stem).stem)
        objects = []
        for item in root.iter("object"):
            try:
                x0, y0, x1, y1 = (
                    float(item.findtext(f"bndbox/{k}") or "nan")
                    for k in ("xmin", "ymin", "xmax", "ymax")
                )
            except ValueError as error:
                raise DataError(f"{path}: a bndbox holds something that is no number") from error
            name = item.findtext("name") or "unnamed"
            objects.append((name, [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]))
        rows.append((image, _image_size(image), objects, path.stem))
    return _collect(rows)


def bpmn_objects(
    text: bytes, width: int, where: str
) -> tuple[
    list[tuple[str, list[float]]], list[tuple[str, str, list[tuple[float, float]]]], list[str]
]:
    """Return shapes (class, x y w h), edges (source, target, points) and ids, in pixels.

    hdBPMN's units: pixel = bounds * image width / backgroundSize, which a comment states. The class
    of an event carries its definition, as in ``startEvent/message``.
    """
    found = re.search(rb'"backgroundSize"\s*:\s*(\d+)', text)
    scale = width / int(found.group(1)) if found and int(found.group(1)) else 1.0
    root = parse_xml(text, where)
    kinds: dict[str, str] = {}
    ends: dict[str, tuple[str, str]] = {}
    for node in root.iter():
        tag, key = node.tag.rpartition("}")[2], node.get("id")
        if key is None:
            continue
        kind = tag
        for child in node:
            name = child.tag.rpartition("}")[2]
            if name.endswith("EventDefinition"):
                kind = f"{tag}/{name.removesuffix('EventDefinition')}"
        kinds[key] = kind
        if node.get("sourceRef") and node.get("targetRef"):
            ends[key] = (node.get("sourceRef", ""), node.get("targetRef", ""))
    shapes, edges, ids = [], [], []
    try:
        for node in root.iter():
            tag = node.tag.rpartition("}")[2]
            element = node.get("bpmnElement", "")
            if tag == "BPMNShape":
                bounds = next((c for c in node if c.tag.endswith("}Bounds")), None)
                if bounds is None:
                    continue
                box = [float(bounds.get(k, "nan")) * scale for k in ("x", "y", "width", "height")]
                shapes.append((kinds.get(element, "unknown"), box))
                ids.append(element)
            elif tag == "BPMNEdge":
                points = [
                    (float(c.get("x", "nan")) * scale, float(c.get("y", "nan")) * scale)
                    for c in node
                    if c.tag.endswith("}waypoint")
                ]
                edges.append((*ends.get(element, ("", "")), points))
    except ValueError as error:
        raise DataError(f"{where}: bounds hold something that is no number") from error
    return shapes, edges, ids


def read_bpmn(
    source: str | Path, split: str = "", *, containers: bool = True,
    names: list[str] | None = None,
) -> DiagramDataset:  # fmt: skip
    """Read hand-drawn BPMN (hdBPMN): ``images/`` and ``annotations/*.bpmn``, folder or zip.

    Parameters
    ----------
    split
        Sub-folder, such as ``train``.
    containers
        Keep pools, lanes and sub-processes, which enclose other shapes.
    names
        Classes to use, in order; others are dropped.
    """
    source = Path(source)
    load: Callable[[str], bytes]
    if source.is_file():
        try:
            archive = zipfile.ZipFile(source)
        except zipfile.BadZipFile as error:
            raise DataError(f"{source}: is no zip file") from error
        members, load = archive.namelist(), archive.read
    elif source.is_dir():
        members = [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()]

        def load(name: str) -> bytes:
            return (source / name).read_bytes()
    else:
        raise DataError(f"{source}: no such file or folder")
    images = {Path(m).stem: m for m in sorted(members) if Path(m).suffix.lower() in SUFFIXES}
    wanted = [m for m in sorted(members) if m.endswith(".bpmn") and m.startswith(split)]
    if not wanted:
        raise DataError(f"{source}: no .bpmn file under {split or 'it'!r}")
    rows, links = [], []
    for member in wanted:
        stem = Path(member).stem
        if stem not in images:
            raise DataError(f"{source}: {member} has no image of its name")
        array = load_image(load(images[stem]))
        size = (array.shape[0], array.shape[1])
        shapes, edges, ids = bpmn_objects(load(member), size[1], member)
        keep = [
            i
            for i, (kind, _) in enumerate(shapes)
            if (containers or kind not in CONTAINERS) and (names is None or kind in names)
        ]
        at = {ids[i]: n for n, i in enumerate(keep)}
        image: Any = (source, images[stem]) if source.is_file() else source / images[stem]
        rows.append((image, size, [shapes[i] for i in keep], stem))
        links.append([(at.get(a, -1), at.get(b, -1), p) for a, b, p in edges])
    data = _collect(rows, names)
    for record, found, row in zip(data.records, links, rows, strict=True):
        if len(record.labels) == len(row[2]):  # indices hold only where no box was dropped
            record.connectors = found
    return data


def _ring(points: Any, where: str) -> list[float]:
    try:
        array = np.array(points, float).reshape(-1, 2)
        (x0, y0), (x1, y1) = array.min(0), array.max(0)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: points are no list of x, y") from error
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: an object is needed")
    return data


def read_ai2d(folder: str | Path) -> DiagramDataset:
    """Read AI2D: ``annotations/NAME.png.json`` beside ``images/NAME.png``.

    Classes are AI2D's element kinds: blob, text, arrow, arrowHead.
    """
    folder = Path(folder)
    rows = []
    kinds = {"blobs": "blob", "text": "text", "arrows": "arrow", "arrowHeads": "arrowHead"}
    for path in sorted((folder / "annotations").glob("*.json")):
        data = _json(path)
        image = _beside(folder / "images", Path(path.stem).stem)
        objects = []
        for group, kind in kinds.items():
            for key, item in (data.get(group) or {}).items():
                ring = item.get("polygon") or item.get("rectangle")
                objects.append((kind, _ring(ring, f"{path}: {group} {key}")))
        rows.append((image, _image_size(image), objects, path.stem))
    if not rows:
        raise DataError(f"{folder}: no annotations/*.json")
    return _collect(rows, sorted(kinds.values()))


def read_labelme(folder: str | Path) -> DiagramDataset:
    """Read LabelMe JSON files (polygons and rectangles become boxes)."""
    folder = Path(folder)
    rows = []
    for path in sorted(folder.rglob("*.json")):
        data = _json(path)
        image = path.parent / Path(str(data.get("imagePath", ""))).name
        if not image.is_file():
            image = _beside(path.parent, path.stem)
        objects = [
            (str(s.get("label", "unnamed")), _ring(s.get("points"), f"{path}: shape {i}"))
            for i, s in enumerate(data.get("shapes") or [])
            if isinstance(s, dict)
        ]
        rows.append((image, _image_size(image), objects, path.stem))
    if not rows:
        raise DataError(f"{folder}: no *.json")
    return _collect(rows)


READERS: dict[str, Callable[..., DiagramDataset]] = {
    "coco": COCODataset,
    "yolo": read_yolo,
    "voc": read_voc,
    "bpmn": read_bpmn,
    "ai2d": read_ai2d,
    "labelme": read_labelme,
}
