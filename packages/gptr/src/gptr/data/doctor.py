"""`gptr doctor`: every fault of a COCO data set, with its place and the fix."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gptr.data.coco import _key, _side
from gptr.data.images import DataError, load_image


@dataclass(frozen=True)
class Finding:
    """A fault (``error``), something suspicious (``warning``) or a remark (``note``)."""

    level: str
    code: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.level} [{self.code}] {self.where}: {self.message}"


class _Report(list[Finding]):
    def add(self, level: str, code: str, where: object, message: str) -> None:
        self.append(Finding(level, code, str(where)[:120], message))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_categories(categories: list[Any], report: _Report) -> set[str]:
    known: set[str] = set()
    names: Counter[str] = Counter()
    for i, category in enumerate(categories):
        if not isinstance(category, dict) or "id" not in category:
            report.add("error", "category-id-missing", f"category {i}", "give it an id")
            continue
        key = _key(category["id"])
        if key in known:
            report.add("error", "category-id-repeated", f"category {key}", "make ids unique")
        known.add(key)
        if isinstance(category["id"], str):
            report.add("warning", "category-id-text", f"category {key}", "write ids as integers")
        if not category.get("name"):
            report.add("warning", "category-name-missing", f"category {key}", "name it")
        names[str(category.get("name"))] += 1
    for name, count in names.items():
        if count > 1:
            report.add("error", "category-name-repeated", name, f"{count} categories; merge them")
    numbers = sorted(int(k) for k in known if k.lstrip("-").isdigit() and len(k) < 16)
    if numbers and numbers[-1] - numbers[0] + 1 != len(numbers):
        report.add(
            "warning", "category-id-gaps", "categories",
            f"{len(numbers)} ids from {numbers[0]} to {numbers[-1]}; gptr renumbers them",
        )  # fmt: skip
    return known


def _check_image(
    image: dict[str, Any], folder: Path, report: _Report, pixels: bool
) -> tuple[tuple[int, int] | None, str | None]:
    """Return the size that boxes refer to, and a digest of the pixels."""
    where = f"image {_key(image.get('id'))}"
    stated = (_side(image.get("height")), _side(image.get("width")))
    size = (stated[0], stated[1]) if stated[0] and stated[1] else None
    if size is None:
        report.add("warning", "image-size-missing", where, "state height and width")
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        report.add("error", "image-name-missing", where, "state file_name")
        return size, None
    path = folder / name
    if not path.is_file():
        report.add("error", "image-missing", where, f"{path} does not exist")
        return size, None
    if not pixels:
        return size, None
    try:
        with Image.open(path) as raw:
            turned = raw.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            frame, mode = (raw.height, raw.width), raw.mode
        array = load_image(path, size)
    except (DataError, OSError) as error:
        report.add("error", "image-unreadable", where, " ".join(str(error).split())[:160])
        return size, None
    if turned:
        report.add("warning", "image-turned", where, "EXIF turns it; save the pixels turned")
    if mode not in ("RGB", "L", "1", "P"):
        report.add("warning", "image-mode", where, f"mode {mode}; gptr converts it to RGB")
    if size is not None and size not in (array.shape[:2], frame):
        report.add(
            "error", "image-size-wrong", where,
            f"{path.name} is {array.shape[1]} x {array.shape[0]}, stated {size[1]} x {size[0]}",
        )  # fmt: skip
    return size or array.shape[:2], hashlib.sha256(array.tobytes()).hexdigest()


def _check_box(
    box: object, size: tuple[int, int] | None, where: str, report: _Report
) -> tuple[float, ...] | None:
    if not isinstance(box, list) or len(box) != 4:
        report.add("error", "box-malformed", where, "bbox needs x, y, width, height")
        return None
    if not all(_number(v) for v in box):
        report.add("error", "box-not-numeric", where, "bbox holds something that is no number")
        return None
    if not all(math.isfinite(v) and abs(v) < 1e9 for v in box):
        report.add("error", "box-not-finite", where, "bbox holds NaN or infinity")
        return None
    x, y, w, h = box
    if w < 0 or h < 0:
        report.add("error", "box-negative", where, f"width {w}, height {h}; are these corners?")
        return None
    if w == 0 or h == 0:
        report.add("error", "box-empty", where, f"width {w}, height {h}")
        return None
    if size is not None:
        height, width = size
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            report.add("error", "box-outside", where, "lies outside the image")
            return None
        if x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
            report.add("warning", "box-overhangs", where, "is clipped to the image")
        if w >= 0.98 * width and h >= 0.98 * height:
            report.add("warning", "box-whole-image", where, "covers the whole image")
    if w < 2 or h < 2:
        report.add("warning", "box-tiny", where, f"{w:g} x {h:g} pixels")
    return (x, y, w, h)


def diagnose(
    annotations: str | Path, images: str | Path | None = None, *, queries: int = 100,
    others: Sequence[str | Path] = (), pixels: bool = True,
) -> list[Finding]:  # fmt: skip
    """Return what is wrong with a COCO file; never raises for bad content.

    Parameters
    ----------
    images
        Folder of the images; the file's own or ``images`` beside it by default.
    queries
        Most objects an image may have.
    others
        Files of other splits: images or layouts that occur in both are leaks.
    pixels
        Open the images.
    """
    report = _Report()
    path = Path(annotations)
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        report.add("error", "json", path, " ".join(str(error).split())[:160])
        return report
    if not isinstance(data, dict):
        report.add("error", "json", path, f"holds a {type(data).__name__}, an object is needed")
        return report
    for name in ("images", "annotations", "categories"):
        if not isinstance(data.get(name), list):
            report.add("error", f"{name}-missing", path, f"{name} is missing or no list")
            data[name] = []
    folder = Path(images) if images is not None else path.parent
    if images is None and (path.parent / "images").is_dir():
        folder = path.parent / "images"
    known = _check_categories(data["categories"], report)
    sizes: dict[str, tuple[int, int] | None] = {}
    digests: dict[str, str] = {}
    layouts: set[str] = set()
    file_names: Counter[str] = Counter()
    for i, image in enumerate(data["images"]):
        if not isinstance(image, dict) or "id" not in image:
            report.add("error", "image-id-missing", f"image {i}", "give it an id")
            continue
        key = _key(image["id"])
        if key in sizes:
            report.add("error", "image-id-repeated", f"image {key}", "make ids unique")
        file_names[str(image.get("file_name"))] += 1
        if image.get("layout"):
            layouts.add(str(image["layout"]))
        sizes[key], digest = _check_image(image, folder, report, pixels)
        if digest is not None:
            if digest in digests:
                report.add("warning", "image-repeated", f"image {key}", f"equals {digests[digest]}")
            digests.setdefault(digest, f"image {key}")
    for name, count in file_names.items():
        if count > 1:
            report.add("error", "image-name-repeated", name, f"{count} images share this file")
    _check_annotations(data["annotations"], known, sizes, report, queries)
    for other in others:
        theirs = Path(other)
        _check_leaks(theirs, digests, layouts, report, pixels)
    return report


def _check_annotations(
    annotations: list[Any], known: set[str], sizes: dict[str, tuple[int, int] | None],
    report: _Report, queries: int,
) -> None:  # fmt: skip
    ids: set[str] = set()
    seen: set[tuple[object, ...]] = set()
    objects: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for i, a in enumerate(annotations):
        if not isinstance(a, dict):
            report.add("error", "annotation-malformed", f"annotation {i}", "is no object")
            continue
        where = f"annotation {_key(a.get('id', f'number {i}'))}"
        key = _key(a.get("id"))
        if "id" in a and key in ids:
            report.add("error", "annotation-id-repeated", where, "make ids unique")
        ids.add(key)
        image = _key(a.get("image_id"))
        if image not in sizes:
            report.add("error", "annotation-image-unknown", where, f"image_id {image[:40]}")
        category = _key(a.get("category_id"))
        if category not in known:
            report.add("error", "annotation-category-unknown", where, f"category {category[:40]}")
        used[category] += 1
        objects[image] += 1
        box = _check_box(a.get("bbox"), sizes.get(image), where, report)
        if box is not None:
            if (image, category, box) in seen:
                report.add("warning", "box-repeated", where, "same class and box as another")
            seen.add((image, category, box))
            area = a.get("area")
            if _number(area) and area > 1.01 * box[2] * box[3] + 1:  # type: ignore[operator]
                report.add("warning", "area-wrong", where, f"area {area:g} exceeds the box")
        if a.get("iscrowd") in (1, True):
            report.add("warning", "crowd", where, "crowds are left out")
    for image, count in objects.items():
        if count > queries:
            report.add(
                "error", "too-many-objects", f"image {image}",
                f"{count} objects, queries={queries}; train with queries={count} or more",
            )  # fmt: skip
    empty = [k for k in sizes if not objects[k]]
    if empty:
        report.add("note", "images-empty", f"{len(empty)} images", "have no object; they are kept")
    absent = [k for k in known if not used[k]]
    if absent:
        report.add("note", "classes-absent", f"{len(absent)} classes", "do not occur in this file")


def _check_leaks(
    other: Path, digests: dict[str, str], layouts: set[str], report: _Report, pixels: bool
) -> None:
    try:
        data = json.loads(other.read_bytes())
        entries = [i for i in data["images"] if isinstance(i, dict)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        report.add("error", "json", other, " ".join(str(error).split())[:160])
        return
    folder = other.parent / "images" if (other.parent / "images").is_dir() else other.parent
    for image in entries:
        where = f"{other.name} image {_key(image.get('id'))}"
        if str(image.get("layout") or "-") in layouts:
            report.add("error", "layout-leak", where, "shares its layout with this split")
        path = folder / str(image.get("file_name"))
        if pixels and path.is_file():
            try:
                digest = hashlib.sha256(load_image(path).tobytes()).hexdigest()
            except DataError:
                continue
            if digest in digests:
                report.add("error", "image-leak", where, f"equals {digests[digest]} of this split")
