"""Commands that make, check and split data."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from .errors import require

data_app = cyclopts.App(name="data", help="Make and check scenes, split captions.")


@data_app.command
def make(*, out: Path, count: int = 100, seed: int = 0) -> None:
    """Render scenes: PNG files, COCO captions, tags as JSON lines.

    Example: `p2c data make --count 100 --out scenes/`

    Parameters
    ----------
    out
        Folder.
    count
        Scenes.
    seed
        Of the stream.
    """
    import io
    import json

    from PIL import Image

    from .files import write_atomic, write_json, write_text
    from .scenes import make_scenes

    scenes = make_scenes(count, seed, (0.3, 0.4, 0.3), rich=0.7, references=5)
    notes, lines = [], []
    for i in range(count):
        pixels = (scenes.images[i].numpy().transpose(1, 2, 0) * 255).round().astype("uint8")
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        write_atomic(out / f"{i}.png", lambda file, b=buffer: file.write(b.getvalue()))  # type: ignore[misc]
        notes += [{"image_id": i, "caption": c} for c in scenes.references[i]]
        lines.append(
            json.dumps(
                {"image_id": i, "objects": [{"label": t, "score": 1.0} for t in scenes.tags[i]]}
            )
        )
    images = [{"id": i, "file_name": f"{i}.png", "domain": d} for i, d in enumerate(scenes.domains)]
    write_json(out / "captions.json", {"images": images, "annotations": notes})
    write_text(out / "tags.jsonl", "\n".join(lines) + "\n")
    print(f"{count} scenes in {out}")


@data_app.command
def check(folder: Path, /) -> None:
    """Check a folder of pictures, captions.json and tags.jsonl.

    Example: `p2c data check scenes/`

    Parameters
    ----------
    folder
        As `p2c data make` writes it.
    """
    from .files import read_json
    from .formats import read_image, read_references, read_tags

    references, domains = read_references(folder / "captions.json")
    tags = read_tags(folder / "tags.jsonl")
    for entry in read_json(folder / "captions.json", "captions").get("images", []):
        if "file_name" in entry:
            read_image(folder / str(entry["file_name"]), 8)
    print(
        f"{len(references)} images with captions, {len(tags)} with tags "
        f"({sum(not t for t in tags.values())} of them empty), {len(set(domains.values()))} domains"
    )


@data_app.command
def split(captions: Path, /, *, out: Path, novel: Path | None = None, seed: int = 0) -> None:
    """Split COCO captions by held-out objects, as DCC does: train.json, val.json, test.json.

    Example: `p2c data split captions_train2014.json --out dcc/`

    Parameters
    ----------
    captions
        COCO captions.
    out
        Folder.
    novel
        YAML mapping from an object to its other names; the eight of DCC by default.
    seed
        Of the halves of the images with held-out objects, val and test.
    """
    from .files import read_json
    from .formats import read_names, read_references
    from .splits import DCC_OBJECTS, held_out_split, write_split

    references, _ = read_references(captions)
    coco = "annotations" in read_json(captions, "captions")
    require(coco, "captions", str(captions), "a COCO caption file")
    objects = read_names(novel) if novel else DCC_OBJECTS
    parts = held_out_split(references, objects, seed)
    write_split(captions, parts, out)
    for name, keys in parts.held_out.items():
        print(f"{name}: {len(keys)} images")
    print(f"train {len(parts.train)}, val {len(parts.val)}, test {len(parts.test)} images in {out}")
