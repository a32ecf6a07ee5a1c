"""Command line."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from .cli_data import data_app
from .errors import InputError, NotFiniteError, require

if TYPE_CHECKING:
    from .config import PipelineConfig

app = cyclopts.App(
    name="p2c",
    version=version("p2c"),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    help="Caption objects that no caption ever taught, by paraphrasing.",
    help_epilogue="""Examples:

    - `p2c demo --out out/`
    - `p2c pipeline --preset tiny --out run/`
    - `p2c pipeline --config run.yaml --out run/ --resume`
    - `p2c evaluate preds.json --refs refs.json --novel novel.yaml --html report.html`
    - `p2c caption picture.png --checkpoint run/captioner.pt --tags zebra,bus --constrain zebra`
    - `p2c score picture.png "a zebra sits on a bus" --checkpoint run/captioner.pt --tags zebra,bus`
    - `p2c explain 17 --run run/`
    - `p2c train stage1 --preset tiny --out run/`
    - `p2c ablate --grid association,repetition --lm none --judge plain --out ablation/`
    - `p2c data make --count 100 --out scenes/`

    Exit codes: 0 success, 2 bad input, 3 the computation says no, 130 Ctrl-C, 141 a
    reader that went away.
    """,
)
app.command(data_app)


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


@app.command
def demo(*, out: Path, seed: int = 0) -> None:
    """Run the tiny preset end to end; write result.json and report.html.

    Example: `p2c demo --out out/`

    Parameters
    ----------
    out
        Folder for the results.
    seed
        Of everything.
    """
    from .demo import run_demo

    result = run_demo(out, seed, _say)
    for claim in result["claims"]:
        word = {True: "yes", False: "no", None: "shown"}[claim["met"]]
        print(f"[{word}] {claim['name']}: {claim['measured']}")
    print(f"report: {out / 'report.html'}")


@app.command
def pipeline(
    *,
    out: Path,
    preset: str | None = None,
    config: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
) -> None:
    """Train every stage; write captions, captioner.pt, run.json, report.html and a checkpoint.

    Example: `p2c pipeline --preset small --out run/`

    Parameters
    ----------
    out
        Folder for the results.
    preset
        tiny, small, paper-text or official-script.
    config
        YAML file with settings, instead of a preset.
    seed
        Instead of the configuration's.
    resume
        Go on from the checkpoint in `out`; the result is the same, bit for bit.
    """
    from .association import SmallAssociation
    from .files import save_tensors, write_json
    from .formats import write_predictions
    from .pipeline import Pipeline
    from .report import write_run_report
    from .summary import summarize

    settings = _settings(preset, config, seed)
    run = Pipeline(settings)
    result = run.run(out, resume=resume, say=_say)
    for arm, captions in result.captions.items():
        name = arm.replace(" + ", "_").replace(" ", "_")
        write_predictions(out / f"captions_{name}.json", dict(enumerate(captions)))
    arms = summarize(result)
    assert result.captioner is not None
    featurizer = {k: getattr(run.featurizer, k) for k in ("mean", "basis", "spread")}
    judge = run.judge.state_dict() if isinstance(run.judge, SmallAssociation) else {}
    state = {
        "captioner": result.captioner.state_dict(),
        "judge": judge,
        "lm": run.lm.state_dict(),
        "featurizer": featurizer,
        "config": settings.as_dict(),
    }
    save_tensors(out / "captioner.pt", state)
    write_json(
        out / "run.json",
        {
            "config": settings.as_dict(),
            "seconds": result.seconds,
            "rewards": result.curves["rewards"],
            "novel_f1": {k: a.novel.macro.value for k, a in arms.items()},
            "cider": {k: a.cider for k, a in arms.items()},
        },
    )
    write_json(out / "paraphrases.json", [vars(a) for a in result.paraphrases])
    write_run_report(out, result, arms)
    for title, arm_ in arms.items():
        print(f"{title}: novel F1 {arm_.novel.macro}, CIDEr in {arm_.cider.get('in', 0):.2f}")


@app.command
def evaluate(
    preds: Path,
    /,
    *,
    refs: Path,
    novel: Path | None = None,
    metrics: str = "bleu,rouge_l,cider",
    html: Path | None = None,
) -> None:
    """Score captions against references.

    Example: `p2c evaluate preds.json --refs refs.json --novel novel.yaml`

    Parameters
    ----------
    preds
        COCO results: a list of image_id and caption.
    refs
        COCO or nocaps captions, or {id: [captions]}.
    novel
        YAML mapping from an object to its other names.
    metrics
        Of bleu, rouge_l, cider, meteor, spice (the last two need Java).
    html
        Also write a page.
    """
    from .figures import intervals, save_png
    from .formats import read_names, read_predictions, read_references
    from .metrics import domain_table, novel_f1, tag_listing
    from .report import Section, write_report

    found = read_predictions(preds)
    references, domains = read_references(refs)
    which = [m for m in metrics.split(",") if m]
    missing = [k for k in found if k not in references]
    require(not missing, "refs", missing[:1], "references for every image of preds")
    table = domain_table(found, references, {k: domains.get(k, "all") for k in found}, which)
    if len(table) == 2 and "all" in table:
        table.pop("all")
    names = list(next(iter(table.values())))
    rows = [(d, *(f"{row[n]:.4f}" for n in names)) for d, row in table.items()]
    print(" ".join(["domain", *names]))
    for row in rows:
        print(" ".join(row))
    sections = [Section("Metrics", columns=("domain", *names), rows=rows)]
    flags = []
    if novel is not None:
        objects = read_names(novel)
        score = novel_f1(found, references, objects)
        f1_rows: list[tuple[Any, ...]] = [
            (t, score.intervals[t], *score.counts[t]) for t in score.f1
        ]
        f1_rows.append(("macro", score.macro, "", "", ""))
        for f1_row in f1_rows:
            print(f"F1 {f1_row[0]}: {f1_row[1]}")
        heads = ("object", "F1 (95 %)", "named and there", "named, not there", "there, not named")
        sections.append(Section("Novel objects", columns=heads, rows=f1_rows))
        if html is not None:
            estimates = {str(row[0]): row[1] for row in f1_rows[-1:] + f1_rows[:-1]}
            picture = html.with_name(f"{html.stem}_f1.png")
            save_png(intervals({"F1 of novel objects (95 %)": estimates}), picture)
            sections[-1].figures = [picture.name]
        share, listed = tag_listing(found, objects)
        if listed:
            flags.append(
                f"{100 * share:.0f} % of the words are object names: these captions list tags; F1 "
                "does not speak for them."
            )
            print(f"warning: {flags[-1]}", file=sys.stderr)
    if html is not None:
        lead = f"{len(found)} captions of {preds.name} against {refs.name}."
        write_report(html, "Captions against references", lead, sections, flags)


@app.command
def caption(
    images: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    checkpoint: Path,
    tags: str = "",
    beam: int = 5,
    constrain: str = "",
    objects: Path | None = None,
    html: Path | None = None,
) -> None:
    """Caption pictures of one scene each, with a captioner that `p2c pipeline` trained.

    The whole picture stands for both regions. Example:
    `p2c caption a.png --checkpoint run/captioner.pt --tags zebra,bus --constrain zebra`

    Parameters
    ----------
    images
        Pictures.
    checkpoint
        captioner.pt.
    tags
        Objects, as a detector would name them.
    beam
        Width of the search.
    constrain
        Objects that the caption must name.
    objects
        YAML file with new objects, a line each, `settee: couch` or `unicorn: a horse with a hat`:
        they can be tags and constraints at once, without training.
    html
        Also write a page with the pictures.
    """
    from .inference import caption_images
    from .new_objects import read_objects
    from .report import Section, write_report

    new = read_objects(objects) if objects else {}
    found = caption_images(images, checkpoint, tags, beam, constrain, new)
    for path, text in zip(images, found):
        print(f"{path}: {text}")
    if html is not None:
        sections = [
            Section(f"{path.name}: {text or 'no caption meets the constraints'}",
                    figures=[_copy_picture(path, html.parent, n)])
            for n, (path, text) in enumerate(zip(images, found))
        ]  # fmt: skip
        lead = f"Beam {beam}; tags: {tags or 'none'}; must name: {constrain or 'nothing'}."
        write_report(html, "Captions", lead, sections)


def _copy_picture(path: Path, folder: Path, number: int = 0) -> str:
    """Write a picture beside a page, large enough to be seen; return its name."""
    from .formats import read_image

    return _write_large(read_image(path, 48), folder / f"picture_{number}.png")


def _write_large(values: Any, path: Path) -> str:
    """Write a picture (3, 48, 48) of values 0 to 1 six times as large; return its name."""
    import io

    from PIL import Image

    from .files import write_atomic

    pixels = (values.transpose(1, 2, 0) * 255).round().astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((288, 288), Image.Resampling.NEAREST).save(buffer, "png")
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
    return path.name


@app.command
def score(
    image: Path,
    text: str,
    /,
    *,
    checkpoint: Path,
    tags: str = "",
    refs: Annotated[list[str] | None, Parameter(negative=())] = None,
    json: bool = False,
    html: Path | None = None,
) -> None:
    """Show every reward term of a caption of a picture.

    Example: `p2c score a.png "a zebra on a bus" --checkpoint run/captioner.pt --tags zebra,bus`

    Parameters
    ----------
    image
        Picture.
    text
        Caption.
    checkpoint
        captioner.pt of `p2c pipeline`.
    tags
        Objects, as a detector would name them; without them the coverage is 0.
    refs
        Reference captions; without them there is no CIDEr.
    json
        Print JSON.
    html
        Also write a page.
    """
    import json as encoder

    from .inference import score_caption, split_words
    from .report import Section, write_report

    found = score_caption(image, text, checkpoint, split_words(tags), refs or ())
    if json:
        print(encoder.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value:.4f}")
    if html is not None:
        says = {
            "association": "probability of retrieval among 48 scenes and captions, at most 0.8",
            "cosine": "of the judge's vectors",
            "clipscore": "2.5 times the cosine, not below 0",
            "coverage": "tags matched to words, at most 0.6",
            "repetition": "1 for words that do not resemble one another, at most 0.5",
            "fluency": "mean log-probability of each word by the language model",
            "cider": "against the given references, 0 to 10",
        }
        rows = [(name, f"{value:.4f}", says[name]) for name, value in found.items()]
        section = Section(text, columns=("term", "value", "what"), rows=rows,
                          figures=[_copy_picture(image, html.parent)])  # fmt: skip
        lead = f"{image.name}; tags: {tags or 'none'}."
        write_report(html, "Reward terms of a caption", lead, [section])


@app.command
def explain(scene: int, /, *, run: Path, html: Path | None = None) -> None:
    """Show what stage 1 proposed for an unpaired scene, and whether the gate took it.

    Example: `p2c explain 17 --run run/`

    Parameters
    ----------
    scene
        Number of the scene.
    run
        Folder of `p2c pipeline`.
    html
        Also write a page with the scene.
    """
    from .config import PipelineConfig
    from .files import read_json
    from .report import Section, write_report
    from .scenes import make_scenes

    found = read_json(run / "paraphrases.json", "run")
    settings = read_json(run / "run.json", "run")
    asked = {row["scene"]: row for row in found}
    some = ", ".join(map(str, list(asked)[:8]))
    require(scene in asked, "scene", scene, f"a scene that was asked about: {some}, ...")
    row = asked[scene]
    config = PipelineConfig.from_dict(settings["config"])
    words = row["before"].split(), row["after"].split()
    masked = " ".join("[MASK]" if a != b else a for a, b in zip(*words))
    gain, verdict = row["a_after"] - row["a_before"], "yes" if row["accepted"] else "no"
    rows = [
        ("greedy caption", row["before"]),
        ("masked", masked),
        ("paraphrase", row["after"]),
        ("A before", f"{row['a_before']:.4f}"),
        ("A after", f"{row['a_after']:.4f}"),
        ("gain", f"{gain:.4f}; the margin is {config.margin}"),
        ("accepted", verdict),
        ("true verb", row["true_verb"]),
    ]
    for name, value in rows:
        print(f"{name}: {value}")
    if html is not None:
        scenes = make_scenes(scene + 1, config.seed * 10 + 2, (0.3, 0.4, 0.3), **config.noise)
        picture = _write_large(scenes.images[scene].numpy(), html.parent / "scene.png")
        section = Section(f"Scene {scene}", columns=("", ""), rows=rows, figures=[picture])
        lead = (
            f"What stage 1 proposed for a scene without captions, and the gate's word ({run.name})."
        )
        write_report(html, "A paraphrase and its judgement", lead, [section])


@app.command
def train(
    stage: str,
    /,
    *,
    out: Path,
    preset: str | None = None,
    config: Path | None = None,
    resume: bool = False,
) -> None:
    """Train up to one stage: lm, judge, vivo, xe, stage1, stage2; `p2c pipeline --resume` goes on.

    Under `torchrun --nproc-per-node 2 -m p2c.cli train ...` processes share the captioner's steps;
    the gate sees the captions of all of them. Example:
    `p2c train stage1 --preset tiny --out run/`

    Parameters
    ----------
    stage
        The last one to train; those that it builds on are trained before, or read with --resume.
    out
        Folder of the checkpoint.
    preset
        tiny, small, paper-text or official-script.
    config
        YAML file with settings, instead of a preset.
    resume
        Go on from the checkpoint in `out`.
    """
    from .distributed import processes
    from .pipeline import Pipeline

    settings = _settings(preset, config)
    with processes() as first:
        Pipeline(settings).train(stage, out, resume=resume, say=_say)
        if first:
            print(f"{stage} is trained: {out / 'checkpoint.pt'}")


@app.command
def ablate(
    *,
    out: Path,
    grid: str = "association,coverage,repetition",
    lm: str = "",
    judge: str = "",
    preset: str | None = None,
    config: Path | None = None,
    seed: int | None = None,
) -> None:
    """Train without each reward term, with other language models and judges; write a page.

    Writes ablation.json and report.html. Example:
    `p2c ablate --grid association,repetition --lm none --judge plain --out ablation/`

    Parameters
    ----------
    out
        Folder for the results.
    grid
        Terms to leave out, of association, clipscore, coverage, repetition, cider.
    lm
        Language models to take instead: none, hf:NAME.
    judge
        Judges to take instead: plain (trained without swapped words), hf:NAME.
    preset
        Preset that is varied, tiny by default.
    config
        YAML file with settings, instead of a preset.
    seed
        Instead of the configuration's.
    """
    from .ablation import run_ablation

    settings = _settings(preset, config, seed)
    rows = run_ablation(out, settings, _names(grid), _names(lm), _names(judge), _say)
    for row in rows:
        print(*row.values())


def _names(text: str) -> list[str]:
    """Return the parts of an option, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _settings(preset: str | None, config: Path | None, seed: int | None = None) -> PipelineConfig:
    """Return the settings that the options of a command name."""
    from .config import PipelineConfig

    require(preset is None or config is None, "preset", preset, "either --preset or --config")
    settings = (
        PipelineConfig.from_yaml(config) if config else PipelineConfig.preset(preset or "tiny")
    )
    return settings if seed is None else settings.with_(seed=seed)


def main() -> None:
    """Run the command line; map errors to exit codes."""
    try:
        app(exit_on_error=False, print_error=False)
    except InputError as error:
        print(f"p2c: {error}", file=sys.stderr)
        sys.exit(2)
    except NotFiniteError as error:
        print(f"p2c: {error}", file=sys.stderr)
        sys.exit(3)
    except cyclopts.CycloptsError as error:
        print(f"p2c: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader went away, as in `p2c ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
