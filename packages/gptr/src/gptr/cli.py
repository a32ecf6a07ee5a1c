"""The command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

import gptr

HELP = "Objects in diagrams, found with gestalt laws that can be looked at."
EXAMPLES = """Examples:

    gptr generate --family mixed --classes 60 --out data/mini    train.json, val.json, images/
    gptr doctor data/mini/train.json --other data/mini/val.json
    gptr train --data data/mini --out runs/a
    gptr eval runs/a --data data/mini
    gptr predict runs/a page.png --format coco,svg,html,drawio --out found
    gptr explain page.png --run runs/a --out why
    gptr compare runs/a runs/b --data data/mini
    gptr convert photos --from-format bpmn --out coco
    gptr export runs/a --onnx model.onnx
    gptr reproduce mini --out mini
    gptr demo --out out
"""

app = App(
    name="gptr",
    help=HELP,
    help_epilogue=EXAMPLES,
    version=gptr.__version__,
    help_format="plaintext",
)
console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")]
Out = Annotated[Path, Parameter(help="Folder for the results; made if needed.")]
LAW_NAMES = {"sim": "similarity", "prox": "proximity", "smo": "smoothness"}


def _table(columns: list[str], rows: list[list[Any]], title: str = "") -> None:
    table = Table(*columns, title=title or None, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    console.print(table)


def _say() -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False)


def _laws(text: str) -> tuple[str, ...]:
    from gptr.gestalt.laws import LAWS

    names = [LAW_NAMES.get(t.strip(), t.strip()) for t in text.split(",") if t.strip()]
    for name in names:
        if name not in LAWS:
            raise ValueError(f"laws={text!r}: allowed are sim, prox, smo, with commas")
    return tuple(law for law in LAWS if law in names)


def _split(data: Path, split: str, like: Any = None) -> Any:
    path = data / f"{split}.json" if data.is_dir() else data
    if data.is_dir() and not path.is_file():
        raise ValueError(f"{path}: not found; --data is a folder with train.json and val.json")
    return gptr.COCODataset(path, like=like)


@app.command
def generate(
    *,
    out: Out,
    family: str = "mixed",
    classes: int = 60,
    images: int = 500,
    val: int = 100,
    zipf: float = 1.0,
    size: int = 192,
    seed: int = 0,
) -> int:
    """Draw annotated diagrams: train.json, val.json, images/ and report.html.

    Parameters
    ----------
    family
        mixed, architecture, foodweb, circuit, flowchart or parts.
    images, val
        Images of the two splits; they share no layout.
    zipf
        Exponent of the class frequencies; 0 makes classes equally frequent.
    size
        Side of the images in pixels.
    """
    from gptr.pages import write_generated
    from gptr.synth.generate import generate_splits, save_coco

    splits = generate_splits(
        {"train": images, "val": val},
        family=family,
        classes=classes,
        zipf=zipf,
        size=size,
        seed=seed,
    )
    for name, data in splits.items():
        console.print(f"{save_coco(data, out, name)}: {data!r}", highlight=False)
    write_generated(splits, out)
    return 0


@app.command
def doctor(
    annotations: Path,
    *,
    images: Path | None = None,
    other: list[Path] | None = None,
    queries: int = 100,
    out: Path | None = None,
    as_json: Json = False,
) -> int:
    """Name every fault of a COCO file; exit code 3 if there is an error.

    Parameters
    ----------
    annotations
        COCO JSON file.
    images
        Folder of the images.
    other
        Files of other splits, to look for leaks.
    queries
        Most objects an image may have.
    out
        Folder for report.html.
    """
    from gptr.data.doctor import diagnose

    if not annotations.is_file():
        raise ValueError(f"{annotations}: no such file")
    found = diagnose(annotations, images, queries=queries, others=other or ())
    if out is not None:
        from gptr.pages import write_diagnosis

        write_diagnosis(found, annotations, out)
    if as_json:
        print(json.dumps([asdict(f) for f in found], indent=1))
    else:
        for f in found:
            console.print(str(f), markup=False, highlight=False)
        console.print(f"{len(found)} findings")
    return 3 if any(f.level == "error" for f in found) else 0


@app.command
def train(
    *,
    data: Path,
    out: Out,
    preset: str = "gptr-tiny",
    laws: str | None = None,
    mode: Literal["gptr", "bias", "official", "none"] | None = None,
    weights: str | None = None,
    backbone: str | None = None,
    epochs: int = 20,
    batch_size: int = 16,
    accumulate: int = 1,
    learning_rate: float = 1e-3,
    ema: float = 0.0,
    amp: bool = False,
    repeat: float = 0.0,
    copy_paste: bool = False,
    augment: bool = False,
    resume: bool = False,
    checkpoint_every: int = 50,
    evaluate_every: int = 0,
    queries: int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> int:
    """Train a detector on train.json, evaluate on val.json, write a report.

    Parameters
    ----------
    data
        Folder with train.json, val.json and images/.
    preset
        gptr-tiny, gptr-nano, gptr-small, gptr-base, conditional or official (or without "gptr-").
    laws
        Gestalt laws in use, of sim, prox, smo; the preset's by default, "" for none.
    repeat
        Threshold of repeat-factor sampling, such as 0.05; 0 for none.
    copy_paste, augment
        Paste rare symbols; flip, crop and scale. Both forgo the feature cache.
    resume
        Continue the run in --out.
    device
        cpu or cuda. Under torchrun every process trains its share.
    """
    from gptr.config import PRESETS
    from gptr.data import transforms
    from gptr.data.sampler import copy_paste as paste
    from gptr.pages import write_evaluation

    train_data = _split(data, "train")
    val_data = _split(data, "val", train_data)
    name = preset if preset in PRESETS else f"gptr-{preset}"
    changes: dict[str, Any] = {"num_classes": len(train_data.class_names)}
    if laws is not None:
        changes["laws"] = _laws(laws)
    given = {"mode": mode, "weights": weights, "backbone": backbone, "queries": queries}
    changes |= {key: value for key, value in given.items() if value is not None}
    if laws is not None and not changes["laws"]:
        changes["mode"] = "none"
    import torch

    torch.manual_seed(seed)
    model = gptr.GPTR.from_config(name, **changes)
    steps = []
    if copy_paste:
        steps.append(paste(train_data))
    if augment:
        steps += [transforms.random_flip(), transforms.random_crop()]
    trainer = gptr.Trainer(
        model,
        train_data,
        val_data,
        out,
        transform=transforms.compose(*steps) if steps else None,
        device=device,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        ema=ema,
        amp=amp,
        repeat=repeat,
        seed=seed,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        on_epoch=lambda row: (
            console.print(
                f"epoch {row['epoch']}, loss {row['loss']:.3f}"
                + "".join(f", {k} {row[k]:.3f}" for k in ("AP", "AP50") if k in row),
                highlight=False,
            )
            if console.is_terminal or "AP" in row
            else None
        ),
    )
    trainer.fit(resume=resume)
    found = trainer.evaluate()
    if trainer.rank == 0:
        write_evaluation(found, out, trainer.history)
        console.print(repr(found), highlight=False)
        console.print(str(out / "report.html"))
    return 0


@app.command(name="eval")
def evaluate(
    run: Path, *, data: Path, split: str = "val", out: Path | None = None, as_json: Json = False
) -> int:
    """Evaluate a trained detector; by class frequency, size and kind of error.

    Parameters
    ----------
    run
        Folder of a training run, or of save_pretrained.
    data
        Folder with train.json and val.json, or one COCO file.
    out
        Folder for report.html and evaluation.json.
    """
    from gptr.pages import write_evaluation

    model = gptr.GPTR.from_pretrained(run)
    like = gptr.DiagramDataset([], model.config.class_names, model.config.category_ids)
    counts = None
    if data.is_dir() and (data / "train.json").is_file():
        counts = _split(data, "train", like).counts
    found = gptr.evaluate(model, _split(data, split, like), counts=counts)
    if out is not None:
        write_evaluation(found, out)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        rows = [[k, v] for k, v in {**found.stats, **found.frequency}.items()]
        _table(["figure", "value"], rows)
        _table(["kind", "count"], [[k, v] for k, v in found.errors.items()])
    return 0


@app.command
def predict(
    run: Path,
    images: list[Path],
    *,
    out: Out = Path(),
    format: str = "coco,svg",
    threshold: float = 0.4,
    connectors: bool = False,
) -> int:
    """Detect objects in images; writes detections.json and one file per image and format.

    Parameters
    ----------
    images
        Image files.
    format
        Of coco, svg, html, drawio, with commas.
    connectors
        Also find the lines that join objects.
    """
    from gptr._files import write_text
    from gptr.connectors import find_connectors
    from gptr.data.writers import write_all

    model = gptr.GPTR.from_pretrained(run)
    formats = [f.strip() for f in format.split(",") if f.strip()]
    entries: list[dict[str, Any]] = []
    for i, path in enumerate(images, 1):
        found = model.predict(path, threshold)
        edges = []
        if connectors and found.image is not None:
            edges = [(c.start, c.end) for c in find_connectors(found.image, found.xyxy)]
        entries += [{**row, "file_name": path.name} for row in found.to_coco(i)]
        written = write_all(found, out / path.stem, [f for f in formats if f != "coco"], edges)
        line = f"{path}: {found!r}" + (f", {len(edges)} connectors" if connectors else "")
        console.print(line, *(str(w) for w in written), markup=False, highlight=False)
    if "coco" in formats:
        write_text(out / "detections.json", json.dumps(entries, indent=1) + "\n")
    return 0


@app.command
def explain(image: Path, *, out: Out, run: Path | None = None) -> int:
    """Show which cells of an image each law links; writes laws.png and report.html.

    Parameters
    ----------
    image
        Image file.
    run
        A trained detector, whose learned scales and weights are used.
    """
    from gptr import figures
    from gptr.data.images import load_image
    from gptr.explain import explain as examine
    from gptr.report import Section, write_report

    model = gptr.GPTR.from_pretrained(run) if run is not None else None
    found = examine(load_image(image), model)
    figures.save(figures.law_maps(found), out / "laws.png")
    rows = [
        [k, f"{v:.3f}", f"{found.weights.get(k, float('nan')):.3f}"]
        for k, v in found.distances.items()
    ]
    columns = ["law", "mean cosine distance of group tokens", "learned weight"]
    _table(columns, rows)
    section = Section("Laws", "Linked cells and groups.", columns, rows, ["laws.png"])
    write_report(
        out / "report.html", f"gptr explain {image.name}", "What each law links.", [section]
    )
    return 0


@app.command
def compare(
    a: Path,
    b: Path,
    *,
    data: Path,
    resamples: int = 500,
    out: Path | None = None,
    as_json: Json = False,
) -> int:
    """Compare two detectors on val.json by a paired bootstrap over images.

    Parameters
    ----------
    a, b
        Folders of training runs.
    data
        Folder with train.json and val.json.
    out
        Folder for report.html.
    """
    tables = []
    for run in (a, b):
        model = gptr.GPTR.from_pretrained(run)
        like = gptr.DiagramDataset([], model.config.class_names, model.config.category_ids)
        tables.append(gptr.evaluate(model, _split(data, "val", like)).table)
    found = [gptr.compare(*tables, figure=f, resamples=resamples) for f in ("AP", "AP50")]
    if out is not None:
        from gptr.pages import write_comparison

        names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
        write_comparison(found, names, out)
    if as_json:
        print(json.dumps([asdict(c) for c in found], indent=1))
    else:
        for c in found:
            console.print(repr(c), highlight=False)
    return 0


@app.command
def convert(
    source: Path,
    *,
    out: Out,
    from_format: Literal["yolo", "voc", "bpmn", "ai2d", "labelme", "coco"],
    split: str = "train",
) -> int:
    """Convert annotations to COCO (images are written as PNG).

    Parameters
    ----------
    source
        Folder, file or zip.
    split
        Name of the split; for bpmn also the sub-folder.
    """
    from gptr.data.formats import READERS, read_bpmn
    from gptr.synth.generate import save_coco

    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if from_format == "bpmn":
        inner = split if source.is_file() or (source / split).is_dir() else ""
        data = read_bpmn(source, inner)
    else:
        data = READERS[from_format](source)
    console.print(f"{save_coco(data, out, split)}: {data!r}", highlight=False)
    return 0


@app.command
def export(run: Path, *, onnx: Path, size: int = 512, as_json: Json = False) -> int:
    """Export to ONNX, check it against torch, and print CPU latency.

    Parameters
    ----------
    onnx
        File to write.
    size
        Side of the square input, a multiple of 32.
    """
    from gptr.export import export_onnx

    result = export_onnx(gptr.GPTR.from_pretrained(run), onnx, (size, size))
    values = {**asdict(result), "path": str(result.path)}
    if as_json:
        print(json.dumps(values, indent=1))
    else:
        _table(["what", "value"], [[k, v] for k, v in values.items()])
    return 0


@app.command
def bench(*, repeats: int = 5, out: Path | None = None, as_json: Json = False) -> int:
    """Time matcher and encoder layers on this machine.

    Parameters
    ----------
    out
        Folder for report.html.
    """
    from gptr.timing import encoder_times, matcher_time

    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    rows = [matcher_time(repeats), *encoder_times((576, 1024), repeats)]
    if out is not None:
        from gptr.pages import write_times

        write_times(rows, out)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _table(["what", "ms"], [[r["what"], r["ms"]] for r in rows])
    return 0


@app.command
def reproduce(
    what: Literal["mini", "bpmn", "ai2d-like"],
    *,
    out: Out,
    data: Path | None = None,
    seeds: int = 3,
    steps: int = 0,
    ablation: bool = False,
    equal_cpu: bool = False,
    size: int = 384,
    only: list[str] | None = None,
) -> int:
    """Train base and gptr at one budget, several seeds; report differences with intervals.

    Parameters
    ----------
    data
        hdBPMN folder or zip, for bpmn.
    seeds
        How many.
    steps
        Optimiser steps; 0 for the default.
    ablation
        Also each law alone and left out.
    equal_cpu
        Equal CPU seconds instead of equal steps.
    size
        Longest side of the photographs of bpmn, pixels.
    only
        Arms to train; all by default.
    """
    from gptr.reproduce import reproduce as run

    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be at least 1")
    result = run(
        what,
        out=out,
        data=data,
        seeds=range(seeds),
        steps=steps,
        ablation=ablation,
        equal_cpu=equal_cpu,
        size=size,
        only=only or (),
        say=_say(),
    )
    columns, rows = result.table()
    _table(columns, rows)
    console.print(str(out / "report.html"))
    return 0


@app.command
def demo(*, out: Out, seed: int = 0) -> int:
    """Laws, training and the official graph's collapse; writes result.json, report.html, figures.

    Parameters
    ----------
    seed
        Everything random derives from it.
    """
    from gptr.demo import run_demo

    result = run_demo(out, seed, _say())
    for claim in result["claims"]:
        met = {True: "yes", False: "no", None: "shown"}[claim["met"]]
        console.print(f"  {met:5} {claim['name']}: {claim['measured']} {claim['unit']}")
    console.print(f"{out / 'report.html'} ({result['seconds']} s)")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit codes are 0, 2 (bad input), 3 (the computation says no), 130."""
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        errors.print(f"gptr: {' '.join(str(error).split())}")
        sys.exit(2)
    except ArithmeticError as error:
        errors.print(f"gptr: {error}")
        sys.exit(3)
    except (ValueError, TypeError, OSError) as error:
        errors.print(f"gptr: {' '.join(str(error).split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("gptr: interrupted; checkpoints are kept")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
