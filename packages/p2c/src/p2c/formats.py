"""Files: COCO and nocaps captions, tags as JSON lines, VinVL features as TSV, images."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError

from .errors import InputError, require
from .files import read_json, write_json

Captions = dict[int | str, list[str]]


def _entry(row: Any, where: str, *keys: str) -> None:
    if not isinstance(row, dict) or any(key not in row for key in keys):
        raise InputError(f"{where}: allowed is an object with {', '.join(keys)}")


def read_references(path: str | Path) -> tuple[Captions, dict[int | str, str]]:
    """Read COCO or nocaps captions: image id to captions, and to the nocaps domain where stated.

    Accepts ``{"images": [...], "annotations": [...]}`` and a plain ``{id: [captions]}``.
    """
    data = read_json(path, "refs")
    require(isinstance(data, dict), "refs", str(path), "a COCO caption file or {id: [captions]}")
    refs: Captions = {}
    domains: dict[int | str, str] = {}
    if "annotations" in data:
        for number, row in enumerate(data["annotations"]):
            _entry(row, f"refs {path}: annotations[{number}]", "image_id", "caption")
            refs.setdefault(row["image_id"], []).append(str(row["caption"]))
        for number, row in enumerate(data.get("images", [])):
            _entry(row, f"refs {path}: images[{number}]", "id")
            if "domain" in row:
                domains[row["id"]] = str(row["domain"])
    else:
        for key, captions in data.items():
            if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                raise InputError(f"refs {path}: {key!r}: allowed is a list of captions")
            refs[int(key) if key.isdigit() else key] = captions
    require(bool(refs), "refs", str(path), "at least one caption")
    return refs, domains


def read_predictions(path: str | Path) -> dict[int | str, str]:
    """Read COCO results ``[{"image_id", "caption"}]``; an id that stands twice is refused."""
    data = read_json(path, "preds")
    require(isinstance(data, list) and bool(data), "preds", str(path), "a list of captions")
    preds: dict[int | str, str] = {}
    for number, row in enumerate(data):
        _entry(row, f"preds {path}: [{number}]", "image_id", "caption")
        key = row["image_id"]
        if key in preds:
            raise InputError(f"preds {path}: image_id {key!r} stands twice; allowed is one caption")
        preds[key] = str(row["caption"])
    return preds


def write_predictions(path: str | Path, preds: Mapping[int | str, str]) -> Path:
    """Write COCO results."""
    return write_json(path, [{"image_id": k, "caption": c} for k, c in preds.items()])


def read_tags(path: str | Path, least_score: float = 0.0) -> dict[int | str, list[str]]:
    """Read tags, one JSON object a line: ``{"image_id", "objects": [{"label", "score"}]}``.

    Labels come best first; an image may have none.
    """
    tags: dict[int | str, list[str]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"tags = {str(path)!r}: allowed is a readable file; {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"tags = {str(path)!r}: allowed is UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"tags {path}: line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{where}: allowed is one JSON object") from None
        _entry(row, where, "image_id", "objects")
        if row["image_id"] in tags:
            raise InputError(f"{where}: image_id {row['image_id']!r} stands twice")
        for thing in row["objects"]:
            _entry(thing, where, "label")
        found = sorted(row["objects"], key=lambda o: -float(o.get("score", 1.0)))
        kept = [str(o["label"]) for o in found if float(o.get("score", 1.0)) >= least_score]
        tags[row["image_id"]] = kept
    return tags


def read_vinvl(path: str | Path) -> dict[str, np.ndarray]:
    """Read VinVL region features (id, JSON with num_boxes and base64 features) from a TSV file.

    Returns
    -------
    dict
        Image id to float32 (boxes, 2054); a row that is not finite is refused.
    """
    found: dict[str, np.ndarray] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"features = {str(path)!r}: allowed is a TSV file; {error}") from None
    for number, line in enumerate(lines, 1):
        where = f"features {path}: line {number}"
        key, _, rest = line.partition("\t")
        try:
            row = json.loads(rest)
            raw = np.frombuffer(base64.b64decode(row["features"]), np.float32)
            features = raw.reshape(int(row["num_boxes"]), -1)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{where}: allowed is id, tab, JSON; {error}") from None
        require(key not in found, where, key, "an id that stands once")
        require(bool(np.isfinite(features).all()), where, "NaN or infinite", "finite features")
        found[key] = features
    return found


def read_features(path: str | Path) -> dict[str, np.ndarray]:
    """Read region features of images from a ``.npz`` or ``.safetensors`` file.

    Returns
    -------
    dict
        Image id to float32 (boxes, features).

    Raises
    ------
    InputError
        The file cannot be read, an array is not of that shape, or a value is not finite.
    """
    where = f"features = {str(path)!r}"
    try:
        if Path(path).suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        elif Path(path).suffix == ".safetensors":
            from safetensors.numpy import load_file

            arrays = load_file(str(path))
        else:
            raise InputError(f"{where}: allowed is a .npz or .safetensors file")
    except InputError:
        raise
    except Exception as error:  # a broken archive raises many types; all mean the same
        text = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: allowed is a readable archive of arrays; {text}") from None
    for key, array in arrays.items():
        good = array.ndim == 2 and array.dtype.kind == "f"
        require(good, f"{where}: {key}", f"{array.dtype}{array.shape}", "floats (boxes, features)")
        require(bool(np.isfinite(array).all()), f"{where}: {key}", "NaN or infinite", "finite")
    return {key: array.astype(np.float32) for key, array in arrays.items()}


def read_glove(path: str | Path, words: Sequence[str]) -> Float[np.ndarray, "words dim"]:
    """Read word vectors from a text file of GloVe (or word2vec): a word and its numbers a line.

    A word that is not in the file takes the vector of ``unknown``, as in the authors' code, or the
    mean of those that are, where the file lacks that too.

    Raises
    ------
    InputError
        The file cannot be read, a line has another length, a number is not finite, or no word is
        in the file.
    """
    wanted, dim = {*words, "unknown"}, 0
    found: dict[str, np.ndarray] = {}
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip().split(" ")
                if number == 1 and len(parts) == 2:  # word2vec's first line counts
                    continue
                dim = dim or len(parts) - 1
                where = f"vectors {path}: line {number}"
                require(
                    0 < dim < len(parts), where, len(parts), f"a word and {dim or 'its'} numbers"
                )
                word = " ".join(parts[:-dim])
                if word in wanted:
                    vector = np.array(parts[-dim:], np.float64)
                    require(bool(np.isfinite(vector).all()), where, word, "finite numbers")
                    found[word] = vector
    except InputError:
        raise
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"vectors = {str(path)!r}: allowed is a text of vectors; {text}") from None
    require(bool(found.keys() & set(words)), "vectors", str(path), "vectors of the captions' words")
    mean: np.ndarray = np.mean([found[w] for w in sorted(found)], axis=0)
    other = found.get("unknown", mean)
    return np.stack([found.get(word, other) for word in words])


def read_names(path: str | Path) -> dict[str, list[str]]:
    """Read a YAML mapping from an object to its other names."""
    try:
        objects: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"novel = {str(path)!r}: allowed is a YAML file; {text}") from None
    good = isinstance(objects, dict) and bool(objects)
    require(good, "novel", str(path), "a mapping from an object to its other names")
    return {str(k): [str(x) for x in v or []] for k, v in objects.items()}


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Read a picture as (3, size, size) in 0 to 1; whatever cannot be read is an `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF tags, which no pixel depends on
            with Image.open(path) as picture:
                small = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"image = {str(path)!r}: allowed is a readable picture; {text}") from None
    return np.asarray(small, np.float32).transpose(2, 0, 1) / 255
