"""Reader of COCO JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gptr.data.dataset import DiagramDataset, Record, clean_box
from gptr.data.images import DataError


def _key(value: object) -> str:
    """Ids are compared as text: "7" and 7 are one id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    DataError
        If it is missing, no JSON, or no object with the three lists of COCO.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot be read as JSON ({line})") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds a {type(data).__name__}, a COCO object is needed")
    for name in ("images", "annotations", "categories"):
        if not isinstance(data.get(name), list):
            raise DataError(f"{path}: {name} is missing or no list; COCO has three lists")
        if not all(isinstance(item, dict) for item in data[name]):
            raise DataError(f"{path}: {name} holds something that is no object")
    return data


def _side(value: object) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6:
        return int(value)
    return None


class COCODataset(DiagramDataset):
    """A COCO file; ids may have gaps, be text, or repeat over splits.

    Parameters
    ----------
    annotations
        JSON file.
    images
        Folder of the images; by default the file's own, or ``images`` beside it.
    like
        A data set (of the training split) whose classes are used; an unknown category raises.
    strict
        Raise at the first malformed box instead of dropping and counting it.

    Raises
    ------
    DataError
        Naming file, image id or annotation id, and the fix.
    """

    def __init__(
        self, annotations: str | Path, images: str | Path | None = None, *,
        like: DiagramDataset | None = None, strict: bool = False,
    ) -> None:  # fmt: skip
        path = Path(annotations)
        data = read_json(path)
        notes: dict[str, int] = {}
        names: dict[str, str] = {}
        numbers: dict[str, int] = {}
        for i, category in enumerate(data["categories"]):
            if "id" not in category:
                raise DataError(f"{path}: category {i} has no id; give it one")
            key = _key(category["id"])
            if key in names:
                raise DataError(f"{path}: category id {key} occurs twice; make ids unique")
            names[key] = str(category.get("name", key))
            digits = key.lstrip("-").isdigit() and len(key) < 16
            numbers[key] = int(key) if digits else i + 1
        if like is None:
            order = sorted(names, key=lambda k: (numbers[k], k))
            index = {k: i for i, k in enumerate(order)}
            class_names = [names[k] for k in order]
            category_ids = [numbers[k] for k in order]
        else:
            place = {name: i for i, name in enumerate(like.class_names)}
            unknown = [n for n in names.values() if n not in place]
            used = {_key(a.get("category_id")) for a in data["annotations"]}
            if bad := [n for k, n in names.items() if n in unknown and k in used]:
                raise DataError(
                    f"{path}: category {bad[0]!r} is not among the {len(place)} of the training "
                    "set; rename it or train with it"
                )
            index = {k: place[n] for k, n in names.items() if n in place}
            class_names, category_ids = list(like.class_names), list(like.category_ids)
        folder = Path(images) if images is not None else path.parent
        if images is None and (path.parent / "images").is_dir():
            folder = path.parent / "images"
        boxes: dict[str, list] = {}
        records: dict[str, Record] = {}
        for i, image in enumerate(data["images"]):
            if "id" not in image or not isinstance(image.get("file_name"), str):
                raise DataError(f"{path}: image {i} has no id or file_name; both are needed")
            key = _key(image["id"])
            if key in records:
                raise DataError(f"{path}: image id {key} occurs twice; make ids unique")
            height, width = _side(image.get("height")), _side(image.get("width"))
            size = (height, width) if height and width else None
            records[key] = Record(
                folder / image["file_name"], np.zeros((0, 4)), np.zeros(0, np.int64), size,
                image["id"], [], str(image.get("layout", "")),
            )  # fmt: skip
            boxes[key] = []
        ids: dict[str, dict[str, int]] = {k: {} for k in records}
        for i, a in enumerate(data["annotations"]):
            where = f"{path}: annotation {a.get('id', f'number {i}')}"
            key = _key(a.get("image_id"))
            if key not in records:
                raise DataError(f"{where}: image_id {key[:60]} is no image; remove it or add it")
            category = _key(a.get("category_id"))
            if category not in index:
                raise DataError(f"{where}: category_id {category[:60]} is not in categories")
            if a.get("iscrowd") in (1, True):
                notes["crowds left out"] = notes.get("crowds left out", 0) + 1
                continue
            corners = clean_box(a.get("bbox"), records[key].size, where, notes, strict)
            if corners is not None:
                ids[key][_key(a.get("id"))] = len(boxes[key])
                boxes[key].append((corners, index[category]))
        for key, found in boxes.items():
            records[key].xyxy = np.array([c for c, _ in found], np.float64).reshape(-1, 4)
            records[key].labels = np.array([k for _, k in found], np.int64)
        for image in data["images"]:
            known = ids[_key(image["id"])]
            for c in image.get("connectors") or []:
                if isinstance(c, dict) and isinstance(c.get("points"), list):
                    ends = [known.get(_key(c.get(e)), -1) for e in ("from", "to")]
                    points = [(float(p[0]), float(p[1])) for p in c["points"]]
                    records[_key(image["id"])].connectors.append((ends[0], ends[1], points))
        super().__init__(list(records.values()), class_names, category_ids, notes)
